"""Maxout on MNIST, for two CPU cores: the network of the authors at a quarter of its width.

Command:  python -m mcn_jax.main --config=configs/maxout_mnist_cpu.py --config.data.archive_dir=DIR
Expected: 99.42 % (ours, mean of seeds 0 to 2), 9 to 11 minutes on one core of an AMD EPYC with
          other work; the paper has no such row.
Partners: one-bit Maxout of the same channels with --config.model.conv=bwn
              --config.binarize.start_epoch=0
Ours:     12-12-6 maps, 8 epochs, the cosine schedule, shifts of up to 2 pixels, and the choices of
          `maxout.py`.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.data.crop_padding = 2
    config.num_epochs = 8
    config.model.name = "maxout"
    config.model.conv = "conv"
    config.model.layout = "mnist"
    config.model.widths = (12, 12, 6)
    config.model.planes = 1
    config.model.head = "linear"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

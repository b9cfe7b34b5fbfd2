"""MCN on MNIST, Table 2 of the paper, row MCN: four MCconv of 20-40-80-160 maps, 200 epochs.

Command:  python -m mcn_jax.main --config=configs/mnist.py --config.data.archive_dir=DIR
Expected: 99.52 % in the paper, the mean of 5 runs. Not run here, and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     batch size, momentum, weight decay, schedule, one epoch of warm-up, no augmentation.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.data.image_size = 32
    config.optimizer.warmup_epochs = 1
    return config

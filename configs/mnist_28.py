"""MCN on MNIST at 28x28, without padding to 32x32.

A published numpy re-implementation has this input; its authors could not train it.

Command:  python -m mcn_jax.main --config=configs/mnist_28.py --config.data.archive_dir=DIR
Expected: 99.29 % on average (ours, seeds 0 to 2), 6 to 7 minutes on one core of an AMD EPYC.
          The whole exported file with --small is 18 times smaller than in float32.
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     5-10-20-40 maps, one dense layer, 24 epochs of which the first 4 train a U-MCN, the cosine
          schedule, shifts of up to 2 pixels.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.data.crop_padding = 2
    config.num_epochs = 24
    config.model.widths = (5, 10, 20, 40)
    config.model.head = "linear"
    config.binarize.start_epoch = 4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

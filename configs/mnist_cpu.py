"""MCN on MNIST, a quarter of the width of `mnist.py`, with shifts: two CPU cores, under an hour.

Command:  python -m mcn_jax.main --config=configs/mnist_cpu.py --config.data.archive_dir=DIR
Expected: 99.37 % (seed 0), 25 minutes on one core of an AMD EPYC
Partners: U-MCN with --config.binarize.enabled=False, CNN with --config.model.conv=conv
Differs from the paper: 5-10-20-40 maps, 24 epochs of which the first 4 as a U-MCN, cosine
schedule, shifts of up to 2 pixels.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.data.image_size = 32
    config.data.crop_padding = 2
    config.num_epochs = 24
    config.model.widths = (5, 10, 20, 40)
    config.model.dense_features = 256
    config.binarize.start_epoch = 4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

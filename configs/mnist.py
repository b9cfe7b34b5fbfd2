"""MCN on MNIST, Table 2 of the paper: 99.52 % (mean of 5 runs, 200 epochs).

Command:  python -m mcn_jax.main --config=configs/mnist.py --config.data.archive_dir=DIR
Expected: 99.52 % (the paper); not run here, no time known
Partners: U-MCN with --config.binarize.enabled=False, CNN with --config.model.conv=conv
Ours, not printed in the paper: batch, momentum, weight decay, schedule, one epoch of warm-up.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.data.image_size = 32
    config.optimizer.warmup_epochs = 1
    return config

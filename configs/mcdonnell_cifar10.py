"""One bit per weight on CIFAR-10, after McDonnell 2018: a Wide-ResNet 20-4, 4.3 M weights.

Command:  python -m mcn_jax.main --config=configs/mcdonnell_cifar10.py --config.data.archive_dir=DIR
Expected: 93.87 % in McDonnell 2018 (6.13 % error after 126 epochs, with crop and flip). Not run
          here, and the time is not measured.
Partners: MCN of equal bits with --config.model.conv=mcconv
              --config.model.planes=4 --config.model.widths=32,32,64,128
              --config.binarize.start_epoch=10
          WRN of the same channels with --config.model.conv=conv
Ours:     Nesterov momentum (the source has none), batch size 128 (125), a single cosine (warm
          restarts), batch norm with scale and offset (without), zeros around the crops (random
          pixels), shortcuts averaged over 2x2 pixels (3x3).
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10.py"))
    config.num_epochs = 126
    config.model.conv = "mcdonnell"
    config.model.depth = 20
    config.model.planes = 1
    config.model.head = "conv"
    config.binarize.start_epoch = 0
    config.optimizer.schedule = "cosine"
    return config

"""MCN on CIFAR-100, Table 2 of the paper, row MCN: 34 layers, 64-64-128-256 maps.

Command:  python -m mcn_jax.main --config=configs/cifar100.py --config.data.archive_dir=DIR
Expected: 78.13 % in the paper. Not run here, and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     the choices of its base, `cifar10.py`; network and settings are the same.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10.py"))
    config.data.name = "cifar100"
    return config

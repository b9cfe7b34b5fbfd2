"""Fig. 6 of the paper, curves of training and test accuracy over 200 epochs, MCN against U-MCN.

That of `cifar10_20_16_16_32_64.py`.

Command:  python -m mcn_jax.main --config=configs/figure6.py --config.data.archive_dir=DIR
Expected: "converge in similar speeds" (the paper's claim); ours not run, time not measured
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     the network, for none is printed; the rest as its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    return load_config_file(pathlib.Path(__file__).with_name("cifar10_20_16_16_32_64.py"))

"""Fig. 6 of the paper, curves of MCN and U-MCN, at the scale of a CPU: `cifar10_cpu.py`.

Command:  python -m mcn_jax.main --config=configs/figure6_cpu.py --config.data.archive_dir=DIR
Expected: 74.37 %, U-MCN 76.20 %, WRN of the same channels 87.32 %, about an hour (ours, seed 0, of
          `cifar10_cpu.py`, which this equals); the paper has no such figure
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     as `cifar10_cpu.py`.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    return load_config_file(pathlib.Path(__file__).with_name("cifar10_cpu.py"))

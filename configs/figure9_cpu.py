"""Fig. 9 of the paper, error curves, MCN against WRN, at the scale of a CPU: `imagenet100_cpu.py`.

Command:  python -m mcn_jax.main --config=configs/figure9_cpu.py --config.data.archive_dir=DIR
Expected: not run; the paper has no such figure. Half an hour, as `imagenet100_cpu.py`
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     as `imagenet100_cpu.py`.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    return load_config_file(pathlib.Path(__file__).with_name("imagenet100_cpu.py"))

"""Fig. 9 of the paper, error on 100 classes of ImageNet over the epochs, MCN against WRN.

That of `imagenet100.py`.

Command:  python -m mcn_jax.main --config=configs/figure9.py --config.data.archive_dir=DIR
Expected: similar errors after 30 epochs (the paper's claim); ours not run, time not measured
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     as `imagenet100.py`.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    return load_config_file(pathlib.Path(__file__).with_name("imagenet100.py"))

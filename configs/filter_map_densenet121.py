r"""DenseNet-121 of 3D-FilterMap on CIFAR-10: all 3x3 filters are cut out of one map per layer.

The network has 5,292,362 parameters instead of 6,956,298.

Command:  python -m mcn_jax.main --config=configs/filter_map_densenet121.py \
              --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured. Its authors report 95.45 %, and 95.13 % for
          DenseNet-121.
Partners: DenseNet-121 of as many channels with --config.model.conv=conv
Ours:     the recipe; the authors print none.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("filter_map_resnet18.py"))
    config.model.name = "densenet"
    config.model.widths = (64,)
    config.model.blocks = (6, 12, 24, 16)
    return config

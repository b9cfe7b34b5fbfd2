r"""ResNet-50 of 3D-FilterMap on CIFAR-10: all 3x3 filters are cut out of one map per layer.

The network has 13,066,890 parameters instead of 23,520,842.

Command:  python -m mcn_jax.main --config=configs/filter_map_resnet50.py \
              --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured. Its authors report 95.47 %, and 95.16 % for
          ResNet-50.
Partners: ResNet-50 of as many channels with --config.model.conv=conv
Ours:     the recipe; the authors print none.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("filter_map_resnet18.py"))
    config.model.blocks = (3, 4, 6, 3)
    config.model.block = "bottleneck"
    return config

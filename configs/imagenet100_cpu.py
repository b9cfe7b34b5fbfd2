"""MCN on 100 classes of ImageNet, for two CPU cores: `imagenet100.py`, 8 narrow layers, 64x64.

Command:  python -m mcn_jax.main --config=configs/imagenet100_cpu.py --config.data.archive_dir=DIR
Expected: not run; the paper has no such row. Half an hour on two cores of an AMD EPYC, computed
          from 429 to 561 images/s with synthetic JPEGs (results/imagenet100_cpu_synthetic).
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     8 layers, 4-4-8-16 maps, 64x64 pixels, 6 epochs of which the first trains a U-MCN, the
          cosine schedule, and the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("imagenet100.py"))
    config.data.image_size = 64
    config.num_epochs = 6
    config.model.depth = 8
    config.model.widths = (4, 4, 8, 16)
    config.binarize.start_epoch = 1
    config.optimizer.schedule = "cosine"
    return config

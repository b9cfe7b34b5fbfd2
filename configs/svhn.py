"""MCN on SVHN, Table 2 of the paper, row MCN: 28 layers, 64-64-128-256 maps.

It trains on the 73,257 images of the training split, without the 531,131 extra images.

Command:  python -m mcn_jax.main --config=configs/svhn.py --config.data.archive_dir=DIR
Expected: 96.87 % in the paper. Not run here, and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     batch size, momentum, weight decay, the factor of the rate every 30 epochs (0.2), warm-up,
          no augmentation, dropout.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10.py"))
    config.data.name = "svhn_cropped"
    config.data.crop_padding = 0
    config.data.flip = False
    config.model.depth = 28
    config.optimizer.schedule_epochs = (30, 60, 90, 120, 150, 180)
    return config

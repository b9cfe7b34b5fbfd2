"""MCN on SVHN, for two CPU cores: `svhn.py` with 20 layers and a sixteenth of its width.

Command:  python -m mcn_jax.main --config=configs/svhn_cpu.py --config.data.archive_dir=DIR
Expected: not run; the paper has no such row. About ten minutes on one core of an AMD EPYC
          with AVX-512, computed from the time of `cifar10_cpu.py`, which has the same network.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     20 layers, 4-4-8-16 maps, the first 30,000 images, 8 epochs of which the first 2 train a
          U-MCN, the cosine schedule, and the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("svhn.py"))
    config.data.train_split = "train[:30000]"
    config.num_epochs = 8
    config.model.depth = 20
    config.model.widths = (4, 4, 8, 16)
    config.binarize.start_epoch = 2
    config.optimizer.schedule = "cosine"
    return config

"""MCN on CIFAR-100, for two CPU cores: `cifar100.py` with 20 layers and a sixteenth of its width.

Command:  python -m mcn_jax.main --config=configs/cifar100_cpu.py --config.data.archive_dir=DIR
Expected: 28.77 %, U-MCN 31.30 % (ours, seed 0); the paper has no such row. About 14 minutes on
          one core of an AMD EPYC with AVX-512, computed from the time of `cifar10_cpu.py`.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     20 layers, 4-4-8-16 maps, 8 epochs of which the first 2 train a U-MCN, the cosine
          schedule, and the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar100.py"))
    config.num_epochs = 8
    config.model.depth = 20
    config.model.widths = (4, 4, 8, 16)
    config.binarize.start_epoch = 2
    config.optimizer.schedule = "cosine"
    return config

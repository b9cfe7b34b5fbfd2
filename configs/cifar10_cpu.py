"""MCN on CIFAR-10, for two CPU cores: `cifar10.py` with 20 layers and a sixteenth of its width.

Command:  python -m mcn_jax.main --config=configs/cifar10_cpu.py --config.data.archive_dir=DIR
Expected: 74.37 %, U-MCN 76.20 %, WRN of the same channels 87.32 % (ours, seed 0); the paper has no
          such row. About an hour on two cores of an AMD EPYC, computed from two epochs
          (results/cifar10_cpu_two_epochs): 300 s for a float epoch and 331 s for a binary epoch.
          Both include compilation, which later epochs do not need. A step of the WRN takes 2.8
          times as long (results/benchmarks/epyc/step.json).
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     20 layers, 4-4-8-16 maps, 12 epochs of which the first 2 train a U-MCN, the cosine
          schedule, and the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10.py"))
    config.num_epochs = 12
    config.model.depth = 20
    config.model.widths = (4, 4, 8, 16)
    config.binarize.start_epoch = 2
    config.optimizer.schedule = "cosine"
    return config

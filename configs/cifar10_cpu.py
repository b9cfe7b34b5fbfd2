"""MCN on CIFAR-10, `cifar10.py` with 20 layers of a sixteenth of its width: two CPU cores.

Command:  python -m mcn_jax.main --config=configs/cifar10_cpu.py --config.data.archive_dir=DIR
Expected: 74.37 %, U-MCN 76.20 %, WRN of the same channels 87.32 % (ours, seed 0); the paper has no
          such row. About an hour on two cores of an AMD EPYC, as the first two epochs tell
          (results/cifar10_cpu_two_epochs): 300 s a float and 331 s a binary one, compilation
          included, which later ones do without. The WRN takes 2.8 times as long by its steps
          (results/benchmarks/step.json)
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     20 layers, 4-4-8-16 maps, 12 epochs of which the first 2 as a U-MCN, cosine schedule,
          and what is ours of its base.
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

"""MCN on MNIST, for two CPU cores: `mnist.py` at a quarter of its width, with shifts.

Command:  python -m mcn_jax.main --config=configs/mnist_cpu.py --config.data.archive_dir=DIR
Expected: 99.37 % (ours, seed 0), 25 minutes on one core of an AMD EPYC; the paper has no such row.
          With --config.model.widths=10,20,40,80, 99.47 % (ours, seed 0), 95 minutes on one core of
          a machine with other work.
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     5-10-20-40 maps, 24 epochs of which the first 4 train a U-MCN, the cosine schedule, shifts
          of up to 2 pixels, 256 hidden units.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("mnist.py"))
    config.data.crop_padding = 2
    config.num_epochs = 24
    config.model.widths = (5, 10, 20, 40)
    config.model.dense_features = 256
    config.binarize.start_epoch = 4
    config.optimizer.schedule = "cosine"
    return config

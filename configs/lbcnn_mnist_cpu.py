"""LBCNN on MNIST, for two CPU cores: 10 modules of 16 channels with 64 anchors each.

Command:  python -m mcn_jax.main --config=configs/lbcnn_mnist_cpu.py --config.data.archive_dir=DIR
Expected: 99.02 % (ours, mean of seeds 0 to 2), 16 minutes on one core of an AMD EPYC with other
          work; the paper has no such row.
Partners: ordinary convolutions of as many channels with --config.model.conv=conv
          one-bit convolutions of as many channels with --config.model.conv=bwn
              --config.binarize.start_epoch=0
Ours:     the size, 4 epochs, the cosine schedule, shifts of up to 2 pixels, and the choices of
          `lbcnn.py`. The learning rate of 0.03 was better than 0.1 and 0.01 on the last tenth of
          the training images, after 3 epochs with 15 % of them (results/mnist_networks.jsonl).
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("lbcnn.py"))
    config.data.name = "mnist"
    config.data.crop_padding = 2
    config.data.flip = False
    config.num_epochs = 4
    config.model.widths = (16,)
    config.model.depth = 10
    config.model.lbc_ratio = 4.0
    config.model.lbc_density = 0.5
    config.model.dense_features = 128
    config.optimizer.learning_rate = 0.03
    config.optimizer.schedule = "cosine"
    return config

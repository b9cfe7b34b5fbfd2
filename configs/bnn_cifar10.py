r"""BNN on CIFAR-10, Table 2 of the paper: one-bit weights and one-bit activations.

The network is that of BinaryConnect, with signs in place of the ReLUs. The recipe is that of the
authors' program for Theano, which differs from `binaryconnect_cifar10.py` in the learning rate.
That program reaches 88.60 % (11.40 % error) by its README.

Command:  python -m mcn_jax.main --config=configs/bnn_cifar10.py --config.data.archive_dir=DIR
Expected: 89.85 % in the paper. Not run here, and the time is not measured.
Partners: BinaryConnect of the same channels with --config.model.conv=binaryconnect
          XNOR-Net of the same channels with --config.model.conv=xnor --config.model.stem_conv=conv
          ConvNet of the same channels with --config.model.conv=conv
              --config.model.head=dense_batch_norm
Ours:     weights of +-n^-0.5 instead of +-1, with latent weights clipped there, so that the rate
          relative to this bound is our own in each layer; epsilon of batch norm 1e-5 (1e-4); images
          normalised per channel (values in [-1, 1]); accuracy after the last epoch (of the epoch
          that is best on the 5,000 images left out).
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("binaryconnect_cifar10.py"))
    config.model.conv = "bnn"
    config.optimizer.learning_rate = 0.001
    config.optimizer.schedule_final = 3e-7 / 0.001
    return config

"""Maxout on CIFAR-10, Table 2 of the paper, row Maxout, with batch norm and our recipe.

The size is that of Goodfellow et al. 2013. Their SVHN network has the flags
--config.model.layout=svhn --config.model.widths=64,128,128 --config.model.dense_features=400, and
their MNIST network --config.model.layout=mnist --config.model.widths=48,48,24
--config.model.head=linear.

Command:  python -m mcn_jax.main --config=configs/maxout.py --config.data.archive_dir=DIR
Expected: 90.65 % in the paper, for the network without batch norm. Not run here, and the time is
          not measured.
Partners: one-bit Maxout of the same channels with --config.model.conv=bwn
              --config.binarize.start_epoch=0
Ours:     batch norm between convolution and maximum, no limit on the norm of filters, dropout only
          before the last layer, batch size, learning rate, momentum, weight decay, schedule,
          warm-up, augmentation, initial values, no whitening.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "maxout"
    config.model.conv = "conv"
    config.model.layout = "cifar10"
    config.model.widths = (96, 192, 192)
    config.model.planes = 1
    config.model.head = "maxout"
    config.model.dense_features = 500
    config.optimizer.warmup_epochs = 1
    return config

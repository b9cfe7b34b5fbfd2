"""Network in Network on CIFAR-10, Table 2 of the paper, row NIN, with batch norm and our recipe.

Lin et al. 2014 have a bias in each layer, where this network has batch norm. The size is theirs.

Command:  python -m mcn_jax.main --config=configs/nin.py --config.data.archive_dir=DIR
Expected: 91.19 % in the paper, for the network without batch norm. Not run here, and the time is
          not measured.
Partners: NIN with one-bit spatial filters, of the same channels with --config.model.conv=bwn
              --config.binarize.start_epoch=0
Ours:     batch norm, batch size, learning rate, momentum, weight decay, schedule, warm-up,
          augmentation, initial values.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "nin"
    config.model.conv = "conv"
    config.model.widths = (192, 160, 96, 192, 192, 192, 192, 192)
    config.model.planes = 1
    config.model.head = "conv_relu"
    config.optimizer.warmup_epochs = 1
    return config

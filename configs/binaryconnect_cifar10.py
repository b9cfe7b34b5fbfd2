r"""BinaryConnect on CIFAR-10, Table 2 of the paper, in the network of its authors and our recipe.

Courbariaux et al. 2015 also have one-bit weights in the dense layers, which are float32 here. The
filters are deterministic signs, in training and afterwards.

Command:  python -m mcn_jax.main --config=configs/binaryconnect_cifar10.py \
              --config.data.archive_dir=DIR
Expected: 91.73 % in the paper, which the authors report for random signs in training and float
          weights afterwards. Not run here, and the time is not measured.
Partners: ConvNet of the same channels with --config.model.conv=conv
          BNN of the same channels with --config.model.conv=bnn
          XNOR-Net of the same channels with --config.model.conv=xnor --config.model.stem_conv=conv
Ours:     float dense layers, cross-entropy in place of the squared hinge loss, SGD in place of
          Adam, batch size, learning rate, momentum, weight decay of the dense layers, schedule,
          warm-up, augmentation, no whitening, all training images.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "convnet"
    config.model.conv = "binaryconnect"
    config.model.widths = (128, 256, 512)
    config.model.planes = 1
    config.model.head = "dense_batch_norm"
    config.binarize.start_epoch = 0
    config.optimizer.latent_weight_decay = 0.0
    config.optimizer.warmup_epochs = 1
    return config

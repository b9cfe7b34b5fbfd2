"""MCN on CIFAR-10, Table 2 of the paper, row MCN: 34 layers, 64-64-128-256 maps.

Command:  python -m mcn_jax.main --config=configs/cifar10.py --config.data.archive_dir=DIR
Expected: 95.39 %, U-MCN 95.75 % in the paper. Not run here, and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     batch size, momentum, weight decay, epochs at which the rate drops, warm-up,
          augmentation, dropout.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "wide_resnet"
    config.model.depth = 34
    config.model.widths = (64, 64, 128, 256)
    config.model.dense_features = 512
    config.optimizer.warmup_epochs = 1
    return config

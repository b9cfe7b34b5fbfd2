r"""ResNet-18 of 3D-FilterMap on CIFAR-10: all 3x3 filters are cut out of one map per layer.

The network has 949,386 parameters instead of 11,173,962. 1x1 convolutions are ordinary ones.

Command:  python -m mcn_jax.main --config=configs/filter_map_resnet18.py \
              --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured. Its authors report 93.55 %, and 94.18 % for
          ResNet-18.
Partners: ResNet-18 of as many channels with --config.model.conv=conv
          one bit per element of as many channels with --config.model.conv=filter_map_sign
              --config.model.pointwise=mcdonnell --config.binarize.start_epoch=0
Ours:     the recipe; the authors print none.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "resnet"
    config.model.conv = "filter_map"
    config.model.widths = (64, 64, 128, 256, 512)
    config.model.planes = 1
    config.model.head = "linear"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

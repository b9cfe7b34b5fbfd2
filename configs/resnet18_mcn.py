"""MCN in ResNet-18 on CIFAR-10, a network that the paper leaves for future work.

The 3x3 convolutions are MCconvs, the three 1x1 convolutions ordinary ones. The channels are those
of ResNet-18, so the 3x3 filters have a quarter of its weights, of one bit each. The flags
--config.model.blocks=3,4,6,3 make it ResNet-34, and with --config.model.block=bottleneck ResNet-50.

Command:  python -m mcn_jax.main --config=configs/resnet18_mcn.py --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          ResNet-18 of as many channels with --config.model.conv=conv
Ours:     everything; no source trains this network.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "resnet"
    config.model.widths = (16, 16, 32, 64, 128)
    config.model.blocks = (2, 2, 2, 2)
    config.model.head = "linear"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

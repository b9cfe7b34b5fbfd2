"""ResNet-110 on CIFAR-10 with our recipe, a narrow float32 network for the table of systems.

The network is that of He et al. 2016a: 54 basic blocks, shortcuts without weights, 1.7 million
parameters.

Command:  python -m mcn_jax.main --config=configs/resnet110.py --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured.
Partners: one-bit weights of the same channels with --config.model.conv=mcdonnell
              --config.binarize.start_epoch=0
Ours:     batch size, learning rate, Nesterov's momentum, weight decay, schedule. He et al. train
          the first steps at a rate of 0.01; ours rises over the first epoch.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "resnet"
    config.model.conv = "conv"
    config.model.widths = (16, 16, 32, 64)
    config.model.blocks = (18, 18, 18)
    config.model.shortcut = "zeros"
    config.model.planes = 1
    config.model.head = "linear"
    config.optimizer.warmup_epochs = 1
    return config

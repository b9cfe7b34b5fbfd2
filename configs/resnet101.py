"""ResNet-101 on CIFAR-10, Table 2 of the paper, row ResNet-101, with our recipe.

The network has bottleneck blocks, a 3x3 stem with stride 1 and float32 weights: 42.5 million
parameters.

Command:  python -m mcn_jax.main --config=configs/resnet101.py --config.data.archive_dir=DIR
Expected: 93.57 %, on CIFAR-100 74.84 % with --config.data.name=cifar100, in the paper. Not run
          here, and the time is not measured.
Partners: MCN in ResNet-101 of as many channels with --config.model.conv=mcconv
              --config.model.planes=4 --config.model.widths=16,16,32,64,128
Ours:     batch size, learning rate, momentum, weight decay, schedule, warm-up, augmentation.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "resnet"
    config.model.conv = "conv"
    config.model.widths = (64, 64, 128, 256, 512)
    config.model.blocks = (3, 4, 23, 3)
    config.model.block = "bottleneck"
    config.model.planes = 1
    config.model.head = "linear"
    config.optimizer.warmup_epochs = 1
    return config

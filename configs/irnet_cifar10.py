"""IR-Net on CIFAR-10: ResNet-20 with one bit per weight (Qin et al. 2020).

267,264 weights have one bit. The first convolution and the dense layer are float. The recipe is
that of the authors' program.

Command:  python -m mcn_jax.main --config=configs/irnet_cifar10.py --config.data.archive_dir=DIR
Expected: 90.8 % by its authors. Not run here, and the time is not measured.
Partners: MCN of equal bits with --config.model.conv=mcconv
              --config.model.planes=4 --config.model.widths=8,8,16,32
              --config.binarize.start_epoch=10
          McDonnell's layers of the same channels with --config.model.conv=mcdonnell
          ResNet of the same channels with --config.model.conv=conv
Ours:     Nesterov momentum, the estimator advanced in each step (each epoch), no second batch norm
          and ReLU before the dense layer, augmentation, initial values of the float layers.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10.py"))
    config.num_epochs = 400
    config.model.name = "resnet"
    config.model.conv = "irnet"
    config.model.stem_conv = "conv"
    config.model.widths = (16, 16, 32, 64)
    config.model.blocks = (3, 3, 3)
    config.model.shortcut = "zeros"
    config.model.planes = 1
    config.model.head = "linear"
    config.binarize.start_epoch = 0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0
    return config

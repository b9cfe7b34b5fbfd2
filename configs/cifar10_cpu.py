"""MCN on CIFAR-10, 20 layers of a sixteenth of the width of `cifar10.py`: for a CPU.

Command:  python -m mcn_jax.main --config=configs/cifar10_cpu.py --config.data.archive_dir=DIR
Expected: not run; a step of random images takes 1.4 s on one core of an AMD EPYC, which makes about
          two hours in all
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Differs from the paper: 20 layers, 4-4-8-16 maps, 12 epochs of which the first 2 as a U-MCN, cosine
schedule, one epoch of warm-up.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.num_epochs = 12
    config.model.name = "wide_resnet"
    config.model.depth = 20
    config.model.widths = (4, 4, 8, 16)
    config.model.dense_features = 512
    config.binarize.start_epoch = 2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

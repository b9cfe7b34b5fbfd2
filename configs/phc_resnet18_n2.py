r"""ResNet-18 of parameterized hypercomplex convolutions with n = 2 on CIFAR-10.

All convolutions are of this kind, those of 1x1 pixels too. The network has 5,446,226 parameters
instead of 10,872,382 with ordinary convolutions. The authors' program, whose widths these are,
also counts 4,680 biases that it never adds.

Command:  python -m mcn_jax.main --config=configs/phc_resnet18_n2.py --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured.
Partners: ResNet-18 of as many channels with --config.model.conv=conv
              --config.model.pointwise=conv
Ours:     Nesterov momentum, warm-up, crops and flips (the program has none), He's variance of the
          first kernels, no weight decay of the rules.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "resnet"
    config.model.conv = "phc"
    config.model.pointwise = "phc"
    config.model.widths = (60, 60, 120, 240, 516)
    config.model.planes = 1
    config.model.head = "linear"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

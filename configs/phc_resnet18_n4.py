r"""ResNet-18 of parameterized hypercomplex convolutions with n = 4 on CIFAR-10.

All convolutions are of this kind, those of 1x1 pixels too. The network has 2,731,578 parameters
instead of 10,872,382 with ordinary convolutions. The authors' program, whose widths these are,
also counts 4,680 biases that it never adds.

Command:  python -m mcn_jax.main --config=configs/phc_resnet18_n4.py --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured.
Partners: ResNet-18 of as many channels with --config.model.conv=conv
              --config.model.pointwise=conv
Ours:     Nesterov momentum, warm-up, crops and flips (the program has none), He's variance of the
          first kernels, no weight decay of the rules.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("phc_resnet18_n2.py"))
    config.model.phc_n = 4
    return config

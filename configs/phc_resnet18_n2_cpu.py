r"""PHC with n = 2 in a narrow ResNet-18 on CIFAR-10: `phc_resnet18_n2.py`, a quarter as wide.

Command:  python -m mcn_jax.main --config=configs/phc_resnet18_n2_cpu.py \
              --config.data.archive_dir=DIR
Expected: not run to the end here. About two hours on two cores of an AMD EPYC,
          computed from short epochs with XLA's convolution, while the machine did other work.
Partners: ResNet-18 of as many channels with --config.model.conv=conv
              --config.model.pointwise=conv
          n = 4 of as many channels with --config.model.phc_n=4
Ours:     30 epochs, widths that 2 and 4 divide, and the choices of its base. n = 3 needs others,
          such as --config.model.widths=(15,15,30,63,129).
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("phc_resnet18_n2.py"))
    config.num_epochs = 30
    config.model.widths = (16, 16, 32, 64, 128)
    return config

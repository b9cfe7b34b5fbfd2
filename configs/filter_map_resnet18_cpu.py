r"""3D-FilterMap in a narrow ResNet-18 on CIFAR-10: `filter_map_resnet18.py`, a quarter as wide.

Command:  python -m mcn_jax.main --config=configs/filter_map_resnet18_cpu.py \
              --config.data.archive_dir=DIR
Expected: not run to the end here. About two hours on two cores of an AMD EPYC,
          computed from short epochs with XLA's convolution, while the machine did other work.
Partners: ResNet-18 of as many channels with --config.model.conv=conv
          one bit per element of as many channels with --config.model.conv=filter_map_sign
              --config.model.pointwise=mcdonnell --config.binarize.start_epoch=0
Ours:     30 epochs and the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("filter_map_resnet18.py"))
    config.num_epochs = 30
    config.model.widths = (16, 16, 32, 64, 128)
    return config

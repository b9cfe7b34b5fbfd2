r"""MCN with learned strides on CIFAR-10, for two CPU cores: `cifar10_cpu.py` with DiffStride.

Images keep 20x20 pixels or more to the end, so an image takes 3.2 times the multiply-adds.

Command:  python -m mcn_jax.main --config=configs/mcn_diffstride_cpu.py \
              --config.data.archive_dir=DIR
Expected: not run to the end here. About two hours on two cores of an AMD EPYC,
          computed from short epochs while the machine did other work.
Partners: strided convolutions of as many channels with --config.model.pooling=strided
          max-pooling of as many channels with --config.model.pooling=max
          average pooling of as many channels with --config.model.pooling=average
          fixed spectral pooling of as many channels with --config.model.pooling=spectral
Ours:     the head and the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10_cpu.py"))
    config.model.head = "linear"
    config.model.pooling = "diffstride"
    return config

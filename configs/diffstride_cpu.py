r"""Learned strides in a narrow ResNet-18 on CIFAR-10: `diffstride.py` with an eighth of its width.

Command:  python -m mcn_jax.main --config=configs/diffstride_cpu.py --config.data.archive_dir=DIR
Expected: not run to the end here. About three hours on two cores of an AMD EPYC,
          computed from short epochs with XLA's convolution, while the machine did other work.
Partners: strided convolutions of as many channels with --config.model.pooling=strided
          fixed spectral pooling of as many channels with --config.model.pooling=spectral
          strides of 3, 2 and 3 at the start of as many channels with
              --config.model.strides=(1,3,2,3)
Ours:     30 epochs, the cosine schedule and a warm-up of one epoch; otherwise the choices of its
          base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("diffstride.py"))
    config.num_epochs = 30
    config.model.widths = (8, 8, 16, 32, 64)
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

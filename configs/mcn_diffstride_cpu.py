r"""MCN with learned strides on CIFAR-10, for two CPU cores: `cifar10_cpu.py` with DiffStride.

The first two layers learn a stride of 1, so an image takes 4.7 times the multiply-adds.

Command:  python -m mcn_jax.main --config=configs/mcn_diffstride_cpu.py \
              --config.data.archive_dir=DIR
Expected: 73.81 % (ours, seed 0), 92 minutes with pauses, on one core of an AMD EPYC with
          AVX-512 that also did other work. The partners: strided 75.08 %, max 76.40 %, average
          73.59 %, spectral 74.32 % (results/pooling_mcn.jsonl).
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

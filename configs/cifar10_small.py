"""MCN on CIFAR-10 with a pattern of signs per plane, 20 layers and 0.27 million bits of filters.

Command:  python -m mcn_jax.main --config=configs/cifar10_small.py --config.data.archive_dir=DIR
Expected: not run here. At 0.126 s for a step of 64 images, 100 epochs take 2.7 hours on two cores
          of an AMD EPYC with AVX-512 (results/benchmarks/epyc_avx512/step.json,
          native_convolution).
Partners: U-MCN with --config.binarize.enabled=False
          MCN of equal bits without a pattern with --config.model.plane_signs=""
          plain one-bit layer of equal bits with --config.model.conv=mcdonnell
          --config.model.planes=2 --config.model.plane_signs="" --config.binarize.start_epoch=0
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          --config.model.plane_signs=""
Ours:     20 layers, 8-8-16-32 maps, the Hadamard pattern, one dense layer, 100 epochs of which the
          first 5 train a U-MCN, the cosine schedule, new statistics of batch norm at the end, and
          the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10_cpu.py"))
    config.num_epochs = 100
    config.batch_norm_steps = 100
    config.binarize.start_epoch = 5
    config.model.widths = (8, 8, 16, 32)
    config.model.plane_signs = "hadamard"
    config.model.head = "linear"
    return config

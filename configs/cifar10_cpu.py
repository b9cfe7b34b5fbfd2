"""MCN on CIFAR-10, for two CPU cores: `cifar10.py` with 20 layers and a sixteenth of its width.

Command:  python -m mcn_jax.main --config=configs/cifar10_cpu.py --config.data.archive_dir=DIR
Expected: 74.37 %, U-MCN 76.20 %, WRN of the same channels 87.32 % (ours, seed 0); the paper has no
          such row. With the head "linear" the MCN took 21 minutes on one core of an AMD EPYC with
          AVX-512, beside other work (results/pooling_mcn.jsonl, strided). A step of the WRN of the
          same channels takes 1.43 times as long (results/benchmarks/epyc_avx512/step.json,
          native_convolution).
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     20 layers, 4-4-8-16 maps, 12 epochs of which the first 2 train a U-MCN, the cosine
          schedule, and the choices of its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10.py"))
    config.num_epochs = 12
    config.model.depth = 20
    config.model.widths = (4, 4, 8, 16)
    config.binarize.start_epoch = 2
    config.optimizer.schedule = "cosine"
    return config

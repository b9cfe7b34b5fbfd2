r"""MCN on CIFAR-10, the authors' book, Sec. 3.4, row 16-32-64-128: 20 layers, 4.3 M weights.

Command:  python -m mcn_jax.main --config=configs/cifar10_20_16_32_64_128.py \
              --config.data.archive_dir=DIR
Expected: in the book, U-MCN 94.88 %, MCN 93.98 %, MCN with the center loss 93.94 %. Not run here,
          and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
          MCN with the center loss, from the end of this run, with --config.init_from=WORKDIR
              --config.binarize.start_epoch=0 --config.num_epochs=20
              --config.optimizer.learning_rate=0.01 --config.optimizer.m_learning_rate=0.001
              --config.optimizer.schedule=constant --config.optimizer.warmup_epochs=0
              --config.loss.center_loss_weight=1e-3
Ours:     the choices of its base, `cifar10_20_16_16_32_64.py`.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10_20_16_16_32_64.py"))
    config.model.widths = (16, 32, 64, 128)
    return config

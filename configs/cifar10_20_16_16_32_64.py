r"""MCN on CIFAR-10, the authors' book, Sec. 3.4, row 16-16-32-64: 20 layers, 1.1 M weights.

Command:  python -m mcn_jax.main --config=configs/cifar10_20_16_16_32_64.py \
              --config.data.archive_dir=DIR
Expected: in the book, WRN of the same printed width 92.31 %, of the same channels 95.75 %, U-MCN
          93.69 %, MCN 92.08 %, MCN with the center loss 92.10 %. Not run here with this
          schedule. On one NVIDIA H100 in bfloat16, with a cosine schedule whose first twentieth
          trains a U-MCN: MCN 92.26 % after 200 epochs in 387 s; after 70 epochs, MCN 91.38 % in
          153 s and U-MCN 92.27 % in 111 s (results/cifar10_20_200_epochs_mcn,
          results/cifar10_20_70_epochs_mcn, results/cifar10_20_70_epochs_umcn).
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
          MCN with the center loss, from the end of this run, with --config.init_from=WORKDIR
              --config.binarize.start_epoch=0 --config.num_epochs=20
              --config.optimizer.learning_rate=0.01 --config.optimizer.m_learning_rate=0.001
              --config.optimizer.schedule=constant --config.optimizer.warmup_epochs=0
              --config.loss.center_loss_weight=1e-3
Ours:     batch size, momentum, weight decay, epochs at which the rate drops, warm-up,
          augmentation, dropout, the weight of the center loss.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10.py"))
    config.model.depth = 20
    config.model.widths = (16, 16, 32, 64)
    return config

r"""Fig. 5 of the paper, accuracy over theta: 20 layers, 16-16-32-64 maps, Adadelta, CIFAR-10.

Command:  for theta in 0 1e-5 1e-4 1e-3 1e-2; do
              python -m mcn_jax.main --config=configs/figure5.py \
                  --config.data.archive_dir=DIR \
                  --config.loss.theta=$theta --workdir=runs/figure5/theta_$theta
          done
Expected: the paper says "stable with varying theta". Not run here, and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     the values of theta, epochs and schedule, warm-up, weight decay, augmentation, dropout.
          Adadelta's learning rate is eta1 as printed.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10_20_16_16_32_64.py"))
    config.optimizer.name = "adadelta"
    return config

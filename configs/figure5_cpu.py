r"""Fig. 5 of the paper, accuracy over theta, for a CPU: narrow networks on MNIST, Adadelta.

Command:  for theta in 0 1e-5 1e-4 1e-3 1e-2; do
              python -m mcn_jax.main --config=configs/figure5_cpu.py \
                  --config.data.archive_dir=DIR \
                  --config.loss.theta=$theta --workdir=runs/figure5_cpu/theta_$theta
          done
Expected: 97.11 +- 0.06 % with theta 1e-4 (ours, seeds 0 to 2); the paper has no such figure. A
          run takes two and a half minutes on one core of a machine with other work.
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     the first 10,000 images of MNIST, the network of `mnist_cpu.py`, 5 epochs of which the
          first trains a U-MCN, no shifts, ten times the printed rates. With the printed rates,
          Adadelta reaches only 91.1 to 91.6 % in these epochs.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("mnist_cpu.py"))
    config.data.train_split = "train[:10000]"
    config.data.crop_padding = 0
    config.num_epochs = 5
    config.binarize.start_epoch = 1
    config.optimizer.name = "adadelta"
    config.optimizer.learning_rate = 1.0
    config.optimizer.m_learning_rate = 0.1
    return config

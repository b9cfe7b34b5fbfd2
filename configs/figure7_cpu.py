r"""Fig. 7 of the paper, accuracy over the number of centers, for a CPU: narrow networks on MNIST.

Command:  for centers in 2 3 4 8; do
              python -m mcn_jax.main --config=configs/figure7_cpu.py \
                  --config.data.archive_dir=DIR \
                  --config.binarize.num_centers=$centers --workdir=runs/figure7_cpu/centers_$centers
          done
Expected: 97.61 +- 0.44 % with 2 centers, 98.21 +- 0.11 % with 8 (ours, seeds 0 to 2); the paper
          has no such figure. A run takes one and a half minutes on one core of a machine with
          other work.
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1
          MCN with the center loss, from the end of this run, with --config.init_from=WORKDIR
              --config.binarize.start_epoch=0 --config.num_epochs=3
              --config.optimizer.learning_rate=0.01 --config.optimizer.m_learning_rate=0.001
              --config.optimizer.schedule=constant --config.optimizer.warmup_epochs=0
              --config.loss.center_loss_weight=1e-3 and the same number of centers
Ours:     the first 10,000 images of MNIST, the network of `mnist_cpu.py`, 5 epochs of which the
          first trains a U-MCN, no shifts; 8 centers.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("mnist_cpu.py"))
    config.data.train_split = "train[:10000]"
    config.data.crop_padding = 0
    config.num_epochs = 5
    config.binarize.start_epoch = 1
    return config

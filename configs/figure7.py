r"""Fig. 7 of the paper, accuracy over the number of centers, with and without the center loss.

Command:  for centers in 2 3 4 8; do
              python -m mcn_jax.main --config=configs/figure7.py \
                  --config.data.archive_dir=DIR \
                  --config.binarize.num_centers=$centers --workdir=runs/figure7/centers_$centers
          done
Expected: rises with both, between 80 and 95 % (the paper's figure); ours not run, time not measured
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
          MCN with the center loss, from the end of this run, with --config.init_from=WORKDIR
              --config.binarize.start_epoch=0 --config.num_epochs=20
              --config.optimizer.learning_rate=0.01 --config.optimizer.m_learning_rate=0.001
              --config.optimizer.schedule=constant --config.optimizer.warmup_epochs=0
              --config.loss.center_loss_weight=1e-3 and the same number of centers as there
Ours:     the network, for none is printed; 8 centers, the weight of the center loss; the rest as
          its base.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    return load_config_file(pathlib.Path(__file__).with_name("cifar10_20_16_16_32_64.py"))

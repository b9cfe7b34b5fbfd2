r"""Fig. 5 of the paper, accuracy over lambda: fine-tuning with the center loss after `figure5.py`.

With init_from and start_epoch 0, the run starts from the filters and centers of the first stage.

Command:  for lambda in 1e-4 1e-3 1e-2 1e-1; do
              python -m mcn_jax.main --config=configs/figure5_lambda.py \
                  --config.data.archive_dir=DIR \
                  --config.init_from=runs/figure5/theta_1e-4 \
                  --config.loss.center_loss_weight=$lambda \
                  --workdir=runs/figure5/lambda_$lambda
          done
Expected: the paper says "stable with varying lambda". Not run here, and the time is not measured.
Partners: the same epochs without the center loss with --config.loss.center_loss_weight=0
Ours:     the values of lambda, 20 epochs at a constant tenth of the rates, and the choices of
          `figure5.py`.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("figure5.py"))
    config.num_epochs = 20
    config.binarize.start_epoch = 0
    config.loss.center_loss_weight = 1e-3
    config.optimizer.learning_rate = 0.01
    config.optimizer.m_learning_rate = 0.001
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_epochs = 0
    return config

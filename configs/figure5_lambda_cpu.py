r"""Fig. 5 of the paper, accuracy over lambda, for a CPU: fine-tuning after `figure5_cpu.py`.

With init_from and start_epoch 0, the run starts from the filters and centers of the first stage.

Command:  for lambda in 1e-4 1e-3 1e-2 1e-1; do
              python -m mcn_jax.main --config=configs/figure5_lambda_cpu.py \
                  --config.data.archive_dir=DIR \
                  --config.init_from=runs/figure5_cpu/theta_1e-4 \
                  --config.loss.center_loss_weight=$lambda \
                  --workdir=runs/figure5_cpu/lambda_$lambda
          done
Expected: 96.54 +- 0.36 % with lambda 1e-3, 97.28 +- 0.32 % without center loss (ours, seeds 0 to
          2); the paper has no such figure. A run takes two minutes on one core of a machine with
          other work.
Partners: the same epochs without the center loss with --config.loss.center_loss_weight=0
Ours:     the values of lambda, 3 epochs at a constant tenth of the rates, and the choices of
          `figure5_cpu.py`.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("figure5_cpu.py"))
    config.num_epochs = 3
    config.binarize.start_epoch = 0
    config.loss.center_loss_weight = 1e-3
    config.optimizer.learning_rate = 0.1
    config.optimizer.m_learning_rate = 0.01
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_epochs = 0
    return config

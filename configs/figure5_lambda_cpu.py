r"""Fig. 5 of the paper, accuracy over lambda, at the scale of a CPU: after `figure5_cpu.py`.

With init_from and start_epoch 0 the filters and the centers of the first stage are taken over.

Command:  for lambda in 1e-4 1e-3 1e-2 1e-1; do
              python -m mcn_jax.main --config=configs/figure5_lambda_cpu.py \
                  --config.data.archive_dir=DIR \
                  --config.init_from=runs/figure5_cpu/theta_1e-4 \
                  --config.loss.center_loss_weight=$lambda \
                  --workdir=runs/figure5_cpu/lambda_$lambda
          done
Expected: 96.54 +- 0.36 % with lambda 1e-3, 97.28 +- 0.32 % without center loss (ours, seeds 0
          to 2), two minutes a run on one core with other work beside it; the paper has no
          such figure
Partners: the same epochs without the center loss with --config.loss.center_loss_weight=0
Ours:     the grid of lambda, 3 epochs at a constant tenth of the rates, and what is ours of
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

r"""The four widths of the authors' book, Sec. 3.4, for two CPU cores: a quarter of them, 8 layers.

Command:  for widths in "(4,4,8,16)" "(4,8,16,32)" "(8,16,32,64)" "(16,16,32,64)"; do
              python -m mcn_jax.main --config=configs/book_cpu.py --config.data.archive_dir=DIR \
                  --config.model.widths="$widths" --workdir="runs/book_cpu/$widths"
          done
Expected: not run; the book has no such rows. On two cores of an AMD EPYC, the steps take about 6
          minutes at the first widths and 26 minutes at the last. Both are computed from the steps
          of 20 layers (results/benchmarks/epyc/step.json).
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
          MCN with the center loss, from the end of this run, with --config.init_from=WORKDIR
              --config.binarize.start_epoch=0 --config.num_epochs=4
              --config.optimizer.learning_rate=0.01 --config.optimizer.m_learning_rate=0.001
              --config.optimizer.schedule=constant --config.optimizer.warmup_epochs=0
              --config.loss.center_loss_weight=1e-3
Ours:     8 layers, 4-4-8-16 maps and the other three widths, the first 20,000 images of CIFAR-10,
          8 epochs of which the first 2 train a U-MCN, the cosine schedule, and the choices of its
          base, `cifar10_20_16_16_32_64.py`.
"""

import pathlib

from mcn_jax.config import load_config_file


def get_config():
    config = load_config_file(pathlib.Path(__file__).with_name("cifar10_20_16_16_32_64.py"))
    config.data.train_split = "train[:20000]"
    config.num_epochs = 8
    config.model.depth = 8
    config.model.widths = (4, 4, 8, 16)
    config.binarize.start_epoch = 2
    config.optimizer.schedule = "cosine"
    return config

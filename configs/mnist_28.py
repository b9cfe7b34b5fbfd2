"""MCN on MNIST at 28x28, without padding to 32x32.

A published numpy re-implementation has this input; its authors could not train it.

Command:  python -m mcn_jax.main --config=configs/mnist_28.py --config.data.archive_dir=DIR
Expected: 99.06 % (ours, seed 0), 4 minutes on one core of an AMD EPYC.
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     5-10-20-40 maps, 5 epochs of which the first trains a U-MCN, the cosine schedule, no
          augmentation.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.num_epochs = 5
    config.model.widths = (5, 10, 20, 40)
    config.model.dense_features = 256
    config.binarize.start_epoch = 1
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1
    return config

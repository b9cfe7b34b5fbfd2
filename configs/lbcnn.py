"""LBCNN on CIFAR-10, Table 2 of the paper, row LBCNN, in the authors' network with our recipe.

The size is that of Juefei-Xu et al. 2017. Their SVHN network has the flags
--config.model.depth=40 --config.model.widths=16, --config.model.lbc_ratio=32
--config.model.lbc_density=0.9, and their MNIST network --config.model.depth=75
--config.model.widths=16, --config.model.lbc_ratio=32 --config.model.lbc_density=0.5
--config.model.dense_features=128. Their learned weights are float32.

Command:  python -m mcn_jax.main --config=configs/lbcnn.py --config.data.archive_dir=DIR
Expected: 92.99 % in the paper. Not run here, and the time is not measured.
Partners: ordinary convolutions of as many channels with --config.model.conv=conv
Ours:     learning rate (the program has 1e-4 and no scale of the responses), batch size (the
          program has 5), weight decay, schedule, epochs, warm-up, initial values; anchors are drawn
          without replacement.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "lbcnn"
    config.model.conv = "lbc"
    config.model.stem_conv = "conv"
    config.model.planes = 1
    config.model.widths = (384,)
    config.model.depth = 50
    config.model.lbc_ratio = 704 / 384
    config.model.lbc_density = 0.001
    config.model.dense_features = 512
    config.optimizer.warmup_epochs = 1
    return config

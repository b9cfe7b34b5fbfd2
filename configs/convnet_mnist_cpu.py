"""BinaryConnect on MNIST, for two CPU cores: `binaryconnect_cifar10.py`, a sixteenth of its width.

Command:  python -m mcn_jax.main --config=configs/convnet_mnist_cpu.py --config.data.archive_dir=DIR
Expected: 99.50 % (ours, mean of seeds 0 to 2), 6 to 8 minutes on one core of an AMD EPYC with
          other work; the paper has no such row.
Partners: ConvNet of the same channels with --config.model.conv=conv
          BNN of the same channels with --config.model.conv=bnn
          XNOR-Net of the same channels with --config.model.conv=xnor --config.model.stem_conv=conv
Ours:     8-16-32 maps, 128 hidden units, float dense layers, 8 epochs, the cosine schedule, shifts
          of up to 2 pixels, cross-entropy in place of the squared hinge loss, SGD in place of Adam,
          batch size, learning rate, momentum, weight decay of the dense layers, warm-up.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist"
    config.data.image_size = 32
    config.data.crop_padding = 2
    config.num_epochs = 8
    config.model.name = "convnet"
    config.model.conv = "binaryconnect"
    config.model.widths = (8, 16, 32)
    config.model.planes = 1
    config.model.head = "dense_batch_norm"
    config.model.dense_features = 128
    config.binarize.start_epoch = 0
    config.optimizer.schedule = "cosine"
    config.optimizer.latent_weight_decay = 0.0
    config.optimizer.warmup_epochs = 1
    return config

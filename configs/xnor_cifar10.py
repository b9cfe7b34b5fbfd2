r"""XNOR-Net on CIFAR-10, Table 2 of the paper: one-bit weights and one-bit activations.

The first and the last layer are float, and the others are blocks of batch norm, sign, convolution
and pooling (Rastegari et al. 2016). The size of the network is that of BinaryConnect. Optimizer,
learning rate, drops, epochs and weight decay are those of the port of XNOR-Net to PyTorch by
jiecaoyu. It reaches 86.28 % with them in Network in Network, whose float version reaches 89.67 %.

Command:  python -m mcn_jax.main --config=configs/xnor_cifar10.py --config.data.archive_dir=DIR
Expected: 89.83 % in the paper. Not run here, and the time is not measured.
Partners: XNOR-Net without K, of the same channels with --config.model.conv=xnor_without_k
          BWN of the same channels with --config.model.conv=bwn
          BNN of the same channels with --config.model.conv=bnn
          ConvNet of the same channels with --config.model.conv=conv
              --config.model.head=dense_batch_norm
Ours:     the size of the network, K (the port has none), the gradient of the filters (straight
          through), initial values, batch size, augmentation, no lower bound of batch norm's scale.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.num_epochs = 320
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "convnet"
    config.model.conv = "xnor"
    config.model.stem_conv = "conv"
    config.model.widths = (128, 256, 512)
    config.model.planes = 1
    config.model.head = "one_bit_hidden"
    config.binarize.start_epoch = 0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-5
    config.optimizer.schedule_epochs = (120, 200, 240, 280)
    config.optimizer.schedule_factor = 0.1
    return config

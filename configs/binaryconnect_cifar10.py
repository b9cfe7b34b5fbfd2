r"""BinaryConnect on CIFAR-10, Table 2 of the paper, in the network and the recipe of its authors.

All weights have one bit, 4,574,592 in convolutions and 9,447,424 in dense layers (Courbariaux et
al. 2015). They are deterministic signs, in training and afterwards.

Command:  python -m mcn_jax.main --config=configs/binaryconnect_cifar10.py \
              --config.data.archive_dir=DIR
Expected: 91.73 % in the paper, which the authors report for random signs in training and float
          weights afterwards. Not run here, and the time is not measured.
Partners: ConvNet of the same channels with --config.model.conv=conv
              --config.model.head=dense_batch_norm
          BNN of the same channels with --config.model.conv=bnn
          XNOR-Net of the same channels with --config.model.conv=xnor --config.model.stem_conv=conv
Ours:     weights of +-H instead of +-1, which changes nothing but the effect of epsilon in batch
          norm and Adam (the authors scale the rate of each layer by 1/H instead); epsilon of batch
          norm 1e-5 (1e-4); images normalised per channel (contrast normalisation, ZCA);
          accuracy after the last epoch (of the epoch that is best on the 5,000 images left out).
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 50
    config.num_epochs = 500
    config.data.name = "cifar10"
    config.data.train_split = "train[:45000]"
    config.model.name = "convnet"
    config.model.conv = "binaryconnect"
    config.model.widths = (128, 256, 512)
    config.model.planes = 1
    config.model.head = "one_bit_dense"
    config.binarize.start_epoch = 0
    config.loss.data = "squared_hinge"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.003
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "exponential"
    config.optimizer.schedule_final = 2e-6 / 0.003
    return config

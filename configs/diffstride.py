r"""ResNet-18 with learned strides on CIFAR-10, with the recipe of DiffStride's authors.

The network has 11,172,178 parameters, of which 8 are strides. It starts with strides of 2 in stages
2, 3 and 4, and needs 4.25 G multiply-adds per image; with strided convolutions it needs 0.56 G.

Command:  python -m mcn_jax.main --config=configs/diffstride.py --config.data.archive_dir=DIR
Expected: not run here, and the time is not measured. The authors' program reports 94.20 %, and
          91.06 % with strided convolutions and 93.49 % with fixed spectral pooling. With strides of
          3, 2 and 3 at the start it reports 94.19, 89.21 and 92.00 %.
Partners: strided convolutions of as many channels with --config.model.pooling=strided
          fixed spectral pooling of as many channels with --config.model.pooling=spectral
          strides of 3, 2 and 3 at the start of as many channels with
              --config.model.strides=(1,3,2,3)
          the mask of the paper of as many channels with --config.model.reading=paper
Ours:     a linear warm-up of 2 epochs in place of a tenth of the rate for 400 steps; drops of the
          rate at the nearest ends of epochs; no weight decay of the bias of the dense layer.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 256  # pairs become 128 mixed images
    config.num_epochs = 400
    config.stride_update_steps = 39  # a fifth of an epoch
    config.data.name = "cifar10"
    config.data.mixup = 0.2
    config.data.mixup_pairs = True
    config.model.name = "resnet"
    config.model.conv = "conv"
    config.model.widths = (64, 64, 128, 256, 512)
    config.model.strides = (1, 2, 2, 2)
    config.model.preactivation = True
    config.model.planes = 1
    config.model.head = "linear"
    config.model.pooling = "diffstride"
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-3
    config.optimizer.schedule_epochs = (92, 164)  # after 17,940 and 31,980 steps
    config.optimizer.schedule_factor = 0.1
    config.optimizer.warmup_epochs = 2
    return config

"""MCN on 100 classes of ImageNet, Table 3 of the paper, row MCN: 34 layers, 32-64-128-256 maps.

The paper does not name its classes; these are listed in mcn_jax/data/imagenet100_wnids.txt.

Command:  python -m mcn_jax.main --config=configs/imagenet100.py --config.data.archive_dir=DIR
Expected: in the paper, 83.82 % top-1 and 94.8 % top-5, WRN 84.96 % and 95.64 %. The paper does not
          say whether this WRN has the same printed width. Of Fig. 9 it says that the errors are
          similar after 30 epochs. Not run here, and the time is not measured.
Partners: U-MCN with --config.binarize.enabled=False
          WRN of the same channels with --config.model.conv=conv
          WRN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          WRN of the same printed width with --config.model.conv=conv --config.model.planes=1
Ours:     the classes, batch size, momentum, weight decay, 3x3 stem, random crops and flips, the
          central 0.875 of an image for testing, warm-up, dropout.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "imagenet100"
    config.data.image_size = 224
    config.data.center_crop = 0.875
    config.data.min_crop_area = 0.08
    config.data.flip = True
    config.num_epochs = 120
    config.model.name = "wide_resnet"
    config.model.depth = 34
    config.model.widths = (32, 64, 128, 256)
    config.model.stem = "imagenet"
    config.model.dense_features = 512
    config.optimizer.schedule_epochs = (30, 60, 90)
    config.optimizer.schedule_factor = 0.1
    config.optimizer.warmup_epochs = 1
    return config

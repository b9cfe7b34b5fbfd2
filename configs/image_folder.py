"""MCN on your own images, one folder per class.

Command:  python -m mcn_jax.main --config=configs/image_folder.py --config.data.root=DIR
Expected: not run; the accuracy depends on your images.
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1

DIR contains train/CLASS/*.jpg and test/CLASS/*.jpg, or only CLASS/*.jpg. In the second case, a
fifth of each class is kept for testing. docs/data.md lists the formats that are read. A gray image
is repeated to three channels.

The values suit some hundred to some thousand images, resized to 64x64 pixels. For more or larger
images, use more maps, --config.data.image_size=224 --config.data.center_crop=0.875
--config.data.min_crop_area=0.08, and --config.data.flip=True where left and right mean the same.

The learning rate is a fifth of the rate in `digits.py`, because steps of 32 images are noisy.
"""

from mcn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.data.crop_padding = 4
    config.batch_size = 32
    config.num_epochs = 40
    config.model.widths = (5, 10, 20, 40)
    config.model.dense_features = 256
    config.binarize.start_epoch = 8
    config.optimizer.learning_rate = 0.02
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 4
    return config

"""An MCN on images of your own: a folder a class.

Command:  python -m mcn_jax.main --config=configs/image_folder.py --config.data.root=DIR
Expected: not run, for it depends on the images
Partners: U-MCN with --config.binarize.enabled=False
          CNN of the same channels with --config.model.conv=conv
          CNN of the same number of weights with --config.model.conv=conv --config.model.planes=2
          CNN of the same printed width with --config.model.conv=conv --config.model.planes=1

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg alone, of which a fifth of each
class is then kept for testing. JPEG, PNG, WebP, BMP, GIF, PPM and TIFF are read; gray images are
repeated to three channels.

For some hundred to some thousand images, brought to 64x64 pixels. For more and larger ones: more
maps, --config.data.image_size=224 --config.data.center_crop=0.875 --config.data.min_crop_area=0.08,
and --config.data.flip=True where left and right mean the same.

A fifth of the rate of the digits, because steps of 32 images are noisy.
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

"""The configuration of a run: every field with its meaning, and the checks made before any work.

A file in `configs/` takes `default_config()`, or the config of another file by `load_config_file`,
and sets what differs. Command-line overrides (`--config.loss.theta=1e-3`) change that ConfigDict;
`from_config_dict` freezes it into the dataclasses below, which the rest of the package reads.
"""

import dataclasses
import difflib
import importlib.util
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from mcn_jax.errors import InputError
from mcn_jax.layers import INPUT_PLANES
from mcn_jax.ops.mcconv import M_GRADIENTS
from mcn_jax.ops.modulate import FILTER_LOSSES
from mcn_jax.ops.packing import MAX_CENTERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data set, from where, and how its images are prepared."""

    name: str = "digits"  # see mcn_jax.data.DATASETS, or a set that TFDS prepared in data_dir
    archive_dir: str = ""  # official archives of a set not yet prepared; "" downloads them
    data_dir: str = "~/tensorflow_datasets"  # where prepared data sets are kept
    train_split: str = "train"  # in TFDS's notation, such as "train+extra" or "train[:90%]"
    test_split: str = "test"  # likewise; "train[90%:]" to choose a recipe without the test split
    root: str = ""  # image_folder: holds a folder a class, or train and test folders of these
    test_fraction: float = 0.2  # image_folder without a test folder: of each class, in (0, 1)
    split_seed: int = 0  # image_folder without a test folder: which images those are
    wnids_file: str = ""  # imagenet100: the classes, a wnid a line; "" takes the package's
    pipeline: str = "auto"  # "resident" on the devices, "streamed" by workers, "auto" by size
    workers: int = 0  # streamed: processes that read and decode; 0 starts one a core
    image_size: int = 0  # height and width in pixels: images of one size are zero-padded to it (0
    #                      leaves them), images of many sizes are cut and resized to it
    center_crop: float = 1.0  # images of many sizes: share of the shorter side that is kept, (0, 1]
    min_crop_area: float = 0.0  # augmentation of such: a random part of at least this share of the
    #                             area instead (ImageNet: 0.08), [0, 1]; 0 does not; streamed only
    crop_padding: int = 0  # augmentation: zero-pad by this many pixels and crop back at random
    flip: bool = False  # augmentation: mirror every second image, at random, left to right
    color_jitter: float = 0.0  # augmentation: brightness, contrast, saturation by up to this share
    cutout: int = 0  # augmentation: side in pixels of a square that is blanked; 0 does not
    mixup: float = 0.0  # augmentation: alpha of the Beta distribution of shares; 0 does not


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and the convolution it is built of."""

    name: str = "simple_cnn"  # see mcn_jax.models.MODELS
    conv: str = "mcconv"  # "mcconv", or "conv": ordinary convolutions of widths * planes channels
    widths: tuple[int, ...] = (20, 40, 80, 160)  # output feature maps: simple_cnn of each layer
    #                                              (Fig. 8), wide_resnet of stem and three stages
    depth: int = 20  # wide_resnet: layers as the paper counts them, 6n + 2 or 6n + 4; 20, 28, 34
    stem: str = "cifar"  # wide_resnet: "cifar", or "imagenet", which divides height and width by 4
    planes: int = 4  # K, channels of a feature map (paper: 4)
    input_planes: str = "copy"  # "copy", "first" or "rgbx", see mcn_jax.layers.expand_input
    dense_features: int = 1024  # width of the hidden dense layer (Fig. 8)
    dropout_rate: float = 0.5  # before the last dense layer, in [0, 1)
    m_noise: float = 0.1  # standard deviation of M around one at the start; no source says


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinarizeConfig:
    """When and how latent filters are replaced by their k-means centers."""

    enabled: bool = True  # False trains a U-MCN to the end; no effect on ordinary convolutions
    num_centers: int = 2  # U, k-means centers a layer, 2 to 256; a weight costs ceil(log2 U) bits
    start_epoch: int = 10  # epochs trained as a U-MCN before k-means (paper: 10)
    refresh_epochs: int = 0  # computes the centers anew every so many epochs; 0 never (paper)
    m_gradient: str = "binary"  # Eq. 16 with C-hat ("binary", the book) or C ("latent", the paper)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and readings of the loss terms."""

    theta: float = 1e-4  # weight of the filter loss, >= 0
    center_loss_weight: float = 0.0  # lambda, weight of the center loss, >= 0
    center_loss_rate: float = 0.5  # alpha of Wen et al. 2016, how fast class means move, (0, 1]
    filter_loss: str = "per_plane"  # "per_plane" or "plane_sum", see mcn_jax.ops.filter_loss
    projection_penalty: bool = True  # the third term of Eq. 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and the schedule of both learning rates."""

    name: str = "sgd"  # see mcn_jax.optim.OPTIMIZERS
    learning_rate: float = 0.1  # eta1, of everything but M (paper: 0.1)
    m_learning_rate: float = 0.01  # eta2, of the M-filters (paper: 0.01)
    momentum: float = 0.9  # Nesterov, sgd only, in [0, 1)
    weight_decay: float = 5e-4  # L2 on latent filters and kernels; never on M, batch norm, biases
    schedule: str = "step"  # see mcn_jax.optim.SCHEDULES; scales both rates
    schedule_epochs: tuple[int, ...] = (60, 120, 160)  # "step": epochs at which the rates drop
    schedule_factor: float = 0.2  # "step": by this factor, in (0, 1]
    warmup_epochs: int = 0  # epochs over which the rates rise linearly from zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = 0  # of every random choice, 0 to 2^32 - 1
    batch_size: int = 128  # images a step, over all devices
    eval_batch_size: int = 1000  # images an evaluation step, over all devices; any value
    num_epochs: int = 200  # passes over the training split
    log_every_steps: int = 100  # steps between step records in metrics.jsonl
    checkpoint_every_steps: int = 0  # steps between checkpoints inside epochs; 0: after epochs only
    steps_per_dispatch: int = 0  # resident data: most steps in one program; 0: CPU 1, others 32
    dtype: str = "float32"  # of the computation: "float32", "bfloat16" or "float64"
    param_dtype: str = "float32"  # of parameters and statistics: "float32" or "float64"
    init_from: str = ""  # work directory of a run, from whose last checkpoint this one starts
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    binarize: BinarizeConfig = BinarizeConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def binarizes(self) -> bool:
        """Whether the filters of the trained model are binary."""
        from mcn_jax.models import CONVOLUTIONS  # here, because it reads the config

        return CONVOLUTIONS[self.model.conv].binarizes and self.binarize.enabled

    def binarized_in(self, epoch: int) -> bool:
        """Whether the convolutions of this epoch (from 0) use binary filters."""
        return self.binarizes and epoch >= self.binarize.start_epoch

    def saves_between(self, before: int, after: int) -> bool:
        """Whether steps `before` + 1 to `after`, of one dispatch, hold one that a checkpoint is due
        after, besides those after epochs."""
        every = self.checkpoint_every_steps
        return every > 0 and after // every > before // every

    def computes_centers_before(self, epoch: int) -> bool:
        """Whether k-means runs before this epoch."""
        if not self.binarized_in(epoch):
            return False
        epochs_binary = epoch - self.binarize.start_epoch
        refresh = self.binarize.refresh_epochs
        return epochs_binary == 0 or (refresh > 0 and epochs_binary % refresh == 0)


# What may differ between the run that wrote a work directory and the one that resumes it.
RESUMABLE_CHANGES = (
    "data.archive_dir", "data.data_dir", "data.root", "data.pipeline", "data.workers",
    "eval_batch_size", "log_every_steps", "checkpoint_every_steps", "steps_per_dispatch",
)  # fmt: skip


def default_config() -> ml_collections.ConfigDict:
    """The paper's recipe as a locked ConfigDict, for the files in `configs/`."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config())).lock()


def load_config_file(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """What `get_config()` of a file in `configs/` returns, such as the base of a derived config.

    Config files are run by their path, so that one cannot import another. It names its neighbour as
    `pathlib.Path(__file__).with_name("cifar10.py")`, which holds in any working directory.

    Args:
        path: of a Python file.

    Raises:
        InputError: if there is no such file, or it defines no `get_config`.
    """
    path = pathlib.Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"config file {path} does not exist; pass one of configs/*.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"config file {path} defines no get_config(), which returns its config")
    return module.get_config()


def from_config_dict(config: Mapping[str, Any]) -> Config:
    """Freezes a ConfigDict, or the "config" of a run's config.json.

    Raises:
        InputError: naming the field, if one is unknown, missing or of another type.
    """
    return _from_mapping(Config, config, "config")


def flatten(config: Config) -> dict[str, Any]:
    """{"loss.theta": 1e-4, ...}, in the order of declaration."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{field}": v for field, v in value.items()})
        else:
            flat[name] = value
    return flat


def check_field(name: str) -> None:
    """Raises InputError with the nearest valid name unless `name` ("loss.theta") is a field."""
    known = flatten(Config())
    if name not in known:
        raise InputError(f"unknown field config.{name}{did_you_mean(name, known)}")


def validate(config: Config, num_devices: int = 1) -> None:
    """Checks every value, and that the devices divide the batch.

    Args:
        config: of the run.
        num_devices: over all processes.

    Raises:
        InputError: naming the first wrong value and what is allowed.
    """
    from mcn_jax import data, models, optim  # here, because these read the config

    model, binarize, loss, optimizer = config.model, config.binarize, config.loss, config.optimizer
    data.check_name(config.data)
    _one_of("data.pipeline", config.data.pipeline, ("auto", *data.SOURCES))
    _one_of("model.name", model.name, models.MODELS)
    _one_of("model.conv", model.conv, models.CONVOLUTIONS)
    _one_of("model.stem", model.stem, models.STEMS)
    _one_of("model.input_planes", model.input_planes, INPUT_PLANES)
    _one_of("binarize.m_gradient", binarize.m_gradient, M_GRADIENTS)
    _one_of("loss.filter_loss", loss.filter_loss, FILTER_LOSSES)
    _one_of("optimizer.name", optimizer.name, optim.OPTIMIZERS)
    _one_of("optimizer.schedule", optimizer.schedule, optim.SCHEDULES)
    _one_of("dtype", config.dtype, ("float32", "bfloat16", "float64"))
    _one_of("param_dtype", config.param_dtype, ("float32", "float64"))

    flat = flatten(config)
    for name in (
        "batch_size", "eval_batch_size", "num_epochs", "log_every_steps",
        "model.planes", "model.dense_features",
    ):  # fmt: skip
        _require(flat[name] >= 1, name, flat[name], "must be at least 1")
    num_centers = binarize.num_centers
    allowed = f"must lie in 2..{MAX_CENTERS}"
    _require(2 <= num_centers <= MAX_CENTERS, "binarize.num_centers", num_centers, allowed)
    for name in (
        "seed", "data.split_seed", "data.workers", "data.image_size", "data.crop_padding",
        "data.cutout", "data.mixup", "model.m_noise", "loss.theta",
        "loss.center_loss_weight", "binarize.start_epoch", "binarize.refresh_epochs",
        "optimizer.learning_rate", "optimizer.m_learning_rate", "optimizer.weight_decay",
        "optimizer.warmup_epochs", "steps_per_dispatch",
        "checkpoint_every_steps",
    ):  # fmt: skip
        _require(flat[name] >= 0, name, flat[name], "must not be negative")
    for name, value in flat.items():
        if isinstance(value, float):
            _require(math.isfinite(value), name, value, "must be finite")
    for name in ("model.dropout_rate", "optimizer.momentum"):
        _require(0 <= flat[name] < 1, name, flat[name], "must lie in [0, 1)")
    for name in ("loss.center_loss_rate", "optimizer.schedule_factor", "data.center_crop"):
        _require(0 < flat[name] <= 1, name, flat[name], "must lie in (0, 1]")
    for name in ("data.min_crop_area", "data.color_jitter"):
        _require(0 <= flat[name] <= 1, name, flat[name], "must lie in [0, 1]")
    fraction = config.data.test_fraction
    _require(0 < fraction < 1, "data.test_fraction", fraction, "must lie in (0, 1)")
    _require(
        not (config.data.min_crop_area and config.data.pipeline == "resident"),
        "data.pipeline",
        config.data.pipeline,
        "cannot take random parts of images; use 'streamed', or config.data.min_crop_area=0",
    )
    _require(
        not (config.data.mixup and loss.center_loss_weight),
        "data.mixup",
        config.data.mixup,
        "leaves images without a class of their own, which the center loss needs; set it or"
        " config.loss.center_loss_weight to 0",
    )
    _require(
        min(model.widths, default=1) >= 1,
        "model.widths",
        model.widths,
        "must each be at least one feature map",
    )
    models.MODELS[model.name].check(model)
    _require(config.seed < 2**32, "seed", config.seed, "must be below 2^32")
    if config.dtype == "float64":
        _require(
            config.param_dtype == "float64",
            "param_dtype",
            config.param_dtype,
            'must be "float64" where config.dtype is',
        )
    facts = data.DATASETS.get(config.data.name)
    if facts is not None:
        for name in ("root", "test_fraction", "split_seed", "wnids_file"):
            value = getattr(config.data, name)
            _require(
                name in facts.fields or value == getattr(DataConfig, name),
                f"data.{name}",
                value,
                f"means nothing to {config.data.name}; leave it out, or name another data set",
            )
        check_stored_shape(config.data, facts.image_shape)
        height, width, channels = facts.image_shape
        size = config.data.image_size
        shape = (size or height or 0, size or width or 0, channels)
        known = "train" in facts.examples and config.data.train_split == "train"
        validate_for_data(config, shape, facts.examples["train"] if known else None)
    epochs = optimizer.schedule_epochs
    _require(
        list(epochs) == sorted(set(epochs)), "optimizer.schedule_epochs", epochs, "must increase"
    )
    if config.binarizes:
        _require(
            binarize.start_epoch < config.num_epochs,
            "binarize.start_epoch",
            binarize.start_epoch,
            f"leaves none of the {config.num_epochs} epochs for binary filters; lower it, or set"
            " config.binarize.enabled=False for a U-MCN",
        )
    pairs = 2 if config.data.mixup else 1
    if config.batch_size % (pairs * num_devices):
        unit = pairs * num_devices
        below = config.batch_size // unit * unit
        nearest = [str(n) for n in (below, below + unit) if n]
        raise InputError(
            f"config.batch_size={config.batch_size} is not divisible by"
            f" {f'{pairs} times ' if config.data.mixup else ''}the {num_devices} devices;"
            f" the nearest sizes that are: {' and '.join(nearest)}"
        )


def check_stored_shape(config: DataConfig, shape: tuple[int | None, ...]) -> None:
    """Checks that what the config says of the images' size fits how they are stored.

    Args:
        config: of the data.
        shape: (Y, X, C) as stored, with None where images differ in size.

    Raises:
        InputError: naming the field.
    """
    differ = None in shape
    _require(
        bool(config.image_size) or not differ,
        "data.image_size",
        config.image_size,
        f"leaves the images of {config.name} as they are, and they differ in size; name the height"
        " and width that they are resized to",
    )
    _require(
        differ or not config.min_crop_area,
        "data.min_crop_area",
        config.min_crop_area,
        f"takes parts of large images; those of {config.name} are all of one size: use"
        " config.data.crop_padding",
    )
    _require(
        differ or config.center_crop == 1,
        "data.center_crop",
        config.center_crop,
        f"cuts images that differ in size; those of {config.name} are all of one size: use 1",
    )
    if not differ and config.image_size:
        height, width = shape[:2]
        _require(
            max(height or 0, width or 0) <= config.image_size,
            "data.image_size",
            config.image_size,
            f"is smaller than the images of {height}x{width}; use 0 to leave them as stored",
        )


def validate_for_data(
    config: Config, image_shape: tuple[int, int, int], num_examples: int | None
) -> None:
    """Checks that batch and network fit the data, and the centers the smallest layer.

    Args:
        config: of the run.
        image_shape: (Y, X, C) as the model sees them.
        num_examples: of the training split; None where it is not known yet.

    Raises:
        InputError: naming the first value that does not fit.
    """
    from mcn_jax import models  # here, because they read the config

    if num_examples is not None:
        _require(
            config.batch_size <= num_examples,
            "batch_size",
            config.batch_size,
            f"exceeds the {num_examples} training images of {config.data.name}; lower it",
        )
    model, architecture = config.model, models.MODELS[config.model.name]
    height, width, channels = image_shape
    for name in ("crop_padding", "cutout"):
        value = getattr(config.data, name)
        _require(
            value <= min(height, width),
            f"data.{name}",
            value,
            f"is more than the {height}x{width} pixels of an image; lower it",
        )
    architecture.check_image_size(model, height, width)
    if not models.CONVOLUTIONS[model.conv].takes_planes:
        return
    if model.input_planes == "rgbx" and (channels != 3 or model.planes != 4):
        raise InputError(
            f"config.model.input_planes='rgbx' needs 3 channels and planes=4, not the {channels} of"
            f" {config.data.name} and {model.planes}"
        )
    in_maps = channels if model.input_planes == "copy" else 1
    weights = min(
        9 * model.planes * inputs * outputs
        for inputs, outputs in architecture.conv_maps(model, in_maps)
    )
    _require(
        config.binarize.num_centers <= weights,
        "binarize.num_centers",
        config.binarize.num_centers,
        f"exceeds the {weights} weights of the smallest layer",
    )


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    _require(
        value in allowed,
        name,
        value,
        f"must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}",
    )


def _require(holds: bool, name: str, value: Any, message: str) -> None:
    if not holds:
        raise InputError(f"config.{name}={value!r} {message}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _from_mapping(cls: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise InputError(f"unknown field {path}.{name}{did_you_mean(name, fields)}")
    missing = [name for name in fields if name not in values]
    if missing:
        raise InputError(f"missing field {path}.{missing[0]}")
    arguments = {}
    for name, field in fields.items():
        default, value = field.default, values[name]
        if dataclasses.is_dataclass(default):
            arguments[name] = _from_mapping(type(default), value, f"{path}.{name}")
        else:
            arguments[name] = _converted(value, default, f"{path}.{name}")
    return cls(**arguments)


def _converted(value: Any, default: Any, name: str) -> Any:
    """The value in the type of the default: int to float, a list of integers to a tuple."""
    if isinstance(default, tuple):
        items = tuple(value) if isinstance(value, list | tuple) else (value,)
        if all(type(item) is int for item in items):
            return items
        raise InputError(f"{name}={value!r} must be a tuple of integers")
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise InputError(f"{name}={value!r} must be of type {type(default).__name__}")
    return value

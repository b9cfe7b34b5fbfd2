"""The configuration of a run: every field with its meaning.

A file in `configs/` takes `default_config()`, or the config of another file by `load_config_file`,
and sets the fields that differ. Command-line overrides (`--config.loss.theta=1e-3`) change that
ConfigDict. `from_config_dict` then freezes it into the dataclasses below, which the rest of the
package reads.

The rules for values stand beside the tables they refer to; `mcn_jax.training.checks` applies all of
them.
"""

import dataclasses
import pathlib
import re
import traceback
import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from mcn_jax.errors import InputError, did_you_mean, first_line

# How ml_collections reports a field that a config does not have, when it is set or read.
_UNKNOWN = re.compile(r"""Key "(\w+)" does not exist|^['"\\]*(\w+)[\\']""")
NO_BACKGROUND = -1  # a `data.background` that ignores transparency
SAME = -1.0  # a `latent_weight_decay` or `m_momentum` that equals `weight_decay` or `momentum`


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, its place on the disk, and how its images are prepared."""

    name: str = "digits"  # a name in mcn_jax.data.facts, or of a set that TFDS prepared in data_dir
    archive_dir: str = ""  # directory of the official archives; "" downloads them
    data_dir: str = "~/tensorflow_datasets"  # directory of prepared data sets
    train_split: str = "train"  # in TFDS's notation, such as "train+extra" or "train[:90%]"
    test_split: str = "test"  # same notation; "train[90%:]" for tuning without the test split
    root: str = ""  # image_folder: directory with a folder per class, or train and test folders
    test_fraction: float = 0.2  # image_folder without a test folder: test share of a class, (0, 1)
    split_seed: int = 0  # image_folder without a test folder: seed of the choice of test images
    wnids_file: str = ""  # imagenet100: file with one wnid per line; "" takes the package's list
    pipeline: str = "auto"  # "resident" on the devices, "streamed" by workers, or "auto" by size
    workers: int = 0  # streamed: processes that read and decode; 0 starts one per core
    image_size: int = 0  # height and width in pixels. Images of equal size are zero-padded to it; 0
    #                      leaves them. Images that differ in size are cropped and resized to it.
    center_crop: float = 1.0  # images that differ in size: share of the shorter side kept, (0, 1]
    background: int = 255  # gray level behind the transparent pixels of encoded images, 0 to 255;
    #                        -1 ignores transparency and shows the colors stored in these pixels
    exif_orientation: bool = True  # turn encoded images upright as their EXIF data say
    min_crop_area: float = 0.0  # augmentation of images that differ in size, streamed only: crop a
    #                             random part of at least this share of the area, in [0, 1]
    #                             (ImageNet: 0.08); 0 is off
    crop_padding: int = 0  # augmentation: zero-pad by this many pixels and crop back at random
    flip: bool = False  # augmentation: mirror left to right with probability 1/2
    color_jitter: float = 0.0  # augmentation: brightness, contrast, saturation by up to this share
    cutout: int = 0  # augmentation: side in pixels of a blanked square; 0 is off
    mixup: float = 0.0  # augmentation: alpha of the Beta distribution of shares; 0 is off
    mixup_pairs: bool = False  # mixup: whether each two images become one, so a step trains on half
    #                            as many as batch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and its kind of convolution."""

    name: str = "simple_cnn"  # a name in mcn_jax.models.MODELS
    conv: str = "mcconv"  # a name in mcn_jax.layers.table.LAYERS; "conv": widths * planes channels
    stem_conv: str = ""  # a name in LAYERS for the first convolution; "" takes conv
    pointwise: str = "conv"  # nin, resnet, densenet: a name in LAYERS for 1x1 convolutions
    widths: tuple[int, ...] = (20, 40, 80, 160)  # output feature maps of each layer (Fig. 8);
    #                                              wide_resnet: of the stem and three stages; nin:
    #                                              of its 8 layers; maxout: of its 3 layers;
    #                                              convnet: of each stage; lbcnn: of all layers;
    #                                              resnet: of the stem and of each stage; densenet:
    #                                              of the stem
    depth: int = 20  # wide_resnet: layers, 6n + 2 or 6n + 4; the paper has 20, 28 and 34; lbcnn:
    #                  number of modules
    blocks: tuple[int, ...] = (2, 2, 2, 2)  # resnet, densenet: blocks of each stage
    block: str = "basic"  # resnet: "basic", or "bottleneck" with 1x1 convolutions around each 3x3
    shortcut: str = "projection"  # resnet: where shapes differ, "projection" or "zeros" (options B
    #                               and A of He et al.)
    preactivation: bool = False  # resnet: batch norm and ReLU before each convolution, not after
    growth: int = 32  # densenet: maps that each block appends
    stem: str = "cifar"  # wide_resnet: "cifar", or "imagenet", which divides height and width by 4
    layout: str = "cifar10"  # maxout: its kernels, pooling and pieces, a name in
    #                          mcn_jax.models.maxout.LAYOUTS
    planes: int = 4  # K, channels per feature map (paper: 4)
    input_planes: str = "copy"  # "copy", "first" or "rgbx", see mcn_jax.layers.planes
    pooling: str = "strided"  # how images get smaller, a name in mcn_jax.layers.pooling.POOLINGS
    strides: tuple[int, ...] = ()  # of the pooling layers; () halves where the network does.
    #                                resnet, wide_resnet: after the stem, and in each stage but the
    #                                first; simple_cnn: after each layer; convnet: in each stage;
    #                                densenet: between stages
    spectral_gain: str = "authors"  # spectral, diffstride: "authors" multiplies images by about the
    #                                 product of the strides; "unit" keeps their mean
    smoothness: float = 4.0  # diffstride: width of the mask's ramp, in pixels (authors: 4)
    reading: str = "code"  # diffstride: the mask of the authors' program, or that of the "paper"
    shares_stride: bool = False  # diffstride: whether a layer has one stride for both axes
    pooled_sizes: tuple[int, ...] = ()  # diffstride: sizes Y1, X1, Y2, X2, ... of the images after
    #                                     each pooling layer, in model files; runs find them
    head: str = "dense"  # a name in mcn_jax.models.heads.HEADS (paper: "dense")
    dense_features: int = 1024  # width of the hidden layers of the head, if it has any (Fig. 8)
    dropout_rate: float = 0.5  # heads "dense" and "maxout": dropout before the last layer; nin:
    #                            after its first two stages; lbcnn: after pooling; in [0, 1)
    lbc_ratio: float = 1.0  # lbc: anchor filters per output channel
    lbc_density: float = 0.5  # lbc: share of the anchors that are not zero, in (0, 1]
    filter_map_gradient: str = "mean"  # filter_map: gradient of an element of the map, the "mean"
    #                                    (Eq. 1 of its paper) or the "sum" over its occurrences
    phc_n: int = 2  # phc: number of rules and of filters, 1 to 64; it divides all channels but the
    #                 image's, and the number of weights
    phc_init: str = "he"  # phc: "he", or "reference" for the variance of the authors' program
    plane_signs: str = ""  # mcconv: pattern of signs and planes with which each output plane reads
    #                        the filters, a name in mcn_jax.ops.plane_signs.PATTERNS; "" is none
    m_init: str = "noise"  # mcconv: what M starts as, a name in mcn_jax.ops.m_init.M_INITS:
    #                        "noise" around one, or planes that differ, "disjoint" (each has its
    #                        own taps) or "orientations" (ramps)
    m_noise: float = 0.1  # standard deviation of the noise in the initial M; no source states it


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinarizeConfig:
    """When and how latent filters are replaced by their k-means centers."""

    enabled: bool = True  # False trains float filters to the end (a U-MCN); no effect on layers
    #                       without quantized weights: conv, filter_map, lbc and phc
    num_centers: int = 2  # U, k-means centers per layer, 2 to 256; ceil(log2 U) bits per weight
    centers: str = "kmeans"  # how centers are found, a name in mcn_jax.ops.binarize.CENTERS;
    #                          "symmetric" takes two, -a and a
    start_epoch: int = 10  # epochs with float filters before quantized ones (paper: 10; the other
    #                        one-bit layers were published with 0)
    refresh_epochs: int = 0  # epochs between recomputations of the centers; 0: never (paper)
    m_gradient: str = "binary"  # Eq. 16 with C-hat ("binary", the book) or C ("latent", the paper)
    k_gradient: bool = False  # xnor alone: whether K, the scale of activations, gets a gradient
    estimator: str = ""  # mcconv, irnet, recu: derivative of the quantizer, "identity", "ede" or
    #                      "reste"; "" takes that of the layer's authors, "ede" for irnet, else
    #                      "identity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and variants of the loss terms."""

    data: str = "softmax"  # loss of the logits: "softmax" or "squared_hinge" (BinaryConnect). Its
    #                        value is called softmax_loss in metrics.jsonl
    teacher: str = ""  # work directory of a trained network whose outputs this one learns, too
    distillation: float = 0.9  # teacher: its share of the data loss, in (0, 1]
    temperature: float = 4.0  # teacher: divides the logits of both, > 0
    stride_cost: float = 0.0  # diffstride: weight of the cost of strides, >= 0
    theta: float = 1e-4  # weight of the filter loss, >= 0
    theta_schedule: str = "constant"  # "linear": the weight grows from 0 to theta over all epochs
    center_loss_weight: float = 0.0  # lambda, weight of the center loss, >= 0
    center_loss_rate: float = 0.5  # alpha of Wen et al. 2016, how fast class means move, (0, 1]
    filter_loss: str = "per_plane"  # "per_plane" or "plane_sum", see mcn_jax.ops.filter_loss
    projection_penalty: bool = True  # the third term of Eq. 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and the schedule of both learning rates."""

    name: str = "sgd"  # a name in mcn_jax.training.optim.OPTIMIZERS: "sgd", "adam", "adadelta"
    learning_rate: float = 0.1  # eta1, for all parameters except M (paper: 0.1)
    m_learning_rate: float = 0.01  # eta2, for the M-filters (paper: 0.01)
    filter_map_rate_scale: float = 1.0  # learning rate of filter maps over learning_rate; the mean
    #                                     gradient is several times shorter than the sum
    stride_limit: float = 0.0  # diffstride: the greatest stride; 0 for no limit
    momentum: float = 0.9  # sgd only, in [0, 1)
    nesterov: bool = True  # sgd only: whether the momentum is Nesterov's
    m_momentum: float = SAME  # sgd only: momentum of M, in [0, 1); -1 takes momentum
    weight_decay: float = 5e-4  # L2 on latent filters and kernels; never on M, batch norm,
    #                             biases, and the rules of phc
    latent_weight_decay: float = SAME  # L2 on latent filters; -1 takes weight_decay
    m_decay: float = 0.0  # mcconv: weight of the term that pulls M to m_decay_target, >= 0
    m_decay_target: str = "one"  # "one", or "none" for an ordinary L2, which pulls M to zero
    center_latents: bool = False  # mcconv: after each update, subtract its mean from each filter
    schedule: str = "step"  # a name in mcn_jax.training.optim.SCHEDULES; scales both rates
    schedule_epochs: tuple[int, ...] = (60, 120, 160)  # "step": epochs at which the rates drop
    schedule_factor: float = 0.2  # "step": factor of each drop, in (0, 1]
    schedule_final: float = 0.01  # "exponential": share of the rates that is left after the last
    #                               epoch, in (0, 1]; each epoch lowers them by the same factor
    warmup_epochs: int = 0  # epochs over which the rates rise linearly from zero
    average_epochs: int = 0  # last epochs over whose updates the weights are averaged at the end of
    #                          the run; 0: none

    @property
    def filter_map_rate(self) -> float:
        """The learning rate of filter maps."""
        return self.learning_rate * self.filter_map_rate_scale

    @property
    def decay_of_latents(self) -> float:
        """The weight decay of latent filters."""
        is_same = self.latent_weight_decay == SAME
        return self.weight_decay if is_same else self.latent_weight_decay

    @property
    def momentum_of_m(self) -> float:
        """The momentum of M."""
        return self.momentum if self.m_momentum == SAME else self.m_momentum


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The complete configuration of a run."""

    seed: int = 0  # seed of every random choice, 0 to 2^32 - 1
    batch_size: int = 128  # images per step, over all devices
    eval_batch_size: int = 1000  # images per evaluation step, over all devices; any value
    num_epochs: int = 200  # passes over the training split
    log_every_steps: int = 100  # steps between step records in metrics.jsonl
    checkpoint_every_steps: int = 0  # steps between checkpoints inside epochs; 0: after epochs only
    stride_update_steps: int = 50  # diffstride: steps between changes of the images' sizes; they
    #                                also change at the start of each epoch
    batch_norm_steps: int = 0  # training batches that give the statistics of batch norm at the end
    #                            of the run; 0: running averages
    steps_per_dispatch: int = 0  # resident data: maximum steps per program; 0: 1 on a CPU, else 32
    dtype: str = "float32"  # of the computation: "float32", "bfloat16" or "float64"
    param_dtype: str = "float32"  # of parameters and statistics: "float32" or "float64"
    init_from: str = ""  # work directory whose last saved epoch this run starts from
    init_exclude: str = ""  # init_from: layers that stay random, names separated by commas; "last"
    #                         names those that depend on the number of classes
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    binarize: BinarizeConfig = BinarizeConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


# Fields that may differ between the run that wrote a work directory and the run that resumes it.
RESUMABLE_CHANGES = (
    "data.archive_dir", "data.data_dir", "data.root", "data.pipeline", "data.workers",
    "eval_batch_size", "log_every_steps", "checkpoint_every_steps", "steps_per_dispatch",
)  # fmt: skip

# The values of runs without these fields, whose defaults are not what such older runs did.
OLDER_RUNS = {"data.background": NO_BACKGROUND, "data.exif_orientation": False}


def default_config() -> ml_collections.ConfigDict:
    """Returns the paper's recipe as a locked ConfigDict, for the files in `configs/`."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config())).lock()


def load_config_file(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Runs a config file and returns what its `get_config()` returns.

    A derived config gets its base this way. Config files are run by their path, so they cannot
    import each other. Name a neighbouring file as `pathlib.Path(__file__).with_name("cifar10.py")`,
    which works in any working directory.

    Args:
        path: path of a Python file.

    Raises:
        InputError: if the file does not exist, cannot be run, or has no `get_config` that returns a
            config. The error names the file and the line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(
            f"config file {path} does not exist or is a directory; pass one of configs/*.py"
        )
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
        get_config = getattr(module, "get_config", None)
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:
        raise InputError(f"config file {path}{_line_of(error, path)}: {_said(error)}") from error
    if not callable(get_config):
        raise InputError(f"config file {path} defines no get_config(), which returns its config")
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise InputError(
            f"config file {path}: get_config() returns {config!r:.100} instead of the config that"
            " default_config() makes"
        )
    return ml_collections.ConfigDict(config)


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    """Returns ", line N" for the line of a config file that raised an error, or ""."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _said(error: BaseException) -> str:
    unknown = _UNKNOWN.search(str(error)) if isinstance(error, AttributeError | KeyError) else None
    if unknown:  # ml_collections lists all fields, on several lines
        name = unknown[1] or unknown[2]
        known = [field.rpartition(".")[2] for field in flatten(Config())]
        known += [field.name for field in dataclasses.fields(Config)]
        if close := did_you_mean(name, known):
            return f"unknown field {name}{close}"
    said = error.msg if isinstance(error, SyntaxError) else first_line(error)
    name = type(error).__name__
    return said if isinstance(error, InputError) or said == name else f"{name}: {said}"


def from_config_dict(config: Mapping[str, Any]) -> Config:
    """Freezes a ConfigDict to a `Config`; a missing field takes its default.

    Raises:
        InputError: if a field is unknown or of the wrong type; the error names it.
    """
    return from_mapping(Config, config, "config")


def from_saved_config(saved: Mapping[str, Any]) -> Config:
    """Freezes the "config" of a run's config.json to a `Config`.

    A run of an older version lacks the newer fields. A missing field takes its value in
    `OLDER_RUNS`, or else its default; both keep the behaviour of that version.

    Raises:
        InputError: if a field is unknown or of the wrong type; the error names it.
    """
    return with_fields(from_config_dict(saved), older_fields(saved))


def older_fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `OLDER_RUNS` that the "config" of a config.json lacks."""
    lacking = {}
    for name, value in OLDER_RUNS.items():
        group, field = name.split(".")
        values = saved.get(group, {})
        if isinstance(values, Mapping) and field not in values:
            lacking[name] = value
    return lacking


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """Returns a config with other values of fields of its groups, as {"data.flip": True, ...}."""
    for name, value in fields.items():
        group, _, field = name.partition(".")
        changed = dataclasses.replace(getattr(config, group), **{field: value})
        config = dataclasses.replace(config, **{group: changed})
    return config


def flatten(config: Config) -> dict[str, Any]:
    """Returns {"loss.theta": 1e-4, ...}, in the order of declaration."""
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


def from_mapping(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """Makes a dataclass of this module from {field: value}; see `from_config_dict`.

    Args:
        cls: the dataclass, whose fields all have defaults.
        values: values of some or all of its fields.
        path: what errors call `values`, such as "config.loss".
    """
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise InputError(f"{path}={values!r:.100} must be a group of fields")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise InputError(f"unknown field {path}.{name}{did_you_mean(name, fields)}")
    arguments = {}
    for name, value in values.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            arguments[name] = from_mapping(type(default), value, f"{path}.{name}")
        else:
            arguments[name] = _converted(value, default, f"{path}.{name}")
    return cls(**arguments)


def _converted(value: Any, default: Any, name: str) -> Any:
    """Converts a value to the type of the default: int to float, list of integers to tuple."""
    if isinstance(default, tuple):
        items = tuple(value) if isinstance(value, list | tuple) else (value,)
        if all(type(item) is int for item in items):
            return items
        raise InputError(f"{name}={value!r:.100} must be a tuple of integers")
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise InputError(f"{name}={value!r:.100} must be of type {type(default).__name__}")
    return value

"""The interface of a layer family, through which the package handles every kind of layer.

A family says how a layer is built, trained, packed into a file, unpacked and described. To add a
family, write a file in `mcn_jax/layers/` and an entry in `mcn_jax.layers.table.LAYERS`. The other
parts of the package only use families and the plan of a network.

Signatures below use these names for the data of one layer. `p` are its parameters and `s` its other
state, both as {leaf name: array}. A leaf name is the path below the layer, such as "kernel" or
"conv/kernel". `stored` are the layer's tensors in a model file.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from mcn_jax.config import BinarizeConfig, Config, LossConfig
from mcn_jax.layers.arithmetic import Arithmetic

if TYPE_CHECKING:
    from mcn_jax.layers.formats import Formats

Leaves = Mapping[str, Any]  # {leaf name: array} of one layer, numpy or jax
Cell = tuple[str, float]  # a table cell: its text, and the number that rows are sorted by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that the optimizer treats alike.

    Attributes:
        name: name in checkpoints and in the output at the start of a run.
        rate: field or property of `OptimizerConfig` with the learning rate.
        decay: property of `OptimizerConfig` with the weight decay; None for no weight decay.
        projection: applied to each parameter after its update, such as `jnp.abs` (Eq. 15).
        limit: field of `OptimizerConfig` with the greatest value that an update may give a
            parameter, where 0 means no limit; None for no limit at all.
        momentum: field or property of `OptimizerConfig` with the momentum.
        pull: pair of fields of `OptimizerConfig`, the weight of a decay towards a target and the
            target's name in `mcn_jax.training.optim.DECAY_TARGETS`; None for no such decay.
        centered: field of `OptimizerConfig` that says whether each update is followed by
            `mcn_jax.ops.binarize.centered`, before the projection; None for no.
    """

    name: str
    rate: str = "learning_rate"
    decay: str | None = "weight_decay"
    projection: Callable[[jax.Array], jax.Array] | None = None
    limit: str | None = None
    momentum: str = "momentum"
    pull: tuple[str, str] | None = None
    centered: str | None = None


WEIGHTS = Group(name="kernels")
OFFSETS = Group(name="biases_and_batch_norm", decay=None)

PROGRESS = "progress"  # the collection with the share of the training that is done

# `Tensor.part` of the filters of convolutions, and of the weights of dense layers.
FILTERS, DENSE_LAYERS = "filters", "dense layers"


class Tensor(NamedTuple):
    """One tensor of a model file.

    Attributes:
        dtype: dtype of the array in the file.
        shape: shape of the array in the file.
        part: the part of the model it counts towards: `FILTERS`, `DENSE_LAYERS`, or another name
            such as "scales".
        bits: size in bits, without the padding of the last byte.
        weights: number of float32 weights of the network that it represents.
    """

    dtype: str
    shape: tuple[int, ...]
    part: str
    bits: int
    weights: int


def float32_tensor(shape: tuple[int, ...], part: str) -> Tensor:
    """Describes the tensor of an array that is stored unchanged in float32."""
    size = int(np.prod(shape, dtype=object))
    return Tensor("float32", tuple(shape), part, 32 * size, size)


class Share(NamedTuple):
    """A ratio pooled over layers: sum of parts over sum of wholes, or its square root."""

    part: float
    whole: float
    root: bool = False

    @property
    def value(self) -> float:
        """The ratio, or its square root."""
        ratio = self.part / self.whole
        return float(ratio**0.5 if self.root else ratio)

    def plus(self, other: "Share") -> "Share":
        """Returns the share over both sets of layers."""
        return Share(self.part + other.part, self.whole + other.whole, self.root)


class View(NamedTuple):
    """What an inspection knows about one layer.

    Attributes:
        layer: the layer's place in the network, and its shapes.
        stored: its tensors in a model file.
        trained: its parameters and other state as trained; None for a model file, which does not
            hold them.
    """

    layer: "PlannedLayer"
    stored: Mapping[str, np.ndarray]
    trained: Mapping[str, np.ndarray] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """One layer of a network, as found by `mcn_jax.models.plan`.

    Attributes:
        name: path in the network, such as "stage_1_block_1/conv_1".
        family: the family that the layer belongs to.
        params: {leaf name: shape} of every parameter.
        state: {leaf name: collection} of all other state.
        in_shape: shape of one image at the input, without the image axis.
        out_shape: shape of one image at the output, without the image axis.
        later_inputs: shapes like `in_shape`, of further calls, as of a pooling layer that a block
            shares with its shortcut.
        state_shapes: {leaf name: shape} of all other state.
        kernel_size: height and width of a convolution's kernel in pixels; 0 for other layers.
        settings: attributes of the module that `Family.settings` names.
    """

    name: str
    family: "Family"
    params: Mapping[str, tuple[int, ...]]
    state: Mapping[str, str]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    later_inputs: tuple[tuple[int, ...], ...] = ()
    state_shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    kernel_size: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> tuple[str, ...]:
        """The name as a path in a tree of variables."""
        return tuple(self.name.split("/"))

    @property
    def out_pixels(self) -> int:
        """Number of output pixels; 1 for a dense layer."""
        return int(np.prod(self.out_shape[:-1], dtype=object))

    def params_in(
        self, params: Mapping[str, Any], leaves: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Returns p: this layer's leaves of a "params" collection, all or the named ones."""
        names = self.params if leaves is None else leaves
        return {leaf: _at(params, (*self.path, *leaf.split("/"))) for leaf in names}

    def state_in(self, collections: Mapping[str, Any]) -> dict[str, Any]:
        """Returns s: this layer's leaves of all other collections."""
        return {
            leaf: _at(collections, (collection, *self.path, *leaf.split("/")))
            for leaf, collection in self.state.items()
        }


class Pictures(NamedTuple):
    """What a page can draw of one layer; empty values are not drawn.

    Attributes:
        weights: weights whose distribution is shown, any shape.
        levels: values that quantized weights take, marked in the distribution.
        planes: [W, W, K], drawn side by side.
        filters: {title: [W, W, C, O]}, drawn side by side for one layer.
    """

    weights: np.ndarray
    levels: tuple[float, ...]
    planes: np.ndarray
    filters: Mapping[str, np.ndarray]


NO_VALUES = np.zeros(0)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _always(config: Config) -> bool:
    del config
    return True


def _no_check(config: Config) -> None:
    del config


def _no_check_of_layer(layer: PlannedLayer, config: Config) -> None:
    del layer, config


def _no_check_of_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    del stored, layer


def stored_arrays(view: View) -> dict[str, np.ndarray]:
    """Returns the parameters as trained if available, otherwise the tensors of the file."""
    return dict(view.stored if view.trained is None else view.trained)


def filters_as_trained(view: View) -> Pictures:
    """Returns the filters of a checkpoint; for a model file, nothing to draw."""
    name = view.layer.family.filters
    if name is None or view.trained is None:
        return Pictures(NO_VALUES, (), NO_VALUES, {})
    filters = view.trained[name]
    return Pictures(filters, (), NO_VALUES, {"as trained": filters})


def no_facts(view: View) -> dict[str, Any]:
    """Returns no facts, for layers with only shape, bits and multiply-adds."""
    del view
    return {}


def no_shapes(layer: PlannedLayer) -> list[tuple[int, ...]]:
    """Returns no shapes, for layers that compute nothing larger than their output."""
    del layer
    return []


def no_multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    """Returns no counts, for layers whose arithmetic is not counted."""
    del layer
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A kind of layer.

    Fields of every family:
        kind: name in tables, such as "convolution".
        module: the linen module; every call of it is a layer of this family.
        groups: leaf name -> optimizer group, for every parameter.
        pack: (p, s, quantized) -> stored, on the host. Only this function quantizes permanently.
        recode: (stored, formats) -> stored, with tensors in the number formats that an export
            chose, see `mcn_jax.layers.formats.Formats`. None if the family has no choice.
        unpack: (stored, layer) -> parameters of the deployed module. It must be traceable, and it
            takes and returns jax arrays, because it also becomes part of exported ONNX graphs.
        unpacks_early: whether ONNX graphs hold the result of `unpack` and not its operations, for
            a small result of many operations.
        spec: (layer, config, quantized, dtypes) -> {leaf name: Tensor}, what a file must hold.
            `dtypes` are the dtypes of this layer's tensors in a file, for families with a choice.
        settings: attributes of the module that the other functions need, see
            `PlannedLayer.settings`.

    Fields of a family that a config can choose as `model.conv`:
        make: (config, quantized) -> function that builds the module from its number of output maps
            and the keywords `name`, `strides`, `kernel_size`, `padding` and `planes`, of which a
            network passes those that it needs. Names and shapes of the parameters and of other
            state must not depend on `quantized`.
        deployed: like `make`, for the inference module, whose parameters `unpack` returns. It has
            the same name, and so the same path, as the trained module.
        multiply_adds: layer -> {"direct": n, ...}, multiply-adds of one image by form of
            computation. "direct" is a convolution with a plain kernel, "dense" a dense layer. The
            most of them bounds the kernel that `unpack` makes of an untrusted file.
        inner_shapes: layer -> shapes of one image inside the layer, without the image axis, for
            layers that compute more than their output. They bound the memory of untrusted files.
        filters: leaf name of the parameter that holds the filters.
        quantizes: whether the family can be trained with quantized weights.
        pointwise: whether the family can be chosen for convolutions of 1x1 pixels, as
            `model.pointwise`.
        follows_relu: whether a network applies a ReLU before the layer.
        takes_signs: whether the layer takes the signs of its input. A network passes
            `signs_input=False` to its first convolution, which takes the image. Both modules have
            this attribute.
        has_dense: whether heads may have dense layers of this family. Such a layer is a 1x1
            convolution of a single pixel, with one plane. `spec` counts its weights as
            `DENSE_LAYERS`, and `multiply_adds` has "dense" in place of "direct".
        pads_image: whether the layer takes channels in multiples of a number only. A network passes
            `pads_input=True` to its first convolution, which takes an image of any number. Only the
            module of `make` has this attribute.
        takes_planes: whether the input consists of maps of K planes, so the image is expanded.
        methods: names of its networks in tables, with and without quantized weights. None stands
            for the name in the config, or for the architecture's title if it does not quantize.
        options: fields of the config, such as "model.phc_n", that a model file must store, besides
            "model.planes".
        options_if_set: names of fields of `ModelConfig` that a model file stores, and the label of
            a run shows, unless they have their default.
        check: raises InputError unless the config's values are valid for `options` and for all
            other fields that only this family reads. It checks every config, also of networks
            without this family, and the headers of untrusted files.
        check_layer: raises InputError unless the config fits a layer of this family.

    Optional field for C source:
        arithmetic: (stored, layer, its deployed module) -> what the module computes, on the host. A
            convolution whose family does not have this field has no C source.

    Optional fields for training:
        advance: (s, progress) -> s, called in every step with a quantized network, before its
            forward pass. `progress` is the share of the training that is done, a scalar in [0, 1).
        advances: config -> whether `advance` changes the layers of a run. Such a run cannot be
            continued to another number of epochs.
        refresh: (p, s, config.binarize) -> s, called before a phase with quantized weights; for
            example k-means.
        penalty: (p, s, gradients, LossConfig, theta, learning rate) -> (loss, gradients): an
            additional loss term, a scalar, and the gradients with theta times that term included.
            `theta` is its weight in this step.
        watched: leaf name -> short name under which each step records minimum and maximum.
        compared: leaf names whose values from the start of the epoch `health` needs.
        health: (p before, p, s, layer) -> {"flip_ratio": ...}: how quantized weights changed in an
            epoch. A `Share` is also pooled over layers.

    Optional fields for layers whose output size depends on trained parameters, see `DiffStride`:
        pooled_size: (strides, (Y, X), layer) -> (Y', X') for an input of this size, on the host.
        effective_strides: (p, layer) -> [2], for the cost of strides.

    Optional fields for inspection and for reading files:
        check_values: (stored, layer), raises InputError unless the stored values are valid. Dtypes
            and shapes have been checked before.
        arrays: view -> {name: array} that can be looked at.
        facts: view -> facts to print besides shape, bits and multiply-adds.
        columns: header -> function from a layer's facts to a table cell.
        compare: (view before, view after) -> how the layer has changed; None for a number that does
            not apply.
        pictures: view -> what a page draws.

    Optional field for reports of a run:
        computed_by: (layers of this family, dtype) -> a line that says which code computes them on
            this machine's CPU, for families with a choice.
    """

    kind: str
    module: type[nn.Module]
    groups: Mapping[str, Group]
    pack: Callable[[Leaves, Leaves, bool], dict[str, np.ndarray]]
    unpack: Callable[[Mapping[str, jax.Array], PlannedLayer], dict[str, jax.Array]]
    spec: Callable[[PlannedLayer, Config, bool, Mapping[str, str]], dict[str, Tensor]]
    recode: Callable[[Mapping[str, np.ndarray], "Formats"], dict[str, np.ndarray]] | None = None
    unpacks_early: bool = False
    settings: tuple[str, ...] = ()

    make: Callable[[Config, bool], Callable[..., nn.Module]] | None = None
    deployed: Callable[[Config, bool], Callable[..., nn.Module]] | None = None
    multiply_adds: Callable[[PlannedLayer], dict[str, int]] = no_multiply_adds
    inner_shapes: Callable[[PlannedLayer], list[tuple[int, ...]]] = no_shapes
    filters: str | None = None
    quantizes: bool = False
    pointwise: bool = True
    follows_relu: bool = True
    takes_signs: bool = False
    has_dense: bool = False
    pads_image: bool = False
    takes_planes: bool = False
    methods: tuple[str, str] | None = None
    options: tuple[str, ...] = ()
    options_if_set: tuple[str, ...] = ()
    check: Callable[[Config], None] = _no_check
    check_layer: Callable[[PlannedLayer, Config], None] = _no_check_of_layer

    arithmetic: Callable[[Mapping[str, np.ndarray], PlannedLayer, Any], Arithmetic] | None = None

    advance: Callable[[Leaves, jax.Array], dict[str, jax.Array]] | None = None
    advances: Callable[[Config], bool] = _always
    refresh: Callable[[Leaves, Leaves, BinarizeConfig], dict[str, jax.Array]] | None = None
    penalty: (
        Callable[
            [Leaves, Leaves, Leaves, LossConfig, float | jax.Array, jax.Array],
            tuple[jax.Array, dict[str, Any]],
        ]
        | None
    ) = None
    watched: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compared: tuple[str, ...] = ()
    health: Callable[[Leaves, Leaves, Leaves, PlannedLayer], dict[str, float | Share]] | None = None

    pooled_size: Callable[[np.ndarray, tuple[int, int], PlannedLayer], tuple[int, int]] | None = (
        None
    )
    effective_strides: Callable[[Leaves, PlannedLayer], jax.Array] | None = None

    check_values: Callable[[Mapping[str, np.ndarray], PlannedLayer], None] = _no_check_of_values
    arrays: Callable[[View], dict[str, np.ndarray]] = stored_arrays
    facts: Callable[[View], dict[str, Any]] = no_facts
    columns: Mapping[str, Callable[[Mapping[str, Any]], Cell]] = dataclasses.field(
        default_factory=dict
    )
    compare: Callable[[View, View], dict[str, float | None]] | None = None
    pictures: Callable[[View], Pictures] = filters_as_trained

    computed_by: Callable[[Sequence[PlannedLayer], str], str] | None = None

    def __post_init__(self) -> None:
        if not self.make:
            return
        missing = [name for name in ("deployed", "filters") if not getattr(self, name)]
        missing += ["multiply_adds"] if self.multiply_adds is no_multiply_adds else []
        if missing:
            raise TypeError(f"the family {self.kind!r} has `make`, so it needs {missing}, too")

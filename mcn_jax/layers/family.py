"""What a layer family is: the one interface through which the package sees every kind of layer.

A family says how a layer is built, trained, packed into a file, unpacked and described. A new one
is a file in `mcn_jax/layers/` and an entry in `mcn_jax.layers.table.LAYERS`. The other rooms work
on families, and on the plan of a network.

Of one layer, `p` are the parameters and `s` the other state, {leaf name: array}; a leaf name is the
path below the layer, such as "kernel" or "conv/kernel". `stored` are its tensors in a model file.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from mcn_jax.config import Config, LossConfig

Leaves = Mapping[str, Any]  # {leaf name: array} of one layer, of numpy or of jax
Cell = tuple[str, float]  # of a table: the text, and what rows are sorted by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that the optimizer treats alike.

    name: in checkpoints and in the first lines of a run.
    rate: field of `OptimizerConfig` with the learning rate.
    decays: whether weight decay applies.
    non_negative: whether the absolute value is taken after each update (Eq. 15).
    """

    name: str
    rate: str = "learning_rate"
    decays: bool = True
    non_negative: bool = False


WEIGHTS = Group(name="kernels")
OFFSETS = Group(name="biases_and_batch_norm", decays=False)


FILTERS = "filters"  # the part that filters of convolutions are counted as


class Tensor(NamedTuple):
    """One tensor of a model file.

    dtype, shape: of the array in the file.
    part: what it is counted as: `FILTERS`, or another name such as "dense layers".
    bits: that it needs, without what fills the last byte.
    weights: how many numbers of the network in float32 it stands for.
    """

    dtype: str
    shape: tuple[int, ...]
    part: str
    bits: int
    weights: int


def float32_tensor(shape: tuple[int, ...], part: str) -> Tensor:
    """The tensor of an array that is stored as it is."""
    size = int(np.prod(shape, dtype=object))
    return Tensor("float32", tuple(shape), part, 32 * size, size)


class Share(NamedTuple):
    """A ratio pooled over layers: the sum of parts over the sum of wholes, or its square root."""

    part: float
    whole: float
    root: bool = False

    @property
    def value(self) -> float:
        """The ratio, or its square root."""
        ratio = self.part / self.whole
        return float(ratio**0.5 if self.root else ratio)

    def plus(self, other: "Share") -> "Share":
        """The share of both sets of layers."""
        return Share(self.part + other.part, self.whole + other.whole, self.root)


class View(NamedTuple):
    """What an inspection sees of one layer.

    layer: where it stands in the network, and its shapes.
    stored: its tensors in a model file.
    trained: its parameters and other state as trained; None of a model file, which does not hold
        them.
    """

    layer: "PlannedLayer"
    stored: Mapping[str, np.ndarray]
    trained: Mapping[str, np.ndarray] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """One layer of a network, as `mcn_jax.models.plan` found it.

    name: its path in the network, such as "stage_1_block_1/conv_1".
    params: shape of every parameter, by leaf name.
    state: collection of every other leaf.
    in_shape, out_shape: of one image, without the axis of images.
    """

    name: str
    family: "Family"
    params: Mapping[str, tuple[int, ...]]
    state: Mapping[str, str]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @property
    def path(self) -> tuple[str, ...]:
        """The name as a path in a tree of variables."""
        return tuple(self.name.split("/"))

    @property
    def out_pixels(self) -> int:
        """Pixels of the output; 1 of a dense layer."""
        return int(np.prod(self.out_shape[:-1], dtype=object))

    def params_in(
        self, params: Mapping[str, Any], leaves: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """p: this layer's leaves of a "params" collection, all or those named."""
        names = self.params if leaves is None else leaves
        return {leaf: _at(params, (*self.path, *leaf.split("/"))) for leaf in names}

    def state_in(self, collections: Mapping[str, Any]) -> dict[str, Any]:
        """s: this layer's leaves of all other collections."""
        return {
            leaf: _at(collections, (collection, *self.path, *leaf.split("/")))
            for leaf, collection in self.state.items()
        }


class Pictures(NamedTuple):
    """What a page can draw of one layer; empty where there is nothing to draw.

    weights: whose distribution is shown, any shape.
    levels: that quantized weights take, marked in the distribution.
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


def _no_check(config: Config) -> None:
    del config


def _no_check_of_layer(layer: PlannedLayer, config: Config) -> None:
    del layer, config


def _no_check_of_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    del stored, layer


def stored_arrays(view: View) -> dict[str, np.ndarray]:
    """The parameters as trained, or else the tensors of the file."""
    return dict(view.stored if view.trained is None else view.trained)


def filters_as_trained(view: View) -> Pictures:
    """The filters of a checkpoint; nothing of a model file."""
    name = view.layer.family.filters
    if name is None or view.trained is None:
        return Pictures(NO_VALUES, (), NO_VALUES, {})
    filters = view.trained[name]
    return Pictures(filters, (), NO_VALUES, {"as trained": filters})


def no_facts(view: View) -> dict[str, Any]:
    """Nothing beyond shape, bits and multiply-adds."""
    del view
    return {}


def no_multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    """Counts nothing; for layers whose arithmetic is not counted."""
    del layer
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A kind of layer.

    What every family says:
        kind: its name in tables, such as "convolution".
        module: the linen module whose calls are layers of this family.
        groups: leaf name -> optimizer group of every parameter.
        pack: (p, s, quantized) -> stored, on the host; the only place that quantizes for good.
        recode: (stored, format) -> stored, with the kernel in another format of export's --dense;
            None for layers that have only one.
        unpack: (stored, layer) -> parameters of the deployed module. Traceable: it also becomes the
            part of an ONNX graph that unpacks, so that it takes and returns jax arrays.
        spec: (layer, config, quantized, dtypes) -> {leaf name: Tensor}, what a file must hold.
            `dtypes` are those of this layer's tensors in a file, where a family leaves a choice.

    What a family says that a config can choose as `model.conv`:
        make: (config, quantized) -> builds the module from its number of output maps. The names and
            shapes of its parameters must not depend on `quantized`.
        deployed: likewise, the module for inference, whose parameters `unpack` makes. It has the
            name, and so the path, that the trained module has.
        multiply_adds: layer -> {"direct": n, ...} of one image, by the form of computation;
            "direct" is a convolution with a plain kernel.
        filters: leaf name of the parameter that holds the filters.
        quantizes: whether it can be trained with quantized weights.
        takes_planes: whether its input is made of maps of K planes, so that the image is expanded.
        methods: what tables call networks of it, with and without quantized weights. None takes the
            name in the config, or the architecture's title where it does not quantize.
        options: fields of the config, such as "model.planes", that a model file must know.
        check: raises InputError unless the config's values of these fields, and of all others that
            only this family reads, are allowed. Headers of untrusted files are checked by it, too.
        check_layer: raises InputError unless the config fits a layer's size.

    What it may add to training:
        refresh: (p, s) -> s before a phase with quantized weights, such as k-means.
        penalty: (p, s, gradients, LossConfig, learning rate) -> (loss, gradients): an own term of
            the loss, a scalar, and the gradients with that term.
        watched: leaf name -> short name, under which each step records minimum and maximum.
        compared: leaf names that `health` needs from the beginning of the epoch.
        health: (p before, p, s) -> {"flip_ratio": ...}: how quantized weights fare in an epoch. A
            `Share` is also summed over layers.

    What it may add to inspection and to the reading of files:
        check_values: (stored, layer) raises InputError unless stored values are allowed; dtypes
            and shapes are checked before.
        arrays: view -> {name: array} that can be looked at.
        facts: view -> what to print of it besides shape, bits and multiply-adds.
        columns: header -> cell, the columns of the tables of these facts.
        compare: (view before, view after) -> how it has changed; None where that says nothing.
        pictures: view -> what a page draws of it.
    """

    kind: str
    module: type[nn.Module]
    groups: Mapping[str, Group]
    pack: Callable[[Leaves, Leaves, bool], dict[str, np.ndarray]]
    unpack: Callable[[Mapping[str, jax.Array], PlannedLayer], dict[str, jax.Array]]
    spec: Callable[[PlannedLayer, Config, bool, Mapping[str, str]], dict[str, Tensor]]
    recode: Callable[[Mapping[str, np.ndarray], str], dict[str, np.ndarray]] | None = None

    make: Callable[[Config, bool], Callable[..., nn.Module]] | None = None
    deployed: Callable[[Config, bool], Callable[..., nn.Module]] | None = None
    multiply_adds: Callable[[PlannedLayer], dict[str, int]] = no_multiply_adds
    filters: str | None = None
    quantizes: bool = False
    takes_planes: bool = False
    methods: tuple[str, str] | None = None
    options: tuple[str, ...] = ("model.planes",)
    check: Callable[[Config], None] = _no_check
    check_layer: Callable[[PlannedLayer, Config], None] = _no_check_of_layer

    refresh: Callable[[Leaves, Leaves], dict[str, jax.Array]] | None = None
    penalty: (
        Callable[[Leaves, Leaves, Leaves, LossConfig, jax.Array], tuple[jax.Array, dict[str, Any]]]
        | None
    ) = None
    watched: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compared: tuple[str, ...] = ()
    health: Callable[[Leaves, Leaves, Leaves], dict[str, float | Share]] | None = None

    check_values: Callable[[Mapping[str, np.ndarray], PlannedLayer], None] = _no_check_of_values
    arrays: Callable[[View], dict[str, np.ndarray]] = stored_arrays
    facts: Callable[[View], dict[str, Any]] = no_facts
    columns: Mapping[str, Callable[[Mapping[str, Any]], Cell]] = dataclasses.field(
        default_factory=dict
    )
    compare: Callable[[View, View], dict[str, float | None]] | None = None
    pictures: Callable[[View], Pictures] = filters_as_trained

"""The plan of a network: its layers in call order, with their families and shapes.

A plan is found by running the network abstractly, so it takes no memory for any size. Costs, bits,
model files, inspection, health and the optimizer's groups all read the plan instead of guessing
from names.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mcn_jax import models
from mcn_jax.config import Config, DataConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.family import FILTERS, Family, PlannedLayer, Tensor
from mcn_jax.layers.table import family_of
from mcn_jax.ops import native
from mcn_jax.ops.convolution import native_passes

Plan = tuple[PlannedLayer, ...]
Path = tuple[str, ...]
# Fields of every module that say where it is in its network.
OF_PLACE = ("name", "parent")


class _Call(NamedTuple):
    """The first call of a layer, while a plan is made.

    Attributes:
        first: the path of the first layer that is equal to this one, maybe its own.
        output: shape and dtype of the output, with an axis for images; None until it is known.
        later_inputs: shapes of one image at the input in further calls.
    """

    first: Path
    family: Family
    kernel_size: int
    settings: dict[str, Any]
    in_shape: tuple[int, ...]
    output: Any = None
    later_inputs: tuple[tuple[int, ...], ...] = ()


def plan_of(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> Plan:
    """Returns the plan of the network that a config describes.

    Args:
        config: validated config.
        num_classes: number of logits.
        image_shape: (Y, X, C) of an image at the input of the network.

    Raises:
        InputError: if a layer has too many weights to be counted.
        ValueError: if a parameter belongs to no layer family, or the images do not fit.
    """
    # The layers do not depend on these fields. Configs that differ only here share a cache entry.
    alike = dataclasses.replace(
        config, seed=0, data=DataConfig(), dtype="float32", param_dtype="float32"
    )
    try:
        return _plan_of(alike, num_classes, tuple(image_shape))
    except OverflowError as error:
        model = config.model
        raise InputError(
            f"config.model.widths={model.widths} with config.model.planes={model.planes} and"
            f" config.model.dense_features={model.dense_features} are too large for a network;"
            " lower them"
        ) from error


@functools.lru_cache(maxsize=32)
def _plan_of(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> Plan:
    return plan_of_module(models.make_model(config, num_classes, quantized=False), image_shape)


def plan_of_module(module: nn.Module, image_shape: tuple[int, int, int]) -> Plan:
    """Returns the plan of any linen network; a layer that is called twice is listed once.

    Layers of one class with equal fields, and with inputs of equal shapes, have equal shapes. So
    these must not depend on the name of a layer, nor may a layer be under `nn.scan` or `nn.vmap`.

    Args:
        module: the network.
        image_shape: (Y, X, C) of an image at its input.

    Raises:
        ValueError: if a parameter belongs to no layer family.
    """
    calls: dict[Path, _Call] = {}
    # The first of equal layers is run. The others have its shapes.
    firsts: dict[Hashable, Path] = {}

    def note(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        path, family = context.module.path, family_of(context.module)
        if family is None or context.method_name != "__call__":
            return call(*arguments, **keywords)
        if path in calls and calls[path].output is not None:
            again = _first_of(arguments, keywords).shape[1:]
            later = (*calls[path].later_inputs, again)
            calls[path] = calls[path]._replace(later_inputs=later)
        if any(path[: len(other)] == other for other in calls):
            return call(*arguments, **keywords)
        key = _key_of(context.module, arguments, keywords)
        if key in firsts:
            first = firsts[key]
            calls[path] = calls[first]._replace(first=first, later_inputs=())
        else:
            shape = _first_of(arguments, keywords).shape[1:]
            kernel_size = getattr(context.module, "kernel_size", 0)
            settings = {name: getattr(context.module, name) for name in family.settings}
            found = _Call(path, family, kernel_size, settings, shape)
            calls[path] = found  # so that layers inside are known as such
            calls[path] = found._replace(output=jax.typeof(call(*arguments, **keywords)))
            if key is not None:
                firsts[key] = path
        return jnp.zeros(calls[path].output.shape, calls[path].output.dtype)

    def initialise() -> Any:
        return module.init(jax.random.key(0), jnp.zeros((1, *image_shape), jnp.float32))

    # The key is made inside, too: configs are checked before JAX may look for devices.
    with nn.intercept_methods(note):
        variables = jax.eval_shape(initialise)
    plan = tuple(_planned(path, call, variables) for path, call in calls.items())
    _check_all_owned(plan, variables["params"])
    return plan


def _first_of(arguments: Any, keywords: Any) -> Any:
    """Returns the input of a layer, which is its first argument."""
    return arguments[0] if arguments else next(iter(keywords.values()))


def _key_of(module: nn.Module, arguments: Any, keywords: Any) -> Hashable:
    """Returns what the shapes of a layer depend on, or None if that cannot be compared."""
    inputs = {**dict(enumerate(arguments)), **keywords}
    key = (
        type(module),
        *(getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in OF_PLACE),
        *((name, jax.typeof(x) if isinstance(x, jax.Array) else x) for name, x in inputs.items()),
    )
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _planned(path: Path, call: _Call, variables: Mapping[str, Any]) -> PlannedLayer:
    shapes = {name: _leaves(tree, call.first) for name, tree in variables.items()}
    others = [name for name in shapes if name != "params"]
    return PlannedLayer(
        name="/".join(path),
        family=call.family,
        params=shapes["params"],
        state={leaf: collection for collection in others for leaf in shapes[collection]},
        in_shape=call.in_shape,
        out_shape=call.output.shape[1:],
        later_inputs=call.later_inputs,
        state_shapes={
            leaf: shape for collection in others for leaf, shape in shapes[collection].items()
        },
        kernel_size=call.kernel_size,
        settings=call.settings,
    )


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Returns {leaf name: shape} of all leaves below a path."""
    return {
        "/".join(place[len(path) :]): tuple(leaf.shape)
        for place, leaf in traverse_util.flatten_dict(tree).items()
        if place[: len(path)] == path
    }


def _check_all_owned(plan: Plan, params: Mapping[str, Any]) -> None:
    owned = {f"{layer.name}/{leaf}" for layer in plan for leaf in layer.params}
    for name in traverse_util.flatten_dict(params, sep="/"):
        if name not in owned:
            raise ValueError(
                f"parameter {name} belongs to no layer family; use layers of"
                " mcn_jax.layers.table, or add a family"
            )
    for layer in plan:
        for leaf in layer.params:
            if leaf not in layer.family.groups:
                raise ValueError(
                    f"parameter {layer.name}/{leaf} belongs to no group of the optimizer; the"
                    f" family {layer.family.kind!r} has {', '.join(layer.family.groups)}"
                )


def class_layers(config: Config, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Returns the names of the layers whose parameters depend on the number of classes."""
    two, three = (plan_of(config, num_classes, image_shape) for num_classes in (2, 3))
    return tuple(a.name for a, b in zip(two, three, strict=True) if a.params != b.params)


def pooled_sizes(plan: Plan, params: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the output sizes of all layers with learned strides: (Y1, X1, Y2, X2, ...).

    The sizes follow from the strides: what lies between two such layers keeps the size of images.

    Args:
        plan: plan of the network, for any sizes.
        params: the "params" collection of the network, on the host.
    """
    sizes: list[int] = []
    size: tuple[int, int] | None = None
    for layer in plan:
        if layer.family.pooled_size is None:
            continue
        size = size or (layer.in_shape[0], layer.in_shape[1])
        strides = np.asarray(layer.params_in(params)["strides"], np.float32)
        size = layer.family.pooled_size(strides, size, layer)
        sizes += size
    return tuple(sizes)


def sized(config: Config, plan: Plan, params: Mapping[str, Any]) -> Config:
    """Returns the config with `model.pooled_sizes` for these parameters; see `pooled_sizes`."""
    sizes = pooled_sizes(plan, params)
    if sizes == config.model.pooled_sizes:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, pooled_sizes=sizes))


def computed_by(plan: Plan, dtype: str) -> list[str]:
    """Returns lines that say which code computes convolutions on this machine's CPU.

    There is one for each family with a choice of its own, and one for the other convolutions.
    """
    families = dict.fromkeys(layer.family for layer in plan)
    lines = [
        family.computed_by([layer for layer in plan if layer.family is family], dtype)
        for family in families
        if family.computed_by
    ]
    others = [layer for layer in plan if layer.kernel_size and not layer.family.computed_by]
    return [*lines, _ordinary_computed_by(others, dtype)] if others else lines


def _ordinary_computed_by(layers: Sequence[PlannedLayer], dtype: str) -> str:
    shapes = (
        (layer.kernel_size, layer.kernel_size, layer.in_shape[-1], layer.out_shape[-1])
        for layer in layers
    )
    suited = sum(native_passes(dtype, shape).gradients for shape in shapes)
    reason = native.why_unavailable()
    if not suited:
        code = "XLA; the native kernel was not faster at such filters"
        if dtype != "float32":
            code = f"XLA; the native kernel does not compute {dtype}"
    elif reason is None:
        code = f"native kernel ({native.instruction_set()}) in {suited} of {len(layers)} layers"
    else:
        code = f"XLA; {reason}"
    return f"ordinary convolutions on this CPU: {code}"


def layer_collections(plan: Plan) -> tuple[str, ...]:
    """Returns the collections of layer state, other than "params" and "batch_stats"."""
    found = {collection for layer in plan for collection in layer.state.values()}
    return tuple(sorted(found - {"batch_stats"}))


def specs(
    plan: Plan, config: Config, quantized: bool, dtypes: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Describes every tensor of a network's model file: {"conv_1/bits": Tensor, ...}.

    Args:
        plan: plan of the network.
        config: config of the network, which the tensors of some families depend on.
        quantized: whether quantized weights are stored, if a family has any.
        dtypes: {tensor name: dtype} of the file, for families with a choice.
    """
    found: dict[str, Tensor] = {}
    for layer in plan:
        prefix = f"{layer.name}/"
        own = {
            name.removeprefix(prefix): dtype
            for name, dtype in (dtypes or {}).items()
            if name.startswith(prefix)
        }
        tensors = layer.family.spec(layer, config, quantized, own)
        for leaf, tensor in tensors.items():
            _check_bits(layer, leaf, tensor)
        found |= {f"{prefix}{leaf}": tensor for leaf, tensor in tensors.items()}
    return found


def _check_bits(layer: PlannedLayer, leaf: str, tensor: Tensor) -> None:
    """Raises ValueError if bits are unused beside those of the last byte of each row."""
    size = math.prod(tensor.shape)
    bits, rows = 8 * np.dtype(tensor.dtype).itemsize * size, size // max(1, tensor.shape[-1])
    if not 0 <= bits - tensor.bits < 8 * max(1, rows):
        raise ValueError(
            f"the family {layer.family.kind!r} counts {tensor.bits} bits for the tensor {leaf} of"
            f" {layer.name}, which has {bits}"
        )


def filter_bits(plan: Plan, config: Config, quantized: bool) -> tuple[int, int]:
    """Returns the bits of all convolution filters, and of the same filters in float32.

    M-filters, centers, batch norm and dense layers are not counted.
    """
    filters = [t for t in specs(plan, config, quantized).values() if t.part == FILTERS]
    return sum(t.bits for t in filters), sum(32 * t.weights for t in filters)

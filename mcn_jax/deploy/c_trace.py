"""Translates the function of a model file to a C program: traces it, with its layers left whole.

In the trace, each layer that has weights is one operation. What lies between the layers comes from
the traced operations themselves: the normalization, batch norms, ReLUs, poolings and shortcuts.
"""

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.extend import core

from mcn_jax.data.augment import normalise
from mcn_jax.deploy.c_expressions import Constant, Expression, Stored
from mcn_jax.deploy.c_fusion import fuse_additions
from mcn_jax.deploy.c_layers import add_layer
from mcn_jax.deploy.c_primitives import RULES, shape_of
from mcn_jax.deploy.c_program import Program
from mcn_jax.deploy.joined import own_tensors
from mcn_jax.deploy.model_file import Model
from mcn_jax.deploy.onnx import padded
from mcn_jax.deploy.onnx_translator import CALLS
from mcn_jax.errors import InputError
from mcn_jax.layers.arithmetic import Arithmetic
from mcn_jax.layers.table import LAYERS

FOLDED_SIZE = 2**20  # most elements of a constant that is computed during translation

_LAYER = core.Primitive("mcn_layer")


@_LAYER.def_abstract_eval
def _output_of_layer(x: Any, *, name: str, shape: tuple[int, ...]) -> Any:
    del name
    return jax.core.ShapedArray(shape, x.dtype)


def translate(model: Model) -> tuple[Program, Stored]:
    """Returns the program of a network, and the array of its logits.

    Raises:
        InputError: naming the layer or the operation that has no C source.
    """
    for layer in model.plan:
        if layer.family.arithmetic is None and layer.family.filters is not None:
            supported = [name for name, family in LAYERS.items() if family.arithmetic]
            raise InputError(
                f"the layer {layer.name} ({layer.family.kind}) has no C source; these have:"
                f" {', '.join(supported)}"
            )
    trace, layers = _trace(model)
    program = Program()
    image = Stored(shape=tuple(trace.in_avals[0].shape), buffer=None, text="image[{}]")
    (logits,) = _Translation(program, layers).run(trace.jaxpr, trace.consts, [image])
    result = program.stored(logits)
    program.steps = fuse_additions(program.steps)
    return program, result


def _trace(model: Model) -> tuple[core.ClosedJaxpr, dict[str, Arithmetic]]:
    """Returns the network as traced for one image, and what its layers compute, by name."""
    plan = {layer.path: layer for layer in model.plan if layer.family.arithmetic}
    layers: dict[str, Arithmetic] = {}

    def whole(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        layer = plan.get(context.module.path)
        if layer is None or context.method_name != "__call__":
            return call(*arguments, **keywords)
        assert layer.family.arithmetic is not None
        stored = own_tensors(model.tensors, layer.name)
        layers[layer.name] = layer.family.arithmetic(stored, layer, context.module)
        return _LAYER.bind(arguments[0], name=layer.name, shape=(1, *layer.out_shape))

    params: dict[str, Any] = {}
    for layer in model.plan:
        if layer.path not in plan:
            stored = own_tensors(model.tensors, layer.name)
            own = layer.family.unpack({n: jnp.asarray(t) for n, t in stored.items()}, layer)
            params |= {f"{layer.name}/{leaf}": value for leaf, value in own.items()}
    variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
    spec = model.images

    def logits(images: jax.Array) -> jax.Array:
        x = normalise(padded(images, spec.image_size), spec.mean, spec.std, jnp.dtype("float32"))
        outputs: Any = model.module.apply(variables, x)
        return outputs.logits

    shape = (1, spec.height, spec.width, spec.channels)
    with nn.intercept_methods(whole):
        trace = jax.make_jaxpr(logits)(jax.ShapeDtypeStruct(shape, np.uint8))
    return trace, layers


class _Translation:
    """Translates a traced function equation by equation."""

    def __init__(self, program: Program, layers: Mapping[str, Arithmetic]):
        self._program = program
        self._layers = layers
        self._place = "the image"  # the last layer, for errors

    def run(self, jaxpr: Any, constants: Any, arguments: list[Expression]) -> list[Expression]:
        """Returns the results of a function."""
        uses = collections.Counter(
            atom
            for atoms in (*(e.invars for e in jaxpr.eqns), jaxpr.outvars)
            for atom in atoms
            if not isinstance(atom, core.Literal)
        )
        known: dict[Any, Expression] = {}

        def enter(variable: Any, value: Expression) -> None:
            # What is needed twice is computed once.
            keep = uses[variable] > 1 and not value.is_stored
            known[variable] = self._program.stored(value) if keep else value

        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            enter(variable, _constant(value))
        for variable, argument in zip(jaxpr.invars, arguments, strict=True):
            enter(variable, argument)

        def value_of(atom: Any) -> Expression:
            if isinstance(atom, core.Literal):
                literal: Any = atom
                return _constant(np.asarray(literal.val, literal.aval.dtype))
            return known[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [value_of(atom) for atom in equation.invars])
            for variable, result in zip(equation.outvars, results, strict=True):
                enter(variable, result)
        return [value_of(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Expression]) -> list[Expression]:
        name, params = equation.primitive.name, equation.params
        if name == _LAYER.name:
            self._place = params["name"]
            arithmetic = self._layers[self._place]
            return [add_layer(self._program, self._place, arithmetic, inputs[0], params["shape"])]
        if name in CALLS:
            function = params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))
            inner, constants = getattr(function, "jaxpr", function), getattr(function, "consts", ())
            return self.run(inner, constants, inputs)
        folded = _folded(equation, inputs)
        if folded is not None:
            return [folded]
        if name not in RULES:
            raise InputError(
                f"the operation {name!r} after {self._place} has no C source; these have:"
                f" {', '.join(sorted(RULES))}"
            )
        try:
            return [RULES[name](self._program, inputs, equation)]
        except InputError as error:
            message = f"the operation {name!r} after {self._place} has no C source: it {error}"
            raise InputError(message) from error


def _constant(value: Any) -> Constant:
    array = np.asarray(value)
    return Constant(shape=array.shape, array=array)


def _folded(equation: Any, inputs: list[Expression]) -> Expression | None:
    """Returns the result as a constant if all inputs are known, else None."""
    arrays = [_known(value) for value in inputs]
    found = [array for array in arrays if array is not None]
    if len(found) < len(arrays) or equation.primitive.multiple_results:
        return None
    if int(np.prod(shape_of(equation))) > FOLDED_SIZE:
        return None
    with jax.ensure_compile_time_eval():
        result = equation.primitive.bind(*map(jnp.asarray, found), **equation.params)
    return _constant(result)


def _known(value: Expression) -> np.ndarray | None:
    return value.array if isinstance(value, Constant) else None

"""Translates a JAX function to an ONNX graph: traces it and writes each primitive with a rule.

The graph comes from the network itself. A new layer needs no ONNX code if every primitive that it
uses has a rule. The graph has only standard operators, from opset 18. This is the first opset with
bitwise operators, which unpacking bits needs. It goes with ONNX IR version 8.

The function is traced for two numbers of images. Whatever differs between the traces depends on
that number. So a length that happens to equal the number of images is not mistaken for it, and the
function may use shapes as if the batch size were fixed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

from mcn_jax.deploy import onnx_products, onnx_reductions, onnx_shapes
from mcn_jax.deploy.onnx_primitives import RULES, Equation
from mcn_jax.deploy.onnx_values import Graph, Shape, Value
from mcn_jax.errors import InputError

OPSET = 18
IR_VERSION = 8
# Primes that are far apart. So a length that is rounded up to a multiple of some number is not
# mistaken for a multiple of the number of images.
BATCHES = (61, 97)
FOLDED_SIZE = 1024  # most elements of a constant that is computed during translation
# Primitives that call a function. The body of the function is translated in their place.
CALLS = {
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip
RULE_MODULES = (onnx_shapes, onnx_reductions, onnx_products)  # importing them fills `RULES`

Function = Callable[[dict[str, jax.Array], jax.Array], jax.Array]
Pair = tuple[Any, Any]  # the same item from both traces


def translate(
    function: Function,
    tensors: Mapping[str, np.ndarray],
    image_shape: tuple[int, int, int],
    *,
    input_name: str = "images",
    output_name: str = "logits",
) -> onnx.ModelProto:
    """Translates a function of tensors and images into a graph of images alone.

    Args:
        function: maps (tensors, images [N, Y, X, C] uint8) to an array. JAX must be able to trace
            it. Where it chooses by platform, as `jax.lax.platform_dependent` does, the default is
            taken.
        tensors: arrays by name. Those that the result depends on become initializers of the same
            name, dtype and content.
        image_shape: Y, X, C.
        input_name: name of the images in the graph.
        output_name: name of the result in the graph.

    Returns:
        The checked model. The number of images is a free dimension "N".

    Raises:
        InputError: naming the primitive that has no rule, or the length that depends on the number
            of images without being a multiple of it.
    """
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    for name in (input_name, output_name):
        if name in tensors:
            raise InputError(f"tensor {name!r} has the name of the input or output; rename it")
    graph = Graph(input_name, {output_name, *tensors})
    shape = (-1, *image_shape)
    arguments = [
        Value(shape=tensors[name].shape, dtype=tensors[name].dtype, name=name)
        for name in sorted(tensors)
    ]
    arguments.append(Value(shape=shape, dtype=np.dtype(np.uint8), name=input_name))
    traces = tuple(_trace(function, tensors, (batch, *image_shape)) for batch in BATCHES)
    results = _Translation(graph).run(
        (traces[0].jaxpr, traces[1].jaxpr), (traces[0].consts, traces[1].consts), arguments
    )
    if len(results) != 1:
        raise InputError(f"the function must return one array, not {len(results)}")
    graph.initializers |= {
        name: numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in tensors.items()
    }
    return _model(graph, results[0], shape, input_name, output_name)


def _trace(
    function: Function, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> core.ClosedJaxpr:
    structs = {name: jax.ShapeDtypeStruct(t.shape, t.dtype) for name, t in tensors.items()}
    return jax.make_jaxpr(function)(structs, jax.ShapeDtypeStruct(shape, np.uint8))


class _Translation:
    """Translates both traces of a function equation by equation."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def run(self, jaxprs: Pair, constants: Pair, arguments: list[Value]) -> list[Value]:
        """Returns the results of a function.

        Args:
            jaxprs: the function in both traces.
            constants: the values of `constvars` in both traces.
            arguments: the values of `invars`.
        """
        first, second = jaxprs
        known: dict[core.Var, Value] = dict(zip(first.invars, arguments, strict=True))
        for variable, *values in zip(first.constvars, *constants, strict=True):
            known[variable] = _constant(*values)

        def value_of(atoms: Pair, where: str) -> Value:
            if isinstance(atoms[0], core.Literal):
                literal: Any = atoms[0]
                return _constant(literal.val, atoms[1].val, literal.aval.dtype, where)
            return known[atoms[0]]

        if len(first.eqns) != len(second.eqns):
            raise InputError("what the function computes depends on the number of images")
        for equations in zip(first.eqns, second.eqns, strict=True):
            names = [equation.primitive.name for equation in equations]
            if names[0] != names[1]:
                raise InputError(
                    f"the function computes {' or '.join(names)}, depending on the number of images"
                )
            pairs = zip(*(equation.invars for equation in equations), strict=True)
            results = self._equation(equations, [value_of(pair, names[0]) for pair in pairs])
            known |= dict(zip(equations[0].outvars, results, strict=True))
        outputs = zip(first.outvars, second.outvars, strict=True)
        return [value_of(pair, "the result") for pair in outputs]

    def _equation(self, equations: Pair, inputs: list[Value]) -> list[Value]:
        name, params = equations[0].primitive.name, [e.params for e in equations]
        outputs = list(zip(*(equation.outvars for equation in equations), strict=True))
        for aval in (variable.aval for variable, _ in outputs):
            if 0 in aval.shape or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
                raise InputError(
                    f"{name} returns {aval.str_short()}, which cannot be written as ONNX"
                )
        equation = Equation(
            primitive=name,
            inputs=inputs,
            shapes=[_merged(name, a.aval.shape, b.aval.shape) for a, b in outputs],
            dtypes=[np.dtype(a.aval.dtype) for a, _ in outputs],
            parameters=(params[0], params[1]),
            merge=functools.partial(_merged, name),
        )
        if name == "platform_index":
            default = equation["platforms"].index(None)
            return [_constant(default, default, np.int32)]
        if name == "cond":
            index, *arguments = inputs
            if index.constant is None:
                raise equation.lacks("the branch depends on the images")
            branch = int(index.constant)
            return self._call([p["branches"][branch] for p in params], arguments)
        if name in CALLS:
            functions = [p.get("jaxpr", p.get("call_jaxpr", p.get("fun_jaxpr"))) for p in params]
            return self._call(functions, inputs)
        folded = _folded(equations, equation)
        if folded is not None:
            return folded
        if name not in RULES:
            shown = {key: str(value)[:60] for key, value in params[0].items()}
            raise InputError(
                f"the JAX primitive {name!r} has no rule in mcn_jax/deploy/onnx_primitives.py that"
                f" writes it as ONNX; its parameters are {shown}"
            )
        result = RULES[name](self._graph, equation)
        return result if isinstance(result, list) else [result]

    def _call(self, functions: list[Any], inputs: list[Value]) -> list[Value]:
        jaxprs = [getattr(function, "jaxpr", function) for function in functions]
        constants = [getattr(function, "consts", ()) for function in functions]
        return self.run((jaxprs[0], jaxprs[1]), (constants[0], constants[1]), inputs)


def _constant(first: Any, second: Any, dtype: Any = None, where: str = "the function") -> Value:
    array, other = np.asarray(first, dtype), np.asarray(second, dtype)
    if not np.array_equal(array, other, equal_nan=array.dtype.kind == "f"):
        raise InputError(f"{where}: a constant depends on the number of images: {first!s:.100}")
    return Value(shape=array.shape, dtype=array.dtype, constant=array)


def _merged(where: str, first: tuple[int, ...], second: tuple[int, ...]) -> Shape:
    """Returns the shape that fits both traces, with -a for a * N."""
    lengths = []
    for a, b in zip(first, second, strict=True):
        times, rest = divmod(a, BATCHES[0])
        if a != b and (rest or b != times * BATCHES[1]):
            raise InputError(
                f"{where}: a shape is {first} for {BATCHES[0]} images, {second} for {BATCHES[1]};"
                " each length must be fixed or a multiple of the number of images"
            )
        lengths.append(a if a == b else -times)
    return tuple(lengths)


def _folded(equations: Pair, equation: Equation) -> list[Value] | None:
    """Returns the results as constants if they are small and all inputs are known, else None."""
    if any(value.constant is None for value in equation.inputs):
        return None
    lengths = [n for value in equation.inputs for n in value.shape]
    sizes = [int(np.prod(shape)) for shape in equation.shapes]
    if min([0, *lengths, *(n for shape in equation.shapes for n in shape)]) < 0:
        return None
    if max(sizes) > FOLDED_SIZE or equation.primitive in ("broadcast_in_dim", "reshape"):
        return None
    primitive, params = equations[0].primitive, equations[0].params
    with jax.ensure_compile_time_eval():
        arrays = [
            jax.numpy.asarray(np.broadcast_to(value.constant, value.shape), value.dtype)
            for value in equation.inputs
            if value.constant is not None
        ]
        results = primitive.bind(*arrays, **params)
    results = results if primitive.multiple_results else [results]
    return [_constant(result, result) for result in map(np.asarray, results)]


def _model(
    graph: Graph, result: Value, image_shape: Shape, input_name: str, output_name: str
) -> onnx.ModelProto:
    name = graph.tensor(result)
    if name not in graph.producers:
        name = graph.emit("Identity", name)
    nodes = _used(graph.nodes, name)
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [output_name if used == name else used for used in names]
    read = {used for node in nodes for used in node.input}
    shapes = {
        name: ["N" if n == -1 else f"{-n}N" if n < 0 else n for n in shape]
        for name, shape in ((input_name, image_shape), (output_name, result.shape))
    }
    dtype = helper.np_dtype_to_tensor_dtype(result.dtype)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "mcn_jax",
            [helper.make_tensor_value_info(input_name, TensorProto.UINT8, shapes[input_name])],
            [helper.make_tensor_value_info(output_name, dtype, shapes[output_name])],
            [tensor for name, tensor in graph.initializers.items() if name in read],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mcn_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _used(nodes: list[onnx.NodeProto], result: str) -> list[onnx.NodeProto]:
    """Returns the nodes that a result depends on, in order."""
    needed, used = {result}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            used.append(node)
    return used[::-1]

"""Reads the training program that XLA gets for a GPU, which JAX lowers without having one.

It is the program of a run of configs/cifar10_20_16_16_32_64.py in bfloat16 on one GPU. It has 30
steps, with float or with binary filters.
"""

import collections
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from jax.extend.mlir import ir

from conftest import use_one_device
from mcn_jax import parallel
from mcn_jax.config import from_config_dict, load_config_file
from mcn_jax.data.batches import Batch, Split
from mcn_jax.data.facts import DATASETS
from mcn_jax.models import make_model
from mcn_jax.training.state import create_state
from mcn_jax.training.steps import train_steps
from small_runs import train_step_arguments

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "cifar10_20_16_16_32_64.py"
STEPS, BATCH, CONVOLUTIONS = 30, 128, 19
HOST_OPERATIONS = {"custom_call", "infeed", "outfeed", "send", "recv"}
PASSES_ON = {"call", "return", "while"}  # operations that may only carry an array along


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the program.

    Attributes:
        op: the operation; its name and types are easier to read here.
        kind: its name in StableHLO.
        inputs: (shape, dtype) of every operand.
        outputs: (shape, dtype) of every result.
        loops: number of loops that it is inside.
    """

    op: Any
    kind: str
    inputs: list[tuple[tuple[int, ...], str]]
    outputs: list[tuple[tuple[int, ...], str]]
    loops: int

    @property
    def dtypes(self):
        return {dtype for _, dtype in self.inputs + self.outputs}


@dataclasses.dataclass(frozen=True)
class Program:
    """The lowered program of several training steps.

    Attributes:
        state: abstract state; the other arguments are the split and the batches, two arrays each.
        metrics: abstract metrics.
        module: the MLIR module.
    """

    state: Any
    metrics: Any
    module: Any

    @functools.cached_property
    def functions(self):
        operations = [op.operation for op in self.module.body.operations]
        return {ir.StringAttr(op.attributes["sym_name"]).value: op for op in operations}

    @property
    def arguments(self):
        """(shape, dtype) of each argument, and its attributes."""
        block = self.functions["main"].regions[0].blocks[0]
        attributes = map(ir.DictAttr, self.functions["main"].attributes["arg_attrs"])
        return list(zip(types(block.arguments), attributes, strict=True))

    @property
    def results(self):
        """(shape, dtype) of each result."""
        *_, last = self.functions["main"].regions[0].blocks[0].operations
        return types(last.operands)

    @functools.cached_property
    def operations(self):
        """All operations; those of a called function appear at each of its calls."""
        return list(self._inside(self.functions["main"], 0))

    def of_kind(self, kind):
        return [operation for operation in self.operations if operation.kind == kind]

    def count(self, kind):
        return len(self.of_kind(kind))

    def _inside(self, parent, loops):
        for op in (op for region in parent.regions for block in region for op in block):
            op = op.operation
            kind = op.name.split(".")[-1]
            yield Operation(op, kind, types(op.operands), types(op.results), loops)
            body = op
            if kind == "call":
                body = self.functions[ir.FlatSymbolRefAttr(op.attributes["callee"]).value]
            yield from self._inside(body, loops + (kind == "while"))


def types(values):
    found = (ir.RankedTensorType(value.type) for value in values)
    return [(tuple(t.shape), str(t.element_type)) for t in found]


def lowered_program(quantized):
    fields = load_config_file(CONFIG)
    fields.dtype = "bfloat16"
    config = from_config_dict(fields)
    facts = DATASETS[config.data.name]
    shape = facts.image_shape
    arguments = train_step_arguments(config, quantized, shape, axis_name=parallel.AXIS)
    model = make_model(config, facts.classes, quantized=quantized)
    state = jax.eval_shape(
        lambda: create_state(
            config, model, arguments["optimizer"], arguments["settings"].plan, shape
        )
    )
    count, array = facts.examples["train"], jax.ShapeDtypeStruct
    split = Split(array((count, *shape), np.uint8), array((count,), np.int32))
    batches = Batch(*2 * [array((STEPS, BATCH), np.int32)])
    arrays = (state, split, batches)
    of_one_device = jax.tree.map(lambda x: array((1, *x.shape), x.dtype), arrays)
    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        # A mapped function has no option for the platform.
        lower = functools.partialmethod(jax.stages.Traced.lower, lowering_platforms=("cuda",))
        patch.setattr(jax.stages.Traced, "lower", lower)
        step = parallel.parallel(functools.partial(train_steps, **arguments), donate_state=True)
        lowered = step.lower(*of_one_device)
    _, metrics = lowered.out_info
    return Program(of_one_device[0], metrics, lowered.compiler_ir("stablehlo"))


@pytest.fixture(scope="module")
def programs():
    """Returns {quantized: program}."""
    return {quantized: lowered_program(quantized) for quantized in (False, True)}


@pytest.fixture(params=[False, True], ids=["float", "binary"])
def program(request, programs):
    return programs[request.param]


def test_every_convolution_and_its_gradients_are_in_bfloat16_with_channels_last(program):
    convolutions = program.of_kind("convolution")
    assert {dtype for operation in convolutions for dtype in operation.dtypes} == {"bf16"}
    dimensions = (str(operation.op.attributes["dimension_numbers"]) for operation in convolutions)
    # In turn: forward, gradient of the features, gradient of the filters. The image needs none.
    assert collections.Counter(dimensions) == {
        "#stablehlo.conv<[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]>": CONVOLUTIONS,
        "#stablehlo.conv<[b, 0, 1, f]x[0, 1, o, i]->[b, 0, 1, f]>": CONVOLUTIONS - 1,
        "#stablehlo.conv<[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]>": CONVOLUTIONS,
    }


def test_no_feature_maps_are_transposed(program):
    shapes = [operation.inputs[0][0] for operation in program.of_kind("transpose")]
    assert sorted(shapes) == [(10, 512), (512, 256)]  # kernels of the dense layers


def test_only_products_of_the_size_of_the_filters_are_in_float32(program):
    products = program.of_kind("dot_general")
    small = [product for product in products if product.outputs[0][1] == "f32"]
    # The gradients of C and of M from the gradient of Q, [W, W, G*K, H, K].
    assert len(small) == 2 * CONVOLUTIONS
    for product in small:
        assert product.dtypes == {"f32"}
        assert product.inputs[0][0][:2] == (3, 3)
        assert product.inputs[0][0][4:] == (4,)
    # Forward pass and both gradients of two dense layers.
    large = [product for product in products if product not in small]
    assert len(large) == 6
    assert all(product.dtypes == {"bf16"} for product in large)


def test_batch_statistics_and_losses_are_summed_in_float32(program):
    sums = [operation for operation in program.of_kind("reduce") if len(operation.inputs) == 2]
    # Four per batch norm: mean and variance, and in the backward pass the two sums.
    over_images = [s for s in sums if list(s.op.attributes["dimensions"]) == [0, 1, 2]]
    over_maps = [s for s in over_images if s.inputs[0][0][0] == BATCH]
    assert len(over_maps) == 4 * CONVOLUTIONS
    assert all(s.dtypes == {"f32"} for s in over_maps)
    # Only Flax sums the gradients of two biases over the batch in bfloat16.
    in_bfloat16 = [s.inputs[0][0] for s in sums if "bf16" in s.dtypes]
    assert sorted(in_bfloat16) == [(BATCH, 10), (BATCH, 512)]
    of_loss = [program.of_kind(kind) for kind in ("exponential", "log", "sqrt", "rsqrt")]
    assert all(operations for operations in of_loss)
    assert {dtype for ops in of_loss for operation in ops for dtype in operation.dtypes} == {"f32"}


def test_floats_are_only_converted_between_float32_and_bfloat16(program):
    pairs = {
        (convert.inputs[0][1], convert.outputs[0][1])
        for convert in program.of_kind("convert")
        if "f" in convert.inputs[0][1]
    }
    assert pairs <= {("f32", "bf16"), ("bf16", "f32"), ("f32", "f32")}


def test_the_state_is_float32_and_donated_and_nothing_else_is(program):
    leaves = jax.tree.leaves(program.state)
    of_state, others = program.arguments[: len(leaves)], program.arguments[len(leaves) :]
    results = program.results
    assert len(leaves) > 200
    for index, (leaf, (kind, attributes)) in enumerate(zip(leaves, of_state, strict=True)):
        assert kind == (leaf.shape, "i32" if leaf.dtype == np.int32 else "f32")
        assert results[index] == kind
        assert ir.IntegerAttr(attributes["tf.aliasing_output"]).value == index
    integers = [kind for kind, _ in of_state if kind[1] == "i32"]
    assert {shape for shape, _ in integers} == {(1,)}  # numbers of steps
    assert len(others) == 4
    for _, attributes in others:
        assert not {"tf.aliasing_output", "jax.buffer_donor"} & {item.name for item in attributes}


def test_the_split_is_an_argument_whose_chosen_rows_alone_become_floats(program):
    images = ((1, 50000, 32, 32, 3), "ui8")
    assert [kind for kind, _ in program.arguments].count(images) == 1
    batch = (BATCH, 32, 32, 3)
    converts = [c for c in program.of_kind("convert") if c.inputs[0][1] == "ui8"]
    assert [(c.inputs, c.outputs) for c in converts] == [([(batch, "ui8")], [(batch, "bf16")])]
    for constant in program.of_kind("constant"):
        [(shape, _)] = constant.outputs
        is_one_value = ir.DenseElementsAttr(constant.op.attributes["value"]).is_splat
        assert is_one_value or math.prod(shape) <= 3  # mean and standard deviation of the channels


def test_the_metrics_of_all_steps_come_out_together(program):
    results = program.results[len(jax.tree.leaves(program.state)) :]
    assert results == [((1, STEPS), "f32")] * len(program.metrics)
    assert {"softmax_loss", "accuracy", "gradient_norm", "m_min"} <= set(program.metrics)


def test_the_only_loop_is_the_one_over_steps(program):
    """The forms of MCconv for a CPU have loops over chunks of images."""
    assert [operation.loops for operation in program.of_kind("while")] == [0]
    assert program.count("convolution") == sum(o.loops for o in program.of_kind("convolution"))


def test_no_operation_waits_for_the_host_or_chooses_at_run_time(program):
    kinds = {operation.kind for operation in program.operations}
    assert not kinds & HOST_OPERATIONS
    for case in program.of_kind("case"):
        # Where JAX chooses by platform, a constant chooses the number of the only branch.
        chooses = case.inputs == case.outputs == [((), "i32")]
        assert chooses or len(case.op.regions) == 1
        index = case.op.operands[0].owner
        assert index.name in ("stablehlo.constant", "stablehlo.case")


def test_random_numbers_need_no_loop_and_nothing_is_sorted(program):
    kinds = {operation.kind for operation in program.operations}
    assert not kinds & {"rng", "rng_bit_generator", "sort"}
    assert program.count("xor") > 100  # Threefry, as plain operations


def test_binary_filters_only_add_operations_of_the_size_of_the_filters(programs):
    """They add no product, no choice and nothing that reads or writes feature maps."""
    of_images = [
        collections.Counter(
            (operation.kind, *operation.inputs, *operation.outputs)
            for operation in program.operations
            if operation.kind not in PASSES_ON
            and any(shape[:1] == (BATCH,) for shape, _ in operation.inputs + operation.outputs)
        )
        for program in programs.values()
    ]
    assert of_images[0] == of_images[1]
    for kind in ("convolution", "dot_general", "gather", "scatter", "case", "while", "transpose"):
        assert programs[False].count(kind) == programs[True].count(kind)
    compared = programs[True].count("compare") - programs[False].count("compare")
    # Forward, backward, filter loss and projection penalty.
    assert compared == 4 * CONVOLUTIONS

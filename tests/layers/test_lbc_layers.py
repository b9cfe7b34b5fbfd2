"""Tests the family of local binary convolutions: anchors, files and counts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.config import Config, ModelConfig
from mcn_jax.data.batches import Batch
from mcn_jax.errors import InputError
from mcn_jax.layers.lbc import LBC, DeployedLBConv, LBConv
from mcn_jax.models.plan import plan_of, plan_of_module, specs
from mcn_jax.ops import lbc
from mcn_jax.ops.convolution import convolve
from mcn_jax.training import checks
from mcn_jax.training.steps import train_step
from small_runs import digits_config, random_split, step_arguments


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return LBConv(out_maps=3, planes=2, ratio=1.5, strides=2, name="layer")(x)


def layer_of():
    """Returns the planned layer, p, s, and an input [2, 7, 8, 5]."""
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 5))
    variables = Network().init(jax.random.key(1), x)
    (planned,) = plan_of_module(Network(), (7, 8, 5))
    p = variables["params"]["layer"] | {"bias": jnp.arange(6.0)}
    return planned, p, variables["anchors"]["layer"], x


def network_config(**fields):
    return Config(model=ModelConfig(conv="lbc", planes=1, widths=(16, 32), **fields))


def test_it_mixes_the_responses_of_its_anchors():
    _, p, s, x = layer_of()
    assert s["anchors"].shape == (3, 3, 5, 9)
    np.testing.assert_array_equal(s["anchors"], lbc.anchors((3, 3, 5, 9), 0.5, 0, "layer"))
    anchors = np.asarray(s["anchors"], np.float32)
    scaled = anchors / np.sqrt(np.maximum(np.abs(anchors).sum((0, 1, 2)), 1))
    responses = np.maximum(convolve(x, jnp.asarray(scaled), (2, 2), "SAME"), 0)
    expected = responses @ np.asarray(p["kernel"])[0, 0] + np.arange(6)
    output = Network().apply({"params": {"layer": p}, "anchors": {"layer": s}}, x)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_a_file_holds_the_anchors_themselves():
    layer, p, s, x = layer_of()
    stored = LBC.pack(p, s, True)
    held = LBC.spec(layer, network_config(), True, {})
    assert {n: (str(t.dtype), t.shape) for n, t in stored.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in held.items()
    }
    assert held["anchor_bits"].bits == 2 * 9 * 5 * 9
    assert held["kernel"].bits == 32 * 9 * 6
    unpacked = LBC.unpack({name: jnp.asarray(t) for name, t in stored.items()}, layer)
    np.testing.assert_array_equal(unpacked["anchors"], s["anchors"])
    deployed = DeployedLBConv(out_maps=3, planes=2, ratio=1.5, strides=2)
    trained = Network().apply({"params": {"layer": p}, "anchors": {"layer": s}}, x)
    np.testing.assert_allclose(
        deployed.apply({"params": unpacked}, x), trained, rtol=1e-5, atol=1e-5
    )
    LBC.check_values(stored, layer)


def test_an_anchor_that_is_zero_and_positive_is_refused():
    layer, p, s, _ = layer_of()
    stored = LBC.pack(p, s, True)
    stored["anchor_bits"][1] = 255
    with pytest.raises(InputError, match="its tensor layer/anchor_bits has anchors that are zero"):
        LBC.check_values(stored, layer)


def test_counts_of_a_layer_and_of_a_network():
    config = network_config(lbc_ratio=2.0)
    plan = plan_of(config, 10, (32, 32, 3))
    first, second = [layer for layer in plan if layer.family is LBC]
    assert LBC.multiply_adds(first) == {"direct": 1024 * (9 * 3 * 32 + 32 * 16)}
    assert LBC.multiply_adds(second) == {"direct": 256 * (9 * 16 * 64 + 64 * 32)}
    bits = {name: t.bits for name, t in specs(plan, config, True).items() if "anchor" in name}
    assert bits == {"conv_1/anchor_bits": 2 * 9 * 3 * 32, "conv_2/anchor_bits": 2 * 9 * 16 * 64}


def test_planning_draws_no_anchors(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("drawn")

    monkeypatch.setattr(lbc, "anchors", refuse)
    config = network_config(lbc_ratio=3.0)
    assert len(plan_of(config, 7, (32, 32, 3))) > 2


def test_decay_and_momentum_never_reach_the_anchors():
    config = digits_config(model=network_config().model)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, weight_decay=0.1)
    )
    state, arguments = step_arguments(config, quantized=False)
    before = jax.tree.map(np.array, state.layer_state)
    batch = Batch(np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32))
    step = jax.jit(lambda state, split: train_step(state, split, batch, **arguments))
    kernel = np.array(state.params["conv_1"]["kernel"])
    for _ in range(10):
        state, _ = step(state, random_split())
    jax.tree.map(np.testing.assert_array_equal, before, state.layer_state)
    assert np.abs(kernel - state.params["conv_1"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    ("field", "value", "range_"),
    [("lbc_ratio", 0.0, r"\(0, 1024\]"), ("lbc_density", 1.5, r"\(0, 1\]")],
)
def test_bad_options_are_refused_in_one_line(field, value, range_):
    config = network_config(**{field: value})
    with pytest.raises(InputError, match=rf"config.model.{field}={value} must lie in {range_}"):
        checks.validate(config)


def test_a_density_that_leaves_no_anchor_is_refused():
    config = network_config(lbc_density=0.001)
    message = r"lbc_density=0.001 leaves no anchor of conv_1, which has 432 places; raise it"
    with pytest.raises(InputError, match=message):
        checks.validate_for_data(config, (32, 32, 3), None)
    assert lbc.num_nonzero((1, 1, 10, 10), 0.29) == 29

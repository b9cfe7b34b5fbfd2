"""Tests the plan of a network: its layers in call order, with their shapes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mcn_jax import ops
from mcn_jax.config import BinarizeConfig, Config, ModelConfig
from mcn_jax.layers import Conv, MCConv
from mcn_jax.layers.batch_norm import BATCH_NORM
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.one_bit import BinaryConnectConv, BWNConv
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import make_model
from mcn_jax.models.plan import layer_collections, plan_of, plan_of_module, specs

MCCONV, CONV = LAYERS["mcconv"], LAYERS["conv"]


def rows(plan):
    """Returns (name, family, input shape, output shape) of every layer."""
    return [(layer.name, layer.family, layer.in_shape, layer.out_shape) for layer in plan]


def test_a_simple_cnn_in_call_order():
    config = Config(model=ModelConfig(widths=(2, 3), dense_features=7))
    plan = plan_of(config, 5, (12, 20, 3))
    assert rows(plan) == [
        # Three channels become three maps of four planes.
        ("conv_1", MCCONV, (12, 20, 12), (12, 20, 8)),
        ("batch_norm_1", BATCH_NORM, (12, 20, 8), (12, 20, 8)),
        ("conv_2", MCCONV, (6, 10, 8), (6, 10, 12)),
        ("batch_norm_2", BATCH_NORM, (6, 10, 12), (6, 10, 12)),
        ("dense_1", DENSE, (3 * 5 * 12,), (7,)),
        ("dense_2", DENSE, (7,), (5,)),
    ]
    assert [layer.out_pixels for layer in plan] == [240, 240, 60, 60, 1, 1]
    assert plan[2].params == {"latent_filters": (3, 3, 8, 3), "m_filters": (3, 3, 4)}
    assert plan[2].state == {"centers": "centers"}
    assert plan[1].params == {"scale": (8,), "bias": (8,)}
    assert plan[1].state == {"mean": "batch_stats", "var": "batch_stats"}
    assert plan[4].params == {"kernel": (180, 7), "bias": (7,)}
    assert layer_collections(plan) == ("centers",)


def test_more_than_nine_layers_stand_in_call_order():
    config = Config(model=ModelConfig(name="wide_resnet", depth=70, widths=(1, 1, 1, 1)))
    blocks = [name for layer in plan_of(config, 5, (8, 8, 1)) if "_" in (name := layer.name)]
    blocks = list(dict.fromkeys(n.partition("/")[0] for n in blocks if n.startswith("stage")))
    assert blocks == [
        f"stage_{stage}_block_{block}" for stage in (1, 2, 3) for block in range(1, 12)
    ]


@pytest.mark.parametrize("conv", [MCCONV, CONV])
@pytest.mark.parametrize(("stem", "size"), [("cifar", 16), ("imagenet", 64)])
def test_a_wide_resnet_in_call_order(conv, stem, size):
    name = next(name for name, family in LAYERS.items() if family is conv)
    model = ModelConfig(
        name="wide_resnet", conv=name, depth=8, widths=(1, 2, 2, 3), stem=stem, head="conv"
    )
    plan = plan_of(Config(model=model), 5, (size, size, 3))
    taken = 12 if conv is MCCONV else 3
    stem_size = size if stem == "cifar" else size // 2

    def block(name, pixels, out_pixels, channels, out_channels):
        taken, inside = (pixels, pixels, channels), (out_pixels, out_pixels, out_channels)
        return [
            (f"{name}/batch_norm_1", BATCH_NORM, taken, taken),
            (f"{name}/conv_1", conv, taken, inside),
            (f"{name}/batch_norm_2", BATCH_NORM, inside, inside),
            (f"{name}/conv_2", conv, inside, inside),
        ]

    assert rows(plan) == [
        ("stem", conv, (size, size, taken), (stem_size, stem_size, 4)),
        *block("stage_1_block_1", 16, 16, 4, 8),
        *block("stage_2_block_1", 16, 8, 8, 8),
        *block("stage_3_block_1", 8, 4, 8, 12),
        ("batch_norm", BATCH_NORM, (4, 4, 12), (4, 4, 12)),
        ("head", CONV, (4, 4, 12), (4, 4, 5)),
        ("batch_norm_head", BATCH_NORM, (4, 4, 5), (4, 4, 5)),
    ]


def test_the_tensors_of_a_model_file():
    """Compares names, dtypes, shapes and bits with values computed by hand."""
    config = Config(
        model=ModelConfig(widths=(3,), head="linear"), binarize=BinarizeConfig(num_centers=3)
    )
    plan = plan_of(config, 5, (4, 4, 1))
    found = specs(plan, config, quantized=True, dtypes={"dense/kernel": "int8"})
    # 9 * 4 * 3 = 108 weights of two bits: 13.5 bytes per bit plane.
    assert {name: tuple(tensor) for name, tensor in found.items()} == {
        "conv_1/bits": ("uint8", (2, 14), "filters", 216, 108),
        "conv_1/centers": ("float32", (3,), "centers", 96, 0),
        "conv_1/m_filters": ("float32", (3, 3, 4), "M-filters", 32 * 36, 36),
        "batch_norm_1/scale": ("float32", (12,), "batch norm", 384, 12),
        "batch_norm_1/offset": ("float32", (12,), "batch norm", 384, 12),
        "dense/kernel": ("int8", (48, 5), "dense layers", 8 * 240, 240),
        "dense/kernel_scale": ("float32", (5,), "dense layers", 160, 0),
        "dense/bias": ("float32", (5,), "dense layers", 160, 5),
    }


def test_a_parameter_of_no_family_is_named():
    class Bias(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + self.param("offset", nn.initializers.zeros, (1, 1, 1, x.shape[-1]))

    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Bias(name="extra")(MCConv(2, name="conv")(x))

    with pytest.raises(ValueError, match="parameter extra/offset belongs to no layer family"):
        plan_of_module(Tiny(), (8, 8, 4))


def test_a_parameter_of_no_group_is_named():
    class Biased(Conv):
        @nn.compact
        def __call__(self, x):
            y = nn.Conv(4, (1, 1), name="conv")(x)
            return y + jnp.zeros(())

    with pytest.raises(ValueError, match=r"parameter .*conv/bias belongs to no group of the"):
        plan_of_module(nn.Sequential([Biased(1)]), (8, 8, 4))


def test_a_layer_that_is_called_twice_is_planned_once():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = MCConv(2, planes=2)
            return layer(layer(x))

    [layer] = plan_of_module(Twice(), (8, 8, 4))
    assert layer.name == "MCConv_0"


class Repeated(nn.Module):
    """Four MCconvs, of which the second equals the first, and the last two have other strides."""

    @nn.compact
    def __call__(self, x):
        for strides in (1, 1, 2, 2):
            x = MCConv(out_maps=2, planes=2, strides=strides)(x)
        return x


def test_only_the_first_of_equal_layers_is_run(monkeypatch):
    run = []
    compute = ops.mcconv
    monkeypatch.setattr(
        ops, "mcconv", lambda *args, **keywords: run.append(1) or compute(*args, **keywords)
    )
    plan = plan_of_module(Repeated(), (8, 8, 4))
    assert len(run) == 3  # the last one has a smaller image than the third
    assert [layer.name for layer in plan] == [f"MCConv_{n}" for n in range(4)]
    sizes = [(layer.in_shape[0], layer.out_shape[0]) for layer in plan]
    assert sizes == [(8, 8), (8, 8), (8, 4), (4, 2)]
    assert plan[1] == dataclasses.replace(plan[0], name="MCConv_1")


class Alternating(nn.Module):
    """Two equal layers that are called in turn, and one of another class with equal fields."""

    layer: type[nn.Module]
    others: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        one, two, other = self.layer(4), self.layer(4), self.others(4)
        for layer in (one, two, one, two, other):
            x = layer(x)
        return x


def test_equal_layers_that_are_called_in_turn_are_listed_once():
    plan = plan_of_module(Alternating(BinaryConnectConv, BWNConv), (8, 8, 4))
    families = [LAYERS[kind] for kind in ("binaryconnect", "binaryconnect", "bwn")]
    assert [layer.family for layer in plan] == families
    assert {layer.out_shape for layer in plan} == {(8, 8, 4)}
    assert all(layer.params == plan[0].params for layer in plan)


class Unhashable(MCConv):
    """An MCconv with a field that cannot be compared with that of another one."""

    notes: Any = dataclasses.field(default_factory=lambda: np.zeros(2))


def test_layers_that_cannot_be_compared_are_listed_like_others():
    plan = plan_of_module(nn.Sequential([Unhashable(2, 2), Unhashable(2, 2)]), (8, 8, 4))
    assert [layer.name for layer in plan] == ["layers_0", "layers_1"]
    assert plan[0].params == plan[1].params == {
        "latent_filters": (3, 3, 4, 2), "m_filters": (3, 3, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "wide_resnet", "depth": 14, "widths": (2, 2, 4, 4)},
        {"name": "resnet", "widths": (4, 4, 8), "blocks": (3, 2), "conv": "filter_map"},
        {"name": "resnet", "widths": (4, 4), "blocks": (3,), "pooling": "diffstride"},
        {"name": "densenet", "widths": (8,), "blocks": (2, 2), "growth": 4, "conv": "bwn"},
        {"name": "lbcnn", "depth": 4, "widths": (4,), "conv": "lbc"},
    ],
)
def test_a_plan_has_the_parameters_and_the_state_of_the_network(fields):
    config = Config(model=ModelConfig(**fields))
    network = make_model(config, 5, quantized=False)
    images = jnp.zeros((1, 16, 16, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    plan = plan_of(config, 5, (16, 16, 3))
    for collection in variables:
        found = {
            f"{layer.name}/{leaf}": shape
            for layer in plan
            for leaf, shape in (layer.params | layer.state_shapes).items()
            if layer.state.get(leaf, "params") == collection
        }
        flat = traverse_util.flatten_dict(variables[collection], sep="/")
        assert found == {name: leaf.shape for name, leaf in flat.items()}

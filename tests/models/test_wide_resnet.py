import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import paper
from mcn_jax import layers
from mcn_jax.config import BinarizeConfig, Config, DataConfig, ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import MODELS, WideResNet, make_model
from mcn_jax.models.plan import filter_bits, plan_of
from mcn_jax.training import optim
from mcn_jax.training.checks import validate

RGB = (2, 8, 8, 3)


def wide_resnet(**changes):
    """Returns a tiny network whose stem is narrower than its first stage."""
    tiny = {"widths": (2, 3, 4, 5), "depth": 8, "dense_features": 7, "dropout_rate": 0.0}
    return ModelConfig(name="wide_resnet", **(tiny | changes))


def shapes(model, size=32, channels=3):
    """Returns {path: shape and dtype} of every parameter."""
    network = make_model(Config(model=model), 10, quantized=True)
    images = jnp.zeros((1, size, size, channels))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return traverse_util.flatten_dict(variables["params"], sep="/")


def filters(model):
    """Returns {path: shape} of the filters of every convolution."""
    return {
        path: leaf.shape
        for path, leaf in shapes(model).items()
        if path.endswith(("latent_filters", "conv/kernel"))
    }


def weights(model):
    """Returns {path: number of weights} of the filters of every convolution."""
    return {path: int(np.prod(shape)) for path, shape in filters(model).items()}


@pytest.mark.parametrize(
    ("widths", "expected", "millions"),
    [
        # Stem, stage 1, stage 2, stage 3; RGB is three maps.
        (
            (16, 16, 32, 64),
            36 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64),
            "1.07",
        ),
        (
            (16, 32, 64, 128),
            36
            * (3 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64 + 64 * 128 + 5 * 128 * 128),
            "4.26",
        ),
        (
            (32, 64, 128, 256),
            36 * (3 * 32 + 32 * 64 + 5 * 64 * 64 + 64 * 128 + 5 * 128 * 128)
            + 36 * (128 * 256 + 5 * 256 * 256),
            "17.0",
        ),
        (
            (64, 64, 128, 256),
            36 * (3 * 64 + 6 * 64 * 64 + 64 * 128 + 5 * 128 * 128 + 128 * 256 + 5 * 256 * 256),
            "17.1",
        ),
    ],
)
def test_filter_count_of_the_papers_four_widths(widths, expected, millions):
    """A layer has 36*G*H weights; the authors print 1.1, 4.3, 17.1 and 17.2 million."""
    model = ModelConfig(name="wide_resnet", widths=widths, depth=20)
    counts = weights(model)
    assert sum(counts.values()) == expected
    assert f"{expected / 1e6:.{len(millions.split('.')[1])}f}" == millions
    plan = plan_of(Config(model=model), 10, (32, 32, 3))
    planned = {layer.name: layer.params for layer in plan if layer.family is LAYERS["mcconv"]}
    # Input channels over K, and output maps, in the order of the network.
    stem, one, two, three = widths
    maps = [(3, stem), (stem, one), *[(one, one)] * 5]
    maps += [(one, two), *[(two, two)] * 5, (two, three), *[(three, three)] * 5]
    assert [p["latent_filters"] for p in planned.values()] == [
        (3, 3, 4 * g, h) for g, h in maps
    ]  # fmt: skip
    assert sorted(counts.values()) == sorted(36 * g * h for g, h in maps)
    assert filter_bits(plan, Config(model=model), quantized=True) == (expected, 32 * expected)
    if widths == (16, 16, 32, 64):
        assert expected == 1_070_784


@pytest.mark.parametrize(
    ("depth", "convolutions"), [(8, 7), (10, 7), (20, 19), (22, 19), (28, 25), (34, 31)]
)
def test_depths(depth, convolutions):
    """A network has a stem, and two convolutions per block in three stages."""
    found = filters(wide_resnet(depth=depth))
    assert len(found) == convolutions
    plan = plan_of(Config(model=wide_resnet(depth=depth)), 10, (32, 32, 3))
    assert sum(layer.family.filters is not None for layer in plan) == convolutions
    blocks = (convolutions - 1) // 6
    assert set(found) == {"stem/latent_filters"} | {
        f"stage_{stage}_block_{block}/conv_{conv}/latent_filters"
        for stage in (1, 2, 3)
        for block in range(1, blocks + 1)
        for conv in (1, 2)
    }


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(21, "20 and 22"), (24, "22 and 26"), (7, "8"), (4, "8"), (-2, "8"), (9, "8 and 10")],
)
def test_other_depths_are_refused_with_their_neighbours(depth, nearest):
    config = Config(model=wide_resnet(depth=depth))
    message = rf"^config\.model\.depth={depth} must be .*: {nearest}$"
    with pytest.raises(InputError, match=message):
        validate(config)
    with pytest.raises(ValueError, match=f"^depth={depth} must be"):
        shapes(config.model)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            wide_resnet(widths=(2, 3, 4)),
            DataConfig(),
            "config.model.widths=(2, 3, 4) must be the four widths of a wide_resnet: stem, stage 1",
        ),
        (
            wide_resnet(widths=(4, 2, 4, 8)),
            DataConfig(),
            "config.model.widths=(4, 2, 4, 8) must not decrease in a wide_resnet",
        ),
        (
            wide_resnet(stem="imgnet"),
            DataConfig(),
            "config.model.stem='imgnet' must be one of cifar, imagenet; did you mean imagenet?",
        ),
        (
            wide_resnet(),
            DataConfig(image_size=33),
            "images of 33x33 pixels do not fit a wide_resnet with"
            " config.model.stem='cifar', which needs multiples of 4; set"
            " config.data.image_size=36",
        ),
        (
            wide_resnet(stem="imagenet"),
            DataConfig(name="mnist"),
            "images of 28x28 pixels do not fit a wide_resnet with"
            " config.model.stem='imagenet', which needs multiples of 16; set"
            " config.data.image_size=32",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(model, data, message):
    with pytest.raises(InputError, match=re.escape(message)):
        validate(Config(model=model, data=data))


def test_what_can_be_built_is_not_refused():
    validate(Config(model=wide_resnet(), data=DataConfig(name="mnist")))
    validate(Config(model=wide_resnet(stem="imagenet"), data=DataConfig(name="cifar10")))
    # Four layers cannot halve 8 pixels, but a wide_resnet of four widths halves twice.
    MODELS["wide_resnet"].check_image_size(wide_resnet(), 8, 8)
    with pytest.raises(InputError, match="too many layers for images of 8 pixels"):
        MODELS["simple_cnn"].check_image_size(ModelConfig(widths=(1, 1, 1, 1)), 8, 8)


@pytest.mark.parametrize(
    ("widths", "name", "smallest", "layer"),
    [
        # The layers of stage 1; the stem has three maps.
        ((1, 1, 1, 2), "cifar10", 36 * 1 * 1, "stage_1_block_1/conv_1"),
        ((2, 3, 4, 5), "digits", 36 * 1 * 2, "stem"),  # gray images
    ],
)
def test_centers_fit_the_smallest_layer(widths, name, smallest, layer):
    def config(num_centers):
        return Config(
            model=wide_resnet(widths=widths),
            data=DataConfig(name=name),
            binarize=BinarizeConfig(num_centers=num_centers),
        )

    validate(config(smallest))
    message = f"={smallest + 1} exceeds the {smallest} weights of {layer}, the smallest layer"
    with pytest.raises(InputError, match=message):
        validate(config(smallest + 1))
    with pytest.raises(InputError, match=f" the {smallest} weights of {layer}, the smallest layer"):
        validate(config(256))


@pytest.mark.parametrize("conv", ["mcconv", "conv"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_every_filter_is_3x3(conv, stem):
    found = filters(wide_resnet(conv=conv, stem=stem))
    assert len(found) == 7
    assert {shape[:2] for shape in found.values()} == {(3, 3)}
    four_dimensional = [s for s in shapes(wide_resnet(conv=conv)).values() if len(s.shape) == 4]
    assert len(four_dimensional) == 7


class NumpyWideResNet:
    """The network in numpy with fixed statistics, using the equations of `paper`."""

    def __init__(self, variables, blocks, planes, binarized, imagenet):
        self.values = traverse_util.flatten_dict(variables, sep="/")
        self.blocks, self.planes, self.binarized, self.imagenet = (
            blocks, planes, binarized, imagenet,
        )  # fmt: skip

    def convolve(self, x, name, stride=1):
        if self.planes is None:
            return paper.correlate(x, self.values[f"params/{name}/conv/kernel"], stride)
        filters = self.values[f"params/{name}/latent_filters"]
        if self.binarized:
            filters = paper.binary(filters, self.values[f"centers/{name}/centers"])
        m = self.values[f"params/{name}/m_filters"]
        return paper.correlate(x, paper.reconstruct(filters, m), stride)

    def norm_relu(self, x, name):
        mean, var = (self.values[f"batch_stats/{name}/{key}"] for key in ("mean", "var"))
        scale, bias = (self.values[f"params/{name}/{key}"] for key in ("scale", "bias"))
        return np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)

    def dense(self, x, name):
        return x @ self.values[f"params/{name}/kernel"] + self.values[f"params/{name}/bias"]

    def block(self, x, name, stride):
        y = self.convolve(self.norm_relu(x, f"{name}/batch_norm_1"), f"{name}/conv_1", stride)
        y = self.convolve(self.norm_relu(y, f"{name}/batch_norm_2"), f"{name}/conv_2")
        if stride == 2:
            x = quarters(x).mean(0)
        y[..., : x.shape[-1]] += x
        return y

    def __call__(self, images):
        """Returns (logits, features)."""
        x = images
        if self.planes is not None:
            x = np.stack([x] * self.planes, axis=-1).reshape(*x.shape[:3], -1)
        x = self.convolve(x, "stem", 2 if self.imagenet else 1)
        if self.imagenet:
            x = quarters(x).max(0)
        for stage in (1, 2, 3):
            for block in range(1, self.blocks + 1):
                stride = 2 if block == 1 and stage > 1 else 1
                x = self.block(x, f"stage_{stage}_block_{block}", stride)
        features = self.norm_relu(x, "batch_norm")
        pooled = features.sum((1, 2)) / (features.shape[1] * features.shape[2])
        hidden = np.maximum(self.dense(pooled, "dense_1"), 0)
        return self.dense(hidden, "dense_2"), features


def quarters(x):
    """Returns the four pixels of every 2x2 window."""
    return np.stack([x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]])


def drawn_variables(network, images, seed=0):
    """Returns variables like those of a trained network: none is zero or one."""
    generator = np.random.default_rng(seed)

    def normal(deviation):
        return lambda shape: deviation * generator.normal(size=shape)

    def uniform(low, high):
        return lambda shape: generator.uniform(low, high, shape)

    draw = {
        "latent_filters": normal(0.2),
        "m_filters": uniform(0.5, 1.5),
        "centers": lambda shape: np.sort(generator.normal(size=shape)),
        "kernel": normal(0.2),
        "bias": normal(0.2),
        "scale": uniform(0.5, 1.5),
        "mean": normal(1.0),
        "var": uniform(0.5, 2.0),
    }
    declared = jax.eval_shape(network.init, jax.random.key(0), images)
    return traverse_util.unflatten_dict(
        {
            path: draw[path[-1]](leaf.shape).astype(network.param_dtype)
            for path, leaf in traverse_util.flatten_dict(declared).items()
        }
    )


@pytest.mark.parametrize(
    ("conv", "binarized", "depth", "stem", "size"),
    [
        ("mcconv", True, 8, "cifar", 8),
        ("mcconv", False, 14, "cifar", 4),
        ("conv", False, 8, "cifar", 8),
        ("mcconv", True, 10, "imagenet", 32),
    ],
)
def test_the_forward_pass_is_that_of_numpy(conv, binarized, depth, stem, size):
    model = wide_resnet(conv=conv, depth=depth, stem=stem, planes=2)
    config = Config(model=model, dtype="float64", param_dtype="float64")
    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    with jax.enable_x64(True):
        network = make_model(config, 10, quantized=binarized)
        variables = drawn_variables(network, images)
        outputs = jax.device_get(jax.jit(network.apply)(variables, images))
    reference = NumpyWideResNet(
        variables,
        blocks={8: 1, 10: 1, 14: 2}[depth],
        planes=2 if conv == "mcconv" else None,
        binarized=binarized,
        imagenet=stem == "imagenet",
    )
    logits, features = reference(images)
    assert outputs.logits.dtype == np.float64
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-9)
    np.testing.assert_allclose(outputs.features, features, rtol=1e-9, atol=1e-12)
    assert 0.1 < np.mean(features == 0) < 0.9


def test_stages_of_the_imagenet_form():
    network = make_model(Config(model=wide_resnet(stem="imagenet")), 100, quantized=True)
    images = jnp.zeros((1, 224, 224, 3))

    def captured(images):
        return network.init_with_output(
            jax.random.key(0), images, capture_intermediates=True, mutable=True
        )

    outputs, variables = jax.eval_shape(captured, images)
    intermediates = variables["intermediates"]
    sizes = [intermediates[f"stage_{n}_block_1"]["__call__"][0].shape for n in (1, 2, 3)]
    assert sizes == [(1, 56, 56, 12), (1, 28, 28, 16), (1, 14, 14, 20)]
    assert intermediates["stem"]["__call__"][0].shape == (1, 112, 112, 8)
    assert outputs.features.shape == (1, 14, 14, 20)
    assert outputs.logits.shape == (1, 100)


def test_the_kinds_of_network_differ_in_the_convolution():
    mcn = make_model(Config(model=wide_resnet()), 10, quantized=True)
    u_mcn = make_model(Config(model=wide_resnet()), 10, quantized=False)
    wrn = make_model(Config(model=wide_resnet(conv="conv")), 10, quantized=False)
    assert isinstance(mcn, WideResNet)
    differing = [
        {f.name for f in dataclasses.fields(mcn) if getattr(mcn, f.name) != getattr(other, f.name)}
        for other in (u_mcn, wrn)
    ]
    # An ordinary convolution does not copy the image onto planes.
    assert differing == [{"conv"}, {"conv", "input_planes"}]
    assert u_mcn.conv.keywords == mcn.conv.keywords | {"binarized": False}

    def others(model):
        """Returns the shapes of all parameters that are not filters."""
        return {
            path: leaf.shape
            for path, leaf in shapes(model).items()
            if not re.search("filters$|conv/kernel$", path)
        }

    assert others(wide_resnet()) == others(wide_resnet(conv="conv"))


PAPERS = {"widths": (16, 16, 32, 64), "depth": 20}


@pytest.mark.parametrize(
    ("planes", "channels"), [(4, (64, 64, 128, 256)), (2, (32, 32, 64, 128)), (1, (16, 16, 32, 64))]
)
def test_the_three_ordinary_partners_of_an_mcn(planes, channels):
    """Each partner has the same channels, number of weights or printed width as the MCN."""
    mcn = wide_resnet(**PAPERS)
    partner = wide_resnet(conv="conv", planes=planes, **PAPERS)
    found, mcn_weights = filters(partner), weights(mcn)
    outputs = ["stem", *(f"stage_{stage}_block_3/conv_2" for stage in (1, 2, 3))]
    assert tuple(found[f"{path}/conv/kernel"][-1] for path in outputs) == channels
    assert found["stem/conv/kernel"] == (3, 3, 3, channels[0])
    ratios = {
        size / mcn_weights[path.replace("conv/kernel", "latent_filters")]
        for path, size in weights(partner).items()
        if not path.startswith("stem")
    }
    assert ratios == {planes**2 / 4}
    # An MCN has the same channels as the partner with four planes.
    norms = [
        {path: leaf.shape for path, leaf in shapes(m).items() if path.endswith("scale")}
        for m in (mcn, partner)
    ]
    assert (norms[0] == norms[1]) == (planes == 4)


def loss_of(network, variables, images, labels):
    def loss(params):
        outputs, _ = network.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jnp.mean(jax.nn.log_softmax(outputs.logits)[jnp.arange(len(labels)), labels])

    return loss


@pytest.mark.parametrize("conv", ["mcconv", "conv"])
def test_every_parameter_has_a_gradient_after_a_step(conv):
    network = make_model(Config(model=wide_resnet(conv=conv)), 10, quantized=True)
    images = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype(np.float32)
    variables = drawn_variables(network, images)
    gradient = jax.jit(jax.grad(loss_of(network, variables, images, np.arange(16) % 10)))
    params = variables["params"]
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params))
    largest = {
        path: float(jnp.max(jnp.abs(leaf)))
        for path, leaf in traverse_util.flatten_dict(gradient(params), sep="/").items()
    }
    assert min(largest.values()) > 1e-6, largest


def test_layers_are_found_by_their_nested_names():
    model = wide_resnet(planes=2)
    network = make_model(Config(model=model), 10, quantized=True)
    params = drawn_variables(network, jnp.zeros(RGB))["params"]
    centers = jax.jit(layers.updated_centers, static_argnums=1)(params, 2)
    paths = [
        ("stem",), ("stage_1_block_1", "conv_1"), ("stage_1_block_1", "conv_2"),
        ("stage_2_block_1", "conv_1"), ("stage_2_block_1", "conv_2"),
        ("stage_3_block_1", "conv_1"), ("stage_3_block_1", "conv_2"),
    ]  # fmt: skip
    plan = plan_of(Config(model=model), 10, RGB[1:])
    modulated = [layer for layer in plan if layer.family is LAYERS["mcconv"]]
    assert [layer.path for layer in modulated] == paths
    for layer in modulated:
        own = layer.params_in(params)
        declared_m = params[layer.path[0]]
        for name in layer.path[1:]:
            declared_m = declared_m[name]
        assert own.keys() == {"latent_filters", "m_filters"}
        assert own["m_filters"] is declared_m["m_filters"]
    binary = layers.binary_filters(params, centers)
    assert binary.keys() == {"/".join(path) for path in paths}
    flat_centers = traverse_util.flatten_dict(centers, sep="/")
    for path, values in binary.items():
        np.testing.assert_array_equal(np.unique(values), flat_centers[f"{path}/centers"])
    declared = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(RGB))["centers"]
    assert jax.tree.structure(centers) == jax.tree.structure(declared)
    # 18*G*H, because K = 2.
    count = 18 * (3 * 2 + 2 * 3 + 3 * 3 + 3 * 4 + 4 * 4 + 4 * 5 + 5 * 5)
    assert filter_bits(plan, Config(model=model), quantized=True) == (count, 32 * count)
    groups = traverse_util.flatten_dict(optim.parameter_groups(plan), sep="/")
    assert groups.keys() == traverse_util.flatten_dict(params, sep="/").keys()
    assert groups["stage_3_block_1/conv_2/m_filters"] == "m_filters"
    assert groups["stem/latent_filters"] == "latent_filters"
    assert groups["stage_1_block_1/batch_norm_2/scale"] == "biases_and_batch_norm"


def test_a_wrong_stem_is_named_by_the_network_too():
    network = make_model(Config(model=wide_resnet()), 10, quantized=True)
    with pytest.raises(ValueError, match="stem='vit' must be one of cifar, imagenet"):
        network.clone(stem="vit").init(jax.random.key(0), jnp.zeros(RGB))

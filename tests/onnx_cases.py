"""Defines functions of images that use JAX primitives, and runs their graphs in ONNX Runtime."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from jax import ad_checkpoint, lax

from mcn_jax.layers import pooling

SHAPE = (4, 6, 3)


def run(model, images):
    """Returns the result of a graph in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def random_images(count, shape=SHAPE):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def of_floats(function, least=-128, scale=64):
    """Turns a function of float32 into one of (tensors, images).

    Inputs are from -2 to 2, including all whole numbers.
    """
    return lambda tensors, images: function((images.astype(jnp.float32) + least) / scale)


def of_dtype(dtype, function):
    """Turns a function of integers or bool into one of (tensors, images).

    Signed integers start at -100, unsigned ones at 0.
    """
    least = 100 if jnp.issubdtype(dtype, jnp.signedinteger) else 0

    def of_images(tensors, images):
        x = images.astype(jnp.int32) - least
        return function(x % 3 == 0 if dtype is bool else x.astype(dtype))

    return of_images


def convolution(x, kernel_shape, dimensions=("NHWC", "HWIO", "NHWC"), **fields):
    kernel = np.random.default_rng(0).normal(0, 1, kernel_shape).astype(np.float32)
    fields = {"window_strides": (1, 1), "padding": "SAME"} | fields
    return lax.conv_general_dilated(x, kernel, dimension_numbers=dimensions, **fields)


def weights(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(0, 1, shape).astype(np.float32))


UNARY = {
    "abs": jnp.abs,
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "ceil": jnp.ceil,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "floor": jnp.floor,
    "is_finite": lambda x: jnp.isfinite(1 / jnp.floor(x)),
    "isnan": lambda x: jnp.isnan(jnp.sqrt(x)),
    "logistic": nn.sigmoid,
    "neg": jnp.negative,
    "sign": jnp.sign,
    "sin": jnp.sin,
    "sinh": jnp.sinh,
    "tan": lambda x: jnp.tan(x / 2),
    "tanh": jnp.tanh,
    "cbrt": jnp.cbrt,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "integer_pow": lambda x: x**2 + (x + 3) ** -3,
    "round": jnp.round,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "exact_gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "elu": nn.elu,
    "softplus": nn.softplus,
    "leaky_relu": nn.leaky_relu,
    "relu6": nn.relu6,
    "hard_swish": nn.hard_swish,
    "softmax": nn.softmax,
    "log_softmax": nn.log_softmax,
    "round_half_away": lambda x: lax.round(x * 2),
    "stop_gradient": lax.stop_gradient,
    "copy": lambda x: jnp.array(x, copy=True),
    "device_put": lambda x: jax.device_put(x) + 1,
    "name": lambda x: ad_checkpoint.checkpoint_name(x, "x") + 1,
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
    "optimization_barrier": lambda x: lax.optimization_barrier(x) + 1,
    "clamp": lambda x: jnp.clip(x, -1, 1.5),
    "clamp_by_arrays": lambda x: lax.clamp(-jnp.abs(x) / 2, x, x**2),
    "min": lambda x: jnp.minimum(x, 0.5),
    "max_of_zeros": lambda x: jnp.maximum(x[:, :1], jnp.zeros(x.shape)),
    "max": lambda x: jnp.maximum(x, x * x - 1),
    "rem": lambda x: lax.rem(x, 0.7),
    "mod": lambda x: x % 0.7,
    "div": lambda x: 3 / (x * x + 1),
    "eq": lambda x: jnp.floor(x) == 1,
    "ne": lambda x: jnp.floor(x) != 1,
    "lt": lambda x: x < 1,
    "le": lambda x: x <= 1,
    "gt": lambda x: x > 1,
    "ge": lambda x: x >= 1,
    "where": lambda x: jnp.where(x > 0, x, 2 * x + 1),
    "float16": lambda x: (x.astype(jnp.float16) * 2).astype(jnp.float32),
    "bfloat16": lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32),
    "to_int": lambda x: (x * 9).astype(jnp.int32),
    "to_bool": lambda x: x.astype(bool),
    "layer_norm": lambda x: nn.standardize(x, axis=(1, 2, 3)),
    "variance": lambda x: jnp.var(x, axis=2),
}
POSITIVE = {
    "log": jnp.log,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "pow": lambda x: x**1.7,
    "pow_of_arrays": lambda x: x**x,
    "acosh": lambda x: jnp.arccosh(1 + x),
    "acos": lambda x: jnp.arccos(x / 4),
    "asin": lambda x: jnp.arcsin(x / 4),
    "atanh": lambda x: jnp.arctanh(x / 4),
}
SHAPES = {
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "reshape_images_inside": lambda x: jnp.sum(x.reshape(2, x.shape[0] * 6, 6), axis=2),
    "flatten_and_back": lambda x: x.reshape(x.shape[0], -1).reshape(x.shape) + 1,
    "squeeze": lambda x: jnp.squeeze(x[:, :, :1], 2),
    "expand_dims": lambda x: x[:, None, ..., None],
    "transpose": lambda x: x.transpose(0, 3, 2, 1),
    "moved": lambda x: jnp.moveaxis(x, 0, 2) * 2,
    "transpose_twice": lambda x: (x.transpose(0, 3, 1, 2) + 1).transpose(0, 2, 3, 1),
    "transpose_of_reshape": lambda x: x.reshape(-1, 24, 3).transpose(0, 2, 1).reshape(-1, 3, 4, 6),
    "broadcast_in_dim": lambda x: jnp.broadcast_to(x[:, None], (len(x), 2, *x.shape[1:])),
    "broadcast_images": lambda x: jnp.broadcast_to(weights(4, 6, 3)[None], x.shape),
    "broadcast_then_add": lambda x: jnp.ones_like(x) * 2 + x,
    "broadcast_sum": lambda x: jnp.sum(jnp.broadcast_to(x[:, :, :1], x.shape), axis=2),
    "broadcast_twice": lambda x: jnp.broadcast_to(
        jnp.broadcast_to(x[:, :1, :1], (len(x), 1, 5, 3)), (len(x), 2, 5, 3)
    ),
    "repeat": lambda x: jnp.repeat(x, 4, axis=-1),
    "repeat_rows": lambda x: jnp.repeat(x, 3, axis=1),
    "repeat_one": lambda x: jnp.repeat(x[..., :1], 3, axis=-1),
    "repeat_before": lambda x: jnp.broadcast_to(x[:, None], (len(x), 2, 4, 6, 3)).reshape(
        -1, 8, 6, 3
    ),
    "repeat_images": lambda x: jnp.repeat(x, 2, axis=0),
    "repeat_twice": lambda x: jnp.repeat(jnp.repeat(x[:, :1], 2, axis=1), 2, axis=1) + 1,
    "tile": lambda x: jnp.tile(x, (1, 2, 1, 3)),
    "tile_images": lambda x: jnp.tile(x, (2, 1, 1, 1)),
    "full": lambda x: jnp.full(x.shape, 3.0),
    "concatenate": lambda x: jnp.concatenate([x, x * 2, jnp.zeros((len(x), 4, 6, 2))], axis=-1),
    "stack": lambda x: jnp.stack([x, 2 * x], axis=2),
    "unstack": lambda x: sum(jnp.unstack(x, axis=2)),
    "split": lambda x: jnp.split(x, [2, 3], axis=1)[0] * jnp.split(x, 2, axis=1)[1],
    "slice": lambda x: x[:, 1:-1, ::2, 1:],
    "slice_repeated": lambda x: jnp.zeros(x.shape)[:, 1:] + 1,
    "one_image": lambda x: x[:1],
    "rev": lambda x: x[:, ::-1, :, ::-1] + x,
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=3),
    "pad_cuts": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-1, 2, 0), (1, -2, 0), (0, 0, 0))),
    "pad_between": lambda x: lax.pad(x, 1.0, ((0, 0, 0), (1, 2, 2), (-1, 0, 1), (0, 0, 0))),
    "dynamic_slice": lambda x: lax.dynamic_slice_in_dim(x, 9, 3, axis=2),
    "dynamic_slice_from_a_constant": lambda x: lax.dynamic_slice_in_dim(
        x, jnp.argmax(jnp.arange(3) % 2), 2, axis=2
    ),
    "iota": lambda x: x + lax.broadcasted_iota(jnp.float32, (1, 4, 6, 3), 2),
    "iota_of_images_shape": lambda x: x * lax.broadcasted_iota(jnp.float32, x.shape, 1),
    "arange": lambda x: jnp.where((jnp.arange(6) < 3)[None, None, :, None], x, 0),
    "gather": lambda x: x[:, :, np.array([2, 0, -1])],
    "gather_last": lambda x: x[..., np.array([[2, 0]])],
    "take": lambda x: jnp.take(x, jnp.array([1, 3, 1]), axis=1),
    "take_clipped": lambda x: jnp.take(x, jnp.array([1, 30, -9]), axis=1, mode="clip"),
    "gather_two": lambda x: x[:, np.array([0, 3]), np.array([5, -1])],
    "table": lambda x: weights(5)[jnp.floor(x).astype(jnp.int32) + 2],
    "table_wraps": lambda x: weights(5, 2)[jnp.floor(x).astype(jnp.int32)],
    "table_filled": lambda x: jnp.take(weights(3, 2), jnp.floor(x * 2).astype(jnp.int32), axis=0),
    "table_clipped": lambda x: weights(3).at[jnp.floor(x * 2).astype(jnp.int32)].get(mode="clip"),
    "table_filled_with": lambda x: (
        weights(3, 3).at[jnp.floor(x * 2).astype(jnp.int32), 1].get(mode="fill", fill_value=7)
    ),
    "table_of_bytes": lambda x: weights(200)[(x * 64 + 128).astype(jnp.uint8) // 2],
    "table_clipped_by_bytes": lambda x: jnp.take(
        weights(300), (x + 2).astype(jnp.uint8), mode="clip"
    ),
    "table_of_other_wrap": lambda x: (
        weights(5)
        .at[(lambda i: jnp.where(i < 0, i + 2, i))(jnp.floor(x).astype(jnp.int32))]
        .get(mode="promise_in_bounds", wrap_negative_indices=False)
    ),
    "cond": lambda x: lax.cond(True, lambda x: x + 1, jnp.sin, x),
}
REDUCTIONS = {
    "reduce_sum": lambda x: jnp.sum(x, axis=(1, 3)),
    "reduce_all": lambda x: jnp.sum(x),
    "reduce_max": lambda x: jnp.max(x, axis=2),
    "reduce_min": lambda x: jnp.min(x, axis=(0, 2)),
    "reduce_prod": lambda x: jnp.prod(x, axis=3),
    "mean": lambda x: jnp.mean(x, axis=(1, 2)),
    "sum_over_another_number": lambda x: jnp.sum(x, axis=1) / 3,
    "mean_kept": lambda x: x - jnp.mean(x, axis=-1, keepdims=True),
    "reduce_and": lambda x: jnp.all(x > -1, axis=(1, 2)),
    "reduce_or": lambda x: jnp.any(x > 1.9, axis=2),
    "argmax": lambda x: jnp.argmax(x, axis=2),
    "argmin": lambda x: jnp.argmin(x, axis=-1),
    "argmax_of_transposed": lambda x: jnp.argmax(jnp.transpose(x, (0, 2, 3, 1)), axis=2),
    "argmax_of_ties": lambda x: jnp.argmax(jnp.floor(x), axis=1),
    "no_axes": lambda x: jnp.sum(x, axis=()),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "cumsum_reverse": lambda x: lax.cumsum(x, axis=2, reverse=True),
    "max_pool_2x2": lambda x: pooling.max_pool(x, 2),
    "max_pool_odd": lambda x: pooling.max_pool(x[:, 1:, :5], 2),
    "average_pool": lambda x: pooling.average_pool(x, 2),
    "average_pool_1": lambda x: pooling.average_pool(x, 1),
    "sum_pool": lambda x: jnp.sum(x.reshape(-1, 4, 3, 2, 3), axis=3),
    "max_of_channel_groups": lambda x: jnp.max(x.reshape(-1, 4, 2, 3, 3), axis=(3, 4)),
    "pool_of_convolution": lambda x: pooling.max_pool(nn.relu(convolution(x, (3, 3, 3, 4))), 2),
    "reduce_window_max": lambda x: nn.max_pool(x, (3, 2), strides=(2, 1), padding="SAME"),
    "reduce_window_sum": lambda x: nn.avg_pool(x, (2, 3), strides=(1, 2), padding="VALID"),
    "sum_window": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 1, 1), (1, 1, 1, 1), "SAME"),
    "dilated_window": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 3, 1)
    ),
}
PRODUCTS = {
    "conv_general_dilated": lambda x: convolution(x, (3, 3, 3, 5)),
    "conv_strided": lambda x: convolution(x, (3, 3, 3, 5), window_strides=(2, 2)),
    "conv_valid": lambda x: convolution(x, (2, 3, 3, 5), padding="VALID"),
    "conv_padded": lambda x: convolution(x, (3, 3, 3, 2), padding=((2, 0), (1, 3))),
    "conv_cut": lambda x: convolution(x, (1, 1, 3, 2), padding=((-1, 0), (1, -2))),
    "conv_dilated": lambda x: convolution(x, (2, 2, 3, 4), rhs_dilation=(2, 3), padding="VALID"),
    "conv_transposed": lambda x: convolution(
        x, (3, 3, 3, 4), lhs_dilation=(2, 2), padding=((1, 2), (1, 2))
    ),
    "conv_depthwise": lambda x: convolution(x, (3, 3, 1, 6), feature_group_count=3),
    "conv_nchw": lambda x: convolution(
        x.transpose(0, 3, 1, 2), (5, 3, 3, 3), ("NCHW", "OIHW", "NCHW")
    ),
    "conv_1d": lambda x: convolution(
        x[:, 0], (3, 3, 4), ("NHC", "HIO", "NHC"), window_strides=(2,)
    ),
    "two_convs": lambda x: convolution(nn.relu(convolution(x, (3, 3, 3, 4))), (3, 3, 4, 3)) + x,
    "dense": lambda x: x.reshape(-1, 72) @ weights(72, 5) + weights(1, 5),
    "dense_of_pixels": lambda x: x @ weights(3, 5),
    "matrix_first": lambda x: weights(5, 4) @ x.reshape(-1, 4, 18),
    "einsum_attention": lambda x: jnp.einsum("nyxc,nyzc->nyxz", x, x + 1),
    "einsum_batch_inside": lambda x: jnp.einsum("nyxc,cxk->nkyc", x, weights(3, 6, 2)),
    "einsum_two_sums": lambda x: jnp.einsum("nyxc,xck->nyk", x, weights(6, 3, 2)),
    "tensordot": lambda x: jnp.tensordot(x, weights(4, 3, 2, 5), axes=((1, 3), (0, 1))),
    "outer": lambda x: jnp.einsum("nc,nd->ncd", x[:, 0, 0], x[:, 1, 1]),
    "dot": lambda x: jnp.einsum("nc,nc->n", x[:, 0, 0], x[:, 1, 1]),
    "int8_product": lambda x: jnp.matmul(
        jnp.round(x * 9).astype(jnp.int8), jnp.ones((3, 2), jnp.int8) * 7
    ),
    "int8_to_int32": lambda x: jnp.matmul(
        jnp.round(x * 60).astype(jnp.int8),
        jnp.ones((3, 2), jnp.int8) * 7,
        preferred_element_type=jnp.int32,
    ),
}
INTEGERS = {
    "add": lambda x: x + x,
    "mul": lambda x: x * x,
    "sub": lambda x: x - 7,
    "div": lambda x: lax.div(x, x * 0 + 7),
    "rem": lambda x: lax.rem(x, x * 0 + 7),
    "neg": lambda x: -x,
    "max": lambda x: jnp.maximum(x, 9),
    "min": lambda x: jnp.minimum(x, 9),
    "clamp": lambda x: jnp.clip(x, 3, 70),
    "abs": jnp.abs,
    "sign": jnp.sign,
    "where": lambda x: jnp.where(x > 50, x, x + 1),
    "pow": lambda x: x**3,
    "select": lambda x: lax.select_n((x % 3).astype(jnp.int32), x, x * 0 + 1, x * 0 + 2),
    "and": lambda x: x & 12,
    "or": lambda x: x | 3,
    "xor": lambda x: x ^ 21,
    "not": jnp.invert,
    "shift_left": lambda x: x << 2,
    "shift_right_logical": lambda x: lax.shift_right_logical(x, x * 0 + 2),
    "shift_right_arithmetic": lambda x: x >> 2,
    "reduce_sum": lambda x: lax.reduce_sum_p.bind(x, axes=(2,), out_sharding=None),
    "reduce_max": lambda x: jnp.max(x, axis=1),
    "reduce_min": lambda x: jnp.min(x, axis=3),
    "reduce_prod": lambda x: jnp.prod(x[:, :2] // 9, axis=1),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "argmax": lambda x: jnp.argmax(x, axis=2),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))),
    "lt": lambda x: x < 40,
    "gather": lambda x: x[:, np.array([1, 0])],
    "concatenate": lambda x: jnp.concatenate([x, x], 1),
    "pool": lambda x: pooling.max_pool(x, 2),
    "to_float": lambda x: x.astype(jnp.float32) / 3,
    "broadcast": lambda x: jnp.full(x.shape, 3, x.dtype),
}
BOOLS = {
    "and": lambda x: x & x[:, ::-1],
    "or": lambda x: x | x[:, ::-1],
    "xor": lambda x: x ^ x[:, ::-1],
    "not": jnp.logical_not,
    "eq": lambda x: x == x[:, ::-1],
    "where": lambda x: jnp.where(x, x[:, ::-1], True),
    "all": lambda x: jnp.all(x, axis=1),
    "any": lambda x: jnp.any(x, axis=(1, 2)),
    "to_int": lambda x: x.astype(jnp.int8),
    "sum": lambda x: jnp.sum(x, axis=2),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=True),
    "rev": lambda x: x[:, ::-1],
    "max": lambda x: jnp.max(x, axis=1),
}
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32")
CASES = (
    {
        name: of_floats(function)
        for name, function in (UNARY | SHAPES | REDUCTIONS | PRODUCTS).items()
    }
    | {f"positive {name}": of_floats(function, 1, 90) for name, function in POSITIVE.items()}
    | {
        f"{dtype} {name}": of_dtype(jnp.dtype(dtype), function)
        for dtype in DTYPES
        for name, function in INTEGERS.items()
    }
    | {f"bool {name}": of_dtype(bool, function) for name, function in BOOLS.items()}
)

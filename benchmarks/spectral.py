"""Compares spectral pooling by products of matrices with the same pooling by Fourier transforms.

    python benchmarks/spectral.py       prints a table, writes runs/benchmarks/spectral.json

The layers have the sizes, strides and channels of ResNet-18 with learned strides on CIFAR-10. The
data are random. Three poolings are measured forward, and forward with the gradients of images and
strides: fixed spectral pooling, and learned strides in both readings. Their forms run in turn with
a 3x3 convolution that keeps the size and the number of channels. The table has medians of ratios:
products over Fourier transforms, and products over the convolution, with gradients. In half
precision, Fourier transforms are computed in float32.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from measure import PASSES, add_out, alternated, compiled_pass, ratio, write

from mcn_jax.memory import keep_freed_memory
from mcn_jax.ops import diffstride
from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.spectral import fixed_pool_size, multiply_adds, spectral_pool

POOLINGS = ("fixed", *diffstride.READINGS)
STRIDES = {32: 2.0, 24: 2.0, 20: 2.0, 18: 3.0}  # {pixels: stride}
CHANNELS = (64, 128, 256, 512)
# The forms may differ by this much, relative to the norm: float32 products may be rounded further.
TOLERANCE = {"float32": 2e-3, "bfloat16": 1e-2}


class Layer(NamedTuple):
    """A pooling layer.

    Attributes:
        size: height and width of the images in pixels.
        channels: of the images.
        batch: images.
    """

    size: int
    channels: int
    batch: int

    @property
    def stride(self) -> float:
        """In pixels, of both axes."""
        return STRIDES[self.size]

    def pooled(self, pooling: str) -> tuple[int, int]:
        """Returns height and width of the output of a pooling."""
        size = (self.size, self.size)
        if pooling == "fixed":
            return fixed_pool_size(size, (self.stride, self.stride))
        strides = np.full(2, self.stride, np.float32)
        return diffstride.pool_size(strides, size, reading=pooling)


def by_products(
    images: jax.Array, strides: jax.Array, pooling: str, pooled: tuple[int, int]
) -> jax.Array:
    """Pools images [N, H, W, C] as networks do."""
    if pooling == "fixed":
        return spectral_pool(images, pooled)
    return diffstride.diffstride_pool(images, strides, size=pooled, reading=pooling)


def by_fourier_transform(
    images: jax.Array, strides: jax.Array, pooling: str, pooled: tuple[int, int]
) -> jax.Array:
    """Pools images [N, H, W, C] with a transform, a mask, a crop, and the inverse transform."""
    spectrum = jnp.fft.rfft2(images.astype(jnp.float32), axes=(1, 2))
    high, columns = pooled[0] // 2, pooled[1] // 2 + 1
    low = pooled[0] - high
    kept = [spectrum[:, :low, :columns], spectrum[:, spectrum.shape[1] - high :, :columns]]
    cropped = jnp.concatenate(kept, 1)
    if pooling != "fixed":
        masks = diffstride.masks(strides, images.shape[1:3], pooled, reading=pooling)
        in_order = jnp.roll(masks[0], -high)
        cropped = cropped * in_order[None, :, None, None] * masks[1][None, None, :, None]
    return jnp.fft.irfft2(cropped, s=pooled, axes=(1, 2)).astype(images.dtype)


FORMS: dict[str, Callable[..., jax.Array]] = {
    "products": by_products,
    "fourier": by_fourier_transform,
}


def programs(layer: Layer, name: str, dtype: jnp.dtype) -> dict[str, functools.partial[Any]]:
    """Returns the compiled program of each pooling in each form, and of a convolution.

    Args:
        layer: the layer.
        name: one of `PASSES`.
        dtype: of the images.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (layer.batch, layer.size, layer.size, layer.channels)
    images = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (3, 3, layer.channels, layer.channels), dtype)
    strides = jnp.full(2, layer.stride)
    functions: dict[str, tuple[Callable[..., jax.Array], jax.Array]] = {
        "convolution": (lambda x, kernel: convolve(x, kernel, (1, 1), "SAME"), kernel)
    }
    for pooling in POOLINGS:
        for form, pool in FORMS.items():
            function = functools.partial(pool, pooling=pooling, pooled=layer.pooled(pooling))
            functions[f"{pooling} {form}"] = (function, strides)
    compiled = {}
    for side, (function, parameter) in functions.items():
        output = jax.eval_shape(function, images, parameter)
        cotangent = jax.random.normal(keys[2], output.shape, dtype)
        compiled[side] = compiled_pass(name, function, (images, parameter), cotangent)
    return compiled


def check_forms(compiled: dict[str, functools.partial[Any]], dtype: jnp.dtype) -> None:
    """Raises an AssertionError if two forms of a pooling have different results."""
    for pooling in POOLINGS:
        results = [jax.tree.leaves(compiled[f"{pooling} {form}"]()) for form in FORMS]
        for first, second in zip(*results, strict=True):
            difference, exact = (
                float(jnp.linalg.norm(array.astype(jnp.float32)))
                for array in (first - second, second)
            )
            if not difference <= TOLERANCE[dtype.name] * exact:
                raise AssertionError(f"the forms of {pooling} differ by {difference} of {exact}")


def measure(layer: Layer, dtype: jnp.dtype, repeats: int, calls: int) -> dict[str, Any]:
    """Returns median seconds of each side, and median ratios of sides in the same turn."""
    size = (layer.size, layer.size)
    record: dict[str, Any] = {
        **layer._asdict(),
        "stride": layer.stride,
        "pooled": {pooling: layer.pooled(pooling) for pooling in POOLINGS},
        "multiply_adds": {
            pooling: multiply_adds(size, layer.pooled(pooling), is_real=pooling == "paper")
            for pooling in POOLINGS
        },
    }
    for name in PASSES:
        compiled = programs(layer, name, dtype)
        check_forms(compiled, dtype)
        times = alternated(compiled, repeats, calls)
        record[name] = {
            "median_seconds": {side: statistics.median(found) for side, found in times.items()},
            "products_over_fourier": {
                pooling: ratio(times, f"{pooling} products", f"{pooling} fourier")
                for pooling in POOLINGS
            },
            "products_over_convolution": {
                pooling: ratio(times, f"{pooling} products", "convolution") for pooling in POOLINGS
            },
        }
    return record


def print_table(records: list[dict[str, Any]]) -> None:
    """Prints the ratios of the layers."""
    table = rich.table.Table(
        "channels", "size", "stride", "batch",
        *(f"{pooling} / FFT, {name}" for pooling in POOLINGS for name in PASSES),
        *(f"{pooling} / conv" for pooling in POOLINGS),
    )  # fmt: skip
    for record in records:
        whole = record["with gradient"]
        table.add_row(
            *(str(record[name]) for name in ("channels", "size", "stride", "batch")),
            *(
                f"{record[name]['products_over_fourier'][pooling]:.2f}"
                for pooling in POOLINGS
                for name in PASSES
            ),
            *(f"{whole['products_over_convolution'][pooling]:.2f}" for pooling in POOLINGS),
        )
    rich.console.Console(width=160, highlight=False).print(table)


def main() -> None:
    """Measures all layers."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCE))
    parser.add_argument("--batch_size", type=int, default=8, help="images (default: 8)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=tuple(STRIDES), choices=tuple(STRIDES),
        help="pixels of the images (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--channels", type=int, nargs="+", default=CHANNELS, help="channels of the images"
    )
    parser.add_argument("--repeats", type=int, default=15, help="number of counted turns")
    parser.add_argument("--calls", type=int, default=1, help="calls per measurement")
    add_out(parser, "spectral.json")
    options = parser.parse_args()
    records = []
    for size in options.sizes:
        for channels in options.channels:
            layer = Layer(size, channels, options.batch_size)
            records.append(measure(layer, jnp.dtype(options.dtype), options.repeats, options.calls))
            print(layer, flush=True)
    print_table(records)
    write(
        options.out,
        {
            "device": jax.local_devices()[0].device_kind,
            "dtype": options.dtype,
            "repeats": options.repeats,
            "calls": options.calls,
            "layers": records,
        },
    )


if __name__ == "__main__":
    main()

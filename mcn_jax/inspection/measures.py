"""What the layers of a network cost, how their filters fare, and how two networks differ."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax import model_file, ops
from mcn_jax.errors import InputError
from mcn_jax.inspection.network import Inspected, Layer
from mcn_jax.layers import Conv, MCConv
from mcn_jax.ops import packing
from mcn_jax.ops.costs import multiply_adds
from mcn_jax.ops.fastest import Shape


def output_pixels(inspected: Inspected) -> dict[str, int]:
    """How many pixels the output of every convolution has, by its name."""
    pixels: dict[str, int] = {}
    module = model_file.make_network(inspected.network, inspected.num_classes)

    def note(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        output = call(*arguments, **keywords)
        if isinstance(context.module, MCConv | Conv) and context.method_name == "__call__":
            _, height, width, _ = output.shape
            pixels["/".join(context.module.path)] = height * width
        return output

    images = jax.ShapeDtypeStruct((1, *inspected.image_shape), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(module.init, jax.random.key(0), images)
    return pixels


def describe(inspected: Inspected) -> dict[str, Any]:
    """Everything that the command prints, as numbers.

    Returns:
        "path".
        "layers": a record a layer with "layer", "kind", "shape", "weights", "bits" (of its weights,
            as a model file holds them) and "float32_bits". Of an MCconv also "in_maps",
            "out_maps", "m_filters" (their number of elements), "m_and_center_bits", "m_min",
            "m_max", and "multiply_adds_direct" and "multiply_adds_factored" of one image; where
            filters are binary, "centers" and "shares" of weights at each; and where there are
            latent filters, too, "quantization_error" as in `mcn_jax.health`.
        "totals": "filter_bits" and "float32_filter_bits" of all convolutions, "bits" and
            "float32_bits" of everything, "multiply_adds_direct" of all convolutions and
            "multiply_adds_factored" of all MCconvs, of one image; "file_bytes", the file's or those
            of the checkpoint's files together.
    """
    pixels = output_pixels(inspected)
    records = [
        _mcconv_record(name, layer, pixels[name]) for name, layer in inspected.layers.items()
    ]
    for name, group in _other_layers(inspected).items():
        weights = sum(array.size for last, array in group.items() if last != "kernel_scale")
        record: dict[str, Any] = {
            "layer": name,
            "kind": _kind(group),
            "shape": list(max(group.values(), key=np.size).shape),
            "weights": weights,
            "bits": sum(8 * array.nbytes for array in group.values()),
            "float32_bits": 32 * weights,
        }
        if record["kind"] == "convolution":
            record["multiply_adds_direct"] = pixels[name.removesuffix("/conv")] * weights
        records.append(record)
    filters = [r for r in records if r["kind"] in ("MCconv", "convolution")]
    modulated = [r for r in records if r["kind"] == "MCconv"]
    totals = {
        "filter_bits": sum(r["bits"] for r in filters),
        "float32_filter_bits": sum(r["float32_bits"] for r in filters),
        "bits": sum(r["bits"] + r.get("m_and_center_bits", 0) for r in records),
        "float32_bits": sum(r["float32_bits"] + 32 * r.get("m_filters", 0) for r in records),
        "multiply_adds_direct": sum(r["multiply_adds_direct"] for r in filters),
        "multiply_adds_factored": sum(r["multiply_adds_factored"] for r in modulated),
        "file_bytes": inspected.file_bytes,
    }
    return {"path": str(inspected.path), "layers": records, "totals": totals}


def _mcconv_record(name: str, layer: Layer, pixels: int) -> dict[str, Any]:
    m_filters, filters = layer.m_filters, layer.filters
    planes, (channels, maps) = m_filters.shape[-1], filters.shape[2:]
    one_pixel = Shape(channels // planes, maps, planes, size=1, stride=1)
    record: dict[str, Any] = {
        "layer": name,
        "kind": "MCconv",
        "shape": list(filters.shape),
        "in_maps": one_pixel.in_maps,
        "out_maps": maps,
        "weights": filters.size,
        "bits": 32 * filters.size,
        "float32_bits": 32 * filters.size,
        "m_filters": m_filters.size,
        "m_min": float(m_filters.min()),
        "m_max": float(m_filters.max()),
        "multiply_adds_direct": pixels * multiply_adds(one_pixel, "direct"),
        "multiply_adds_factored": pixels * multiply_adds(one_pixel, "factored"),
        "m_and_center_bits": 32 * m_filters.size,
    }
    if layer.centers is not None and layer.codes is not None:
        count = np.bincount(layer.codes.ravel(), minlength=len(layer.centers))
        record["bits"] = filters.size * packing.bits_per_weight(len(layer.centers))
        record["m_and_center_bits"] += 32 * len(layer.centers)
        record["centers"] = [float(center) for center in layer.centers]
        record["shares"] = [float(share) for share in count / filters.size]
        if layer.latent_filters is not None:
            record["quantization_error"] = quantization_error(layer)
    return record


def quantization_error(layer: Layer) -> float:
    """||C - C-hat * M|| / ||C||, the root mean square over the planes."""
    if layer.latent_filters is None:
        raise ValueError("a layer without latent filters has no quantization error")
    # The filter loss is half the sum over the planes.
    latent, filters, m_filters = map(
        jnp.asarray, (layer.latent_filters, layer.filters, layer.m_filters)
    )
    loss = ops.filter_loss(latent, filters, m_filters)
    planes = layer.m_filters.shape[-1]
    return float(np.sqrt(2 * loss / planes / np.sum(layer.latent_filters**2)))


def _other_layers(inspected: Inspected) -> dict[str, dict[str, np.ndarray]]:
    """{"dense_1": {"kernel": ..., "bias": ...}, ...}, what is no MCconv."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in inspected.stored.items():
        path, _, last = name.rpartition("/")
        if path not in inspected.layers:
            layers.setdefault(path, {})[last] = array
    return layers


def _kind(group: Mapping[str, np.ndarray]) -> str:
    kernel = group.get("kernel")
    if kernel is None:
        return "batch norm"
    return "convolution" if kernel.ndim == 4 else "dense"


def compare(a: Inspected, b: Inspected) -> list[dict[str, Any]]:
    """What has changed in every MCconv from `a` to `b`.

    Returns:
        A record a layer: "layer"; "flip_ratio", the share of weights that moved to another center
        (null unless both are binary with as many centers); "m_drift", ||M_b - M_a|| / ||M_a||; and
        "latent_drift", likewise of C (null of model files).

    Raises:
        InputError: if the two are not the same network.
    """
    shapes_a = {name: layer.filters.shape for name, layer in a.layers.items()}
    shapes_b = {name: layer.filters.shape for name, layer in b.layers.items()}
    if not shapes_a or shapes_a != shapes_b:
        raise InputError(
            f"{a.path} and {b.path} cannot be compared: they have not the same MCconv layers"
        )
    records = []
    for name, before in a.layers.items():
        after = b.layers[name]
        flips = None
        if before.binary_as(after):
            flips = float(np.mean(before.codes != after.codes))
        latent = None
        if before.latent_filters is not None and after.latent_filters is not None:
            latent = _drift(before.latent_filters, after.latent_filters)
        records.append(
            {
                "layer": name,
                "flip_ratio": flips,
                "m_drift": _drift(before.m_filters, after.m_filters),
                "latent_drift": latent,
            }
        )
    return records


def _drift(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))

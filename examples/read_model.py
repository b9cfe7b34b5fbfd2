"""Runs a simple CNN with binary filters and a dense head from a model file, with NumPy alone.

It reads MCconv, filter maps, and the layers with one-bit weights and float activations.

Command: python read_model.py MODEL IMAGE.npy, with images [N, Y, X, C] uint8. The code follows
docs/format.md and is a template for readers in other languages. It does not check the file, so use
it only with files that you trust.
"""

import json
import pathlib
import sys

import numpy as np


def read(path):
    """Returns (header, tensors) of a model file."""
    content = pathlib.Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    index = json.loads(content[8:start])
    header = json.loads(index.pop("__metadata__")["mcn_jax"])
    types = {"U8": "u1", "I8": "i1", "F16": "<f2", "F32": "<f4"}
    tensors = {}
    for name, entry in index.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        tensor = np.frombuffer(content[first:last], types[entry["dtype"]])
        tensors[name] = tensor.reshape(entry["shape"])
    return header, tensors


def kernel(header, tensors, layer):
    """Returns the kernel that a layer convolves with, [W, W, C, channels]."""
    if f"{layer}/filter_map" in tensors:
        return cut(header, tensors[f"{layer}/filter_map"], layer)
    shape = header["filter_shapes"][layer]
    bits = tensors[f"{layer}/bits"][..., None] >> np.arange(8, dtype="u1") & 1
    digits = bits.reshape(len(bits), -1)[:, : np.prod(shape)].astype(int)
    codes = (digits << np.arange(len(digits))[:, None]).sum(0).reshape(shape)
    if f"{layer}/centers" not in tensors:
        exponents, scales = tensors.get(f"{layer}/exponents"), tensors.get(f"{layer}/scales")
        return (2 * codes - 1) * (scales if exponents is None else 2.0**exponents)
    filters = tensors[f"{layer}/centers"][codes]
    if len(shape) == 3:  # of a filter map
        return cut(header, filters, layer)
    m_filters = tensors[f"{layer}/m_filters"]
    pattern = header["network"].get("plane_signs", "")
    read = [of_plane(filters, k, m_filters.shape[2], pattern) for k in range(m_filters.shape[2])]
    return (np.stack(read, -1) * m_filters[:, :, None, None]).reshape(*shape[:3], -1)


def of_plane(filters, k, planes, pattern):
    """Returns the filters [W, W, C, H] as output plane k of an MCconv reads them."""
    i = np.arange(planes)
    order, signs = i, np.ones(planes)
    if pattern == "hadamard":
        signs = np.array([1 - 2 * (bin(k & n).count("1") % 2) for n in range(planes)])
    elif pattern == "quaternion":
        negative = {(0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (3, 1)}
        order, signs = k ^ i, np.array([-1 if (k, n) in negative else 1 for n in range(planes)])
    elif pattern == "circulant":
        order = (i - k) % planes
    groups = filters.reshape(*filters.shape[:2], -1, planes, filters.shape[3])
    return (groups[:, :, :, order] * signs[:, None]).reshape(filters.shape)


def cut(header, filter_map, layer):
    """Returns the filters of 3x3 pixels that are windows of a filter map [2*K1, 2*K2, C]."""
    network, (rows, columns, channels) = header["network"], filter_map.shape
    count = network["widths"][int(layer.removeprefix("conv_")) - 1] * network["planes"]
    k = np.arange(count)
    k1, k2 = k // (columns // 2) % (rows // 2), k % (columns // 2)
    k3, shifts = k // (rows * columns // 4), count // (rows * columns // 4)
    y, x, c = np.ogrid[:3, :3, :channels]
    return filter_map[
        (2 * k1 + y[..., None]) % rows,
        (2 * k2 + x[..., None]) % columns,
        (channels // shifts * k3 + c[..., None]) % channels,
    ]


def dense(tensors, layer, x):
    """Returns x @ kernel + bias."""
    scale = tensors.get(f"{layer}/kernel_scale", np.float32(1))
    return x @ (tensors[f"{layer}/kernel"].astype("f4") * scale) + tensors[f"{layer}/bias"]


def logits(header, tensors, images):
    """Returns the logits [N, classes] of images [N, Y, X, C] uint8."""
    spec, network = header["images"], header["network"]
    if size := spec["image_size"]:
        above = [(size - n) // 2 for n in images.shape[1:3]]
        pads = [(a, size - n - a) for a, n in zip(above, images.shape[1:3], strict=True)]
        images = np.pad(images, [(0, 0), *pads, (0, 0)])
    x = (images.astype("f4") / 255 - np.float32(spec["mean"])) / np.float32(spec["std"])
    planes = network.get("input_planes")  # only an MCconv takes maps of K planes
    if planes == "rgbx":
        x = np.concatenate([x, x.mean(-1, keepdims=True)], -1)
    elif planes is not None:
        x = (x[..., :1] if planes == "first" else x).repeat(network["planes"], -1)
    for layer in range(1, len(network["widths"]) + 1):
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        taps = kernel(header, tensors, f"conv_{layer}")
        x = np.einsum("nyxcij,ijch->nyxh", windows, taps, optimize=True)
        x = x * tensors[f"batch_norm_{layer}/scale"] + tensors[f"batch_norm_{layer}/offset"]
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1).max((2, 4))
        x = np.maximum(x, 0)
    x = np.maximum(dense(tensors, "dense_1", x.reshape(len(x), -1)), 0)
    return dense(tensors, "dense_2", x)


if __name__ == "__main__":
    header, tensors = read(sys.argv[1])
    for row in logits(header, tensors, np.load(sys.argv[2])):
        name = header["class_names"][row.argmax()]
        print(name if name.isprintable() else ascii(name))

"""Runs a simple CNN with binary filters from a model file of version 2, with NumPy alone.

It reads MCconv, filter maps, and the layers with one-bit weights and float activations, with the
heads "dense" and "linear".

Command: python read_model.py MODEL IMAGE.npy, with images [N, Y, X, C] uint8. The code follows
docs/format.md and is a template for readers in other languages. It does not check the file, so use
it only with files that you trust.
"""

import json
import math
import pathlib
import sys

import numpy as np

# Fields that a header leaves out if they have these values.
NETWORK = {
    "planes": 4, "input_planes": "copy", "plane_signs": "", "num_centers": 2,
    "dense_features": 1024,
}  # fmt: skip
ONE_SCALE = ("binaryconnect", "mcdonnell", "dorefa")  # others have one for each output channel


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
        tensors[name] = np.frombuffer(content[first:last], types[entry["dtype"]])
    return header, tensors


class Parts:
    """The tensors of a file, which hold the parts of all layers one after another."""

    def __init__(self, tensors):
        self.tensors, self.taken = tensors, dict.fromkeys(tensors, 0)

    def take(self, name, *shape):
        """Returns the part of the next layer; numbers become float32, and bits stay uint8."""
        first = self.taken[name]
        self.taken[name] += math.prod(shape)
        part = self.tensors[name][first : self.taken[name]].reshape(shape)
        return part if part.dtype == "u1" else part.astype("f4")

    def codes(self, shape, centers=2):
        """Returns the code of each weight of the next layer."""
        planes = (centers - 1).bit_length()
        packed = self.take("bits", planes, -(-math.prod(shape) // 8))
        bits = packed[..., None] >> np.arange(8, dtype="u1") & 1
        digits = bits.reshape(planes, -1)[:, : math.prod(shape)].astype(int)
        return (digits << np.arange(planes)[:, None]).sum(0).reshape(shape)


def kernel(network, parts, inputs, maps):
    """Returns the kernel of the next layer, [3, 3, inputs, maps * K]."""
    conv, planes, centers = network["conv"], network["planes"], network["num_centers"]
    outputs = maps * planes
    if conv == "mcconv":
        codes = parts.codes((3, 3, inputs, maps), centers)
        filters = parts.take("centers", centers)[codes]
        m_filters = parts.take("m_filters", 3, 3, planes)[:, :, None, None]
        read = [of_plane(filters, k, planes, network["plane_signs"]) for k in range(planes)]
        return (np.stack(read, -1) * m_filters).reshape(3, 3, inputs, outputs)
    if conv.startswith("filter_map"):
        return cut(network, parts, inputs, outputs)
    signs = 2 * parts.codes((3, 3, inputs, outputs)) - 1
    if conv in ("irnet", "recu"):
        return signs * 2 ** parts.take("exponents", outputs)
    return signs * parts.take("scales", 1 if conv in ONE_SCALE else outputs)


def of_plane(filters, k, planes, pattern):
    """Returns the filters [W, W, C, H] as output plane k of an MCconv reads them."""
    i = np.arange(planes)
    order, signs = i, np.ones(planes, int)
    if pattern == "hadamard":
        signs = np.array([1 - 2 * (bin(k & n).count("1") % 2) for n in range(planes)])
    elif pattern == "quaternion":
        negative = {(0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (3, 1)}
        order, signs = k ^ i, np.array([-1 if (k, n) in negative else 1 for n in range(planes)])
    elif pattern == "circulant":
        order = (i - k) % planes
    groups = filters.reshape(*filters.shape[:2], -1, planes, filters.shape[3])
    return (groups[:, :, :, order] * signs[:, None]).reshape(filters.shape)


def cut(network, parts, inputs, outputs):
    """Returns the filters of 3x3 pixels that are windows of a filter map."""
    shifts = math.gcd(2 if outputs <= 32 else 4 if outputs <= 256 else 8, outputs, inputs)
    windows = outputs // shifts
    columns = next(n for n in range(math.isqrt(windows), 0, -1) if windows % n == 0)
    shape = (2 * windows // columns, 2 * columns, inputs)
    if network["conv"] == "filter_map":
        filter_map = parts.take("filter_map", *shape)
    else:
        centers = 2 if network["conv"] == "filter_map_sign" else network["num_centers"]
        codes = parts.codes(shape, centers)
        filter_map = parts.take("centers", centers)[codes]
    k3, k = np.divmod(np.arange(outputs), windows)
    y, x, c = np.ogrid[:3, :3, :inputs]
    return filter_map[
        (2 * (k // columns) + y[..., None]) % shape[0],
        (2 * (k % columns) + x[..., None]) % shape[1],
        (inputs // shifts * k3 + c[..., None]) % inputs,
    ]


def dense(parts, x, features):
    """Returns x @ kernel + bias of the next dense layer."""
    taken = parts.take("dense/kernel", x.shape[1], features)
    if "dense/kernel_scale" in parts.tensors:
        taken = taken * parts.take("dense/kernel_scale", features)
    return x @ taken + parts.take("dense/bias", features)


def logits(header, tensors, images):
    """Returns the logits [N, classes] of images [N, Y, X, C] uint8."""
    spec, network, parts = header["images"], NETWORK | header["network"], Parts(tensors)
    if size := spec.get("image_size"):
        above = [(size - n) // 2 for n in images.shape[1:3]]
        pads = [(a, size - n - a) for a, n in zip(above, images.shape[1:3], strict=True)]
        images = np.pad(images, [(0, 0), *pads, (0, 0)])
    x = (images.astype("f4") / 255 - np.float32(spec["mean"])) / np.float32(spec["std"])
    if network["conv"] == "mcconv":  # takes maps of K planes
        if network["input_planes"] == "rgbx":
            x = np.concatenate([x, x.mean(-1, keepdims=True)], -1)
        else:
            x = x[..., :1] if network["input_planes"] == "first" else x
            x = x.repeat(network["planes"], -1)
    for maps in network["widths"]:
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        taps = kernel(network, parts, x.shape[-1], maps)
        x = np.einsum("nyxcij,ijch->nyxh", windows, taps, optimize=True)
        channels = x.shape[-1]
        x = x * parts.take("batch_norm/scale", channels)
        x = x + parts.take("batch_norm/offset", channels)
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1).max((2, 4))
        x = np.maximum(x, 0)
    x = x.reshape(len(x), -1)
    if network["head"] == "dense":
        x = np.maximum(dense(parts, x, network["dense_features"]), 0)
    return dense(parts, x, len(header["class_names"]))


if __name__ == "__main__":
    header, tensors = read(sys.argv[1])
    for row in logits(header, tensors, np.load(sys.argv[2])):
        name = header["class_names"][row.argmax()]
        print(name if name.isprintable() else ascii(name))

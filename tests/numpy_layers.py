"""Computes layers in numpy, one output pixel at a time, for tests of whole networks."""

import numpy as np


def convolved(x, kernel, pads, strides=1):
    """Cross-correlates [N, Y, X, C] with [W, W, C, O] after padding each side by (low, high)."""
    size = len(kernel)
    x = np.pad(np.asarray(x, np.float64), ((0, 0), pads, pads, (0, 0)))
    rows, columns = (pixels - size + 1 for pixels in x.shape[1:3])
    return np.stack(
        [
            np.stack(
                [
                    np.tensordot(x[:, i : i + size, j : j + size], np.asarray(kernel), 3)
                    for j in range(0, columns, strides)
                ],
                axis=1,
            )
            for i in range(0, rows, strides)
        ],
        axis=1,
    )


def pooled(x, window, strides, reduce):
    """Reduces the pixels of each window inside the image; every window begins inside it.

    The last window is the first one that reaches the border.
    """

    def starts(pixels):
        found = [0]
        while found[-1] + window < pixels:
            found.append(found[-1] + strides)
        return found

    rows, columns = starts(x.shape[1]), starts(x.shape[2])
    return np.stack(
        [
            np.stack(
                [reduce(x[:, i : i + window, j : j + window], axis=(1, 2)) for j in columns], axis=1
            )
            for i in rows
        ],
        axis=1,
    )


def normed(x, variables, name):
    """Applies the batch norm of a network with its stored statistics."""
    params, statistics = variables["params"][name], variables["batch_stats"][name]
    scale = params["scale"] / np.sqrt(statistics["var"] + 1e-5)
    return (x - statistics["mean"]) * scale + params["bias"]

"""Implements the equations of Wang et al. 2018 with numpy and loops.

They are written from the paper, not from the code. Tests compare the code with them.
"""

import itertools

import numpy as np


def nearest(value, centers):
    """Eq. 6 for any number of centers: the nearest one, and the higher one at equal distance."""
    best = centers[0]
    for center in centers[1:]:
        if not abs(value - best) < abs(value - center):
            best = center
    return best


def binary(latent, centers):
    return np.array([nearest(value, centers) for value in latent.ravel()]).reshape(latent.shape)


def brute_force_kmeans(values, num_centers):
    """Returns the least sum of squares over all ways to cut the sorted values into clusters."""
    ordered = np.sort(np.ravel(values))
    best = np.inf
    for cuts in itertools.combinations(range(1, len(ordered)), num_centers - 1):
        clusters = np.split(ordered, cuts)
        best = min(best, sum(((c - c.mean()) ** 2).sum() for c in clusters))
    return best


def quantization_cost(values, centers):
    """Returns the sum of squared distances to the nearest center."""
    return (np.abs(np.ravel(values)[:, None] - np.asarray(centers)[None, :]).min(1) ** 2).sum()


def reconstruct(filters, m):
    """Eqs. 3 to 5: K planes of Q for every filter, plane k being the filter times M_k."""
    taps, _, channels, out_maps = filters.shape
    planes = m.shape[-1]
    q = np.zeros((taps, taps, channels, out_maps * planes), filters.dtype)
    for h, k, c in itertools.product(range(out_maps), range(planes), range(channels)):
        q[:, :, c, h * planes + k] = filters[:, :, c, h] * m[:, :, k]
    return q


def padding_of(size, taps, stride, padding):
    """Returns (padding before, output size) of one axis.

    The rule for SAME is TensorFlow's, the one for CENTERED is PyTorch's.
    """
    if padding == "VALID":
        return 0, (size - taps) // stride + 1
    out = -(-size // stride)
    if padding == "CENTERED":
        return taps // 2, out
    return max((out - 1) * stride + taps - size, 0) // 2, out


def windows(x, taps, stride, padding):
    """Yields (output y, output x, tap y, tap x, input y, input x) for all taps inside the image."""
    before_y, out_y = padding_of(x.shape[1], taps, stride, padding)
    before_x, out_x = padding_of(x.shape[2], taps, stride, padding)
    for oy, ox, ty, tx in itertools.product(range(out_y), range(out_x), range(taps), range(taps)):
        y, x_ = oy * stride + ty - before_y, ox * stride + tx - before_x
        if 0 <= y < x.shape[1] and 0 <= x_ < x.shape[2]:
            yield oy, ox, ty, tx, y, x_


def correlate(x, q, stride=1, padding="SAME"):
    """Eqs. 7 to 9: cross-correlation of features [N, Y, X, C] with Q [W, W, C, O]."""
    taps = q.shape[0]
    _, out_y = padding_of(x.shape[1], taps, stride, padding)
    _, out_x = padding_of(x.shape[2], taps, stride, padding)
    out = np.zeros((x.shape[0], out_y, out_x, q.shape[-1]), x.dtype)
    for oy, ox, ty, tx, y, x_ in windows(x, taps, stride, padding):
        out[:, oy, ox] += x[:, y, x_] @ q[ty, tx]
    return out


def correlate_gradients(x, q, cotangent, stride=1, padding="SAME"):
    """Returns dL/dF and dL/dQ for a given dL/doutput."""
    dx, dq = np.zeros_like(x), np.zeros_like(q)
    for oy, ox, ty, tx, y, x_ in windows(x, q.shape[0], stride, padding):
        dx[:, y, x_] += cotangent[:, oy, ox] @ q[ty, tx].T
        dq[ty, tx] += x[:, y, x_].T @ cotangent[:, oy, ox]
    return dx, dq


def latent_gradient(dq, m, out_maps):
    """Eq. 12: dL/dC_h = sum over k of dL/dQ_hk * M_k."""
    planes = m.shape[-1]
    dc = np.zeros((*dq.shape[:3], out_maps), dq.dtype)
    for h, k, c in itertools.product(range(out_maps), range(planes), range(dq.shape[2])):
        dc[:, :, c, h] += dq[:, :, c, h * planes + k] * m[:, :, k]
    return dc


def m_gradient(dq, filters, planes):
    """Eq. 16: dL/dM_k = sum over filters and channels of dL/dQ_hk times the filter."""
    dm = np.zeros((*dq.shape[:2], planes), dq.dtype)
    _, _, channels, out_maps = filters.shape
    for h, k, c in itertools.product(range(out_maps), range(planes), range(channels)):
        dm[:, :, k] += dq[:, :, c, h * planes + k] * filters[:, :, c, h]
    return dm


def filter_loss(latent, filters, m, theta):
    """Eq. 1, one term for every filter and plane."""
    total = 0.0
    for k in range(m.shape[-1]):
        total += ((latent - filters * m[:, :, k][:, :, None, None]) ** 2).sum()
    return theta / 2 * total


def filter_loss_gradients(latent, filters, m, theta):
    """Eqs. 13 and 17."""
    d_latent, dm = np.zeros_like(latent), np.zeros_like(m)
    for k in range(m.shape[-1]):
        difference = latent - filters * m[:, :, k][:, :, None, None]
        d_latent += theta * difference
        dm[:, :, k] = -theta * (difference * filters).sum((2, 3))
    return d_latent, dm


def projection_term(latent, filters, d_latent, theta, eta1):
    """Third term of Eq. 10 as the book prints it (Eq. 3.19): the derivative with respect to C of
    theta/2 * (C-hat - eta1 * dL/dC-hat - C)^2."""
    return -theta * (filters - eta1 * d_latent - latent)

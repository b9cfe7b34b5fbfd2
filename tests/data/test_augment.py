"""Compares augmentations with numpy, and checks the distribution of their random choices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.config import DataConfig
from mcn_jax.data.augment import (
    color_jitter,
    cutout,
    mixup,
    normalise,
    random_crop,
    random_flip,
    training_inputs,
)
from mcn_jax.data.batches import Batch, Split
from mcn_jax.seeds import Purpose, example_keys
from small_runs import random_split

DRAWS = 10_000


def keys(seed, number):
    return jax.random.split(jax.random.key(seed), number)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(1, 256, shape).astype(np.uint8)


def test_random_crop_is_a_shift_with_zeros():
    images = pixels(0, 50, 6, 5, 2)
    crops = np.asarray(random_crop(jnp.asarray(images), keys(0, 50), 2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, crop, key in zip(padded, crops, keys(0, 50), strict=True):
        y, x = np.asarray(jax.random.randint(key, (2,), 0, 5))
        np.testing.assert_array_equal(crop, image[y : y + 6, x : x + 5])


def test_every_shift_is_equally_likely():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4] = 1
    crops = np.asarray(
        random_crop(jnp.asarray(np.repeat(image[None], DRAWS, 0)), keys(1, DRAWS), 2)
    )
    counts = crops.sum(0)[2:7, 2:7, 0]
    assert counts.sum() == DRAWS
    np.testing.assert_allclose(counts, DRAWS / 25, atol=5 * (DRAWS / 25) ** 0.5)


def test_random_flip_mirrors_half_of_the_images():
    images = np.arange(DRAWS * 6).reshape(DRAWS, 2, 3, 1)
    result = np.asarray(random_flip(jnp.asarray(images), keys(3, DRAWS)))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    kept = (result == images).all((1, 2, 3))
    assert np.all(mirrored ^ kept)
    np.testing.assert_allclose(mirrored.sum(), DRAWS / 2, atol=5 * DRAWS**0.5 / 2)


def test_shifts_and_flips_of_a_run_are_uniform_over_steps_and_positions():
    """Uses the keys of a run, for 100 steps of 100 examples."""
    marked = np.zeros((100, 9, 9, 1), np.uint8)
    marked[:, 4, 2] = 1  # left of the middle, so a flip changes the image

    @jax.jit
    def step(number):
        config = DataConfig(crop_padding=2, flip=True)
        inputs = training_inputs(
            Split(jnp.asarray(marked), jnp.zeros(100, int)),
            Batch(jnp.arange(100), jnp.arange(100)),
            functools.partial(example_keys, 7, step=number, positions=jnp.arange(100)),
            config,
            mean=(0.0,),
            std=(1 / 255,),
            dtype=jnp.dtype("float32"),
        )
        return inputs.images[..., 0].sum(0)

    counts = sum(np.asarray(step(number)) for number in range(100)).round()
    assert counts.sum() == DRAWS
    # Column 2 shifts by -2 to 2, to 0 to 4. Its mirror image, column 6, shifts to 4 to 8.
    expected = np.zeros((9, 9))
    expected[2:7, 0:5] += DRAWS / 50
    expected[2:7, 4:9] += DRAWS / 50
    np.testing.assert_allclose(counts, expected, atol=5 * (DRAWS / 25) ** 0.5)
    assert (counts[expected == 0] == 0).all()


def test_normalise():
    values = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    result = normalise(jnp.asarray(values), (0.0, 0.1, 0.5), (1.0, 0.2, 0.25), jnp.float32)
    np.testing.assert_allclose(result.ravel(), [0.0, 0.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_against_numpy(channels):
    images = pixels(4, 40, 5, 4, channels)
    result = np.asarray(color_jitter(jnp.asarray(images, jnp.float32), keys(5, 40), 0.4))
    for image, key, jittered in zip(images, keys(5, 40), result, strict=True):
        brightness, contrast, saturation = np.asarray(
            jax.random.uniform(key, (3,), minval=0.6, maxval=1.4), np.float64
        )
        expected = np.clip(image * brightness, 0, 255)
        gray = expected @ [0.299, 0.587, 0.114] if channels == 3 else expected[..., 0]
        expected = np.clip(contrast * expected + (1 - contrast) * gray.mean(), 0, 255)
        if channels == 3:
            gray = (expected @ [0.299, 0.587, 0.114])[..., None]
            expected = np.clip(saturation * expected + (1 - saturation) * gray, 0, 255)
        np.testing.assert_allclose(jittered, expected, rtol=1e-4, atol=1e-3)


def test_cutout_against_numpy():
    for size in (1, 4, 5):
        images = pixels(6, 200, 7, 9, 2).astype(np.float32)
        result = np.asarray(cutout(jnp.asarray(images), keys(7, 200), size))
        for image, key, cut in zip(images, keys(7, 200), result, strict=True):
            y, x = np.asarray(jax.random.randint(key, (2,), 0, jnp.array([7, 9])))
            expected = image.copy()
            top, left = y - size // 2, x - size // 2
            expected[max(top, 0) : top + size, max(left, 0) : left + size] = 0
            np.testing.assert_array_equal(cut, expected)


def test_every_pixel_is_the_center_of_a_cutout_equally_often():
    images = jnp.ones((DRAWS, 5, 5, 1))
    counts = (1 - np.asarray(cutout(images, keys(8, DRAWS), 1))).sum(0)[..., 0]
    assert counts.sum() == DRAWS
    np.testing.assert_allclose(counts, DRAWS / 25, atol=5 * (DRAWS / 25) ** 0.5)


def test_mixup_against_numpy():
    images = pixels(9, 8, 3, 3, 2).astype(np.float32)
    labels = np.arange(8)
    inputs = mixup(jnp.asarray(images), jnp.asarray(labels), keys(10, 8), 0.5)
    np.testing.assert_array_equal(inputs.labels, labels)
    np.testing.assert_array_equal(inputs.other_labels, [1, 0, 3, 2, 5, 4, 7, 6])
    shares = np.array([jax.random.beta(key, 0.5, 0.5) for key in keys(10, 8)])
    np.testing.assert_allclose(inputs.shares, shares, rtol=1e-6)
    for i, share in enumerate(shares):
        expected = share * images[i] + (1 - share) * images[i ^ 1]
        np.testing.assert_allclose(inputs.images[i], expected, rtol=1e-5)


def test_shares_of_mixup_are_beta_distributed():
    zeros = jnp.zeros((DRAWS, 1, 1, 1))
    shares = np.asarray(mixup(zeros, jnp.zeros(DRAWS, int), keys(11, DRAWS), 0.2).shares)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    np.testing.assert_allclose(shares.mean(), 0.5, atol=5 * 0.423 / DRAWS**0.5)
    np.testing.assert_allclose(shares.var(), 1 / (4 * 1.4), rtol=0.03)


def test_augmentations_come_in_order_and_use_streams_of_their_own():
    """All augmentations at once equal the single ones in sequence."""
    split = jax.tree.map(jnp.asarray, random_split(32, size=8))
    indices, positions = jnp.arange(32)[::-1], jnp.arange(100, 132)
    stream = functools.partial(example_keys, 3, step=jnp.int32(5), positions=positions)
    config = DataConfig(crop_padding=2, flip=True, color_jitter=0.3, cutout=3, mixup=0.4)
    inputs = training_inputs(
        split, Batch(indices, positions), stream, config,
        mean=(0.4,), std=(0.2,), dtype=jnp.dtype("float32"),
    )  # fmt: skip
    images = random_crop(split.images[indices], stream(Purpose.CROP), 2)
    images = random_flip(images, stream(Purpose.FLIP))
    images = color_jitter(images.astype(jnp.float32), stream(Purpose.COLOR), 0.3)
    images = normalise(images, (0.4,), (0.2,), jnp.dtype("float32"))
    images = cutout(images, stream(Purpose.CUTOUT), 3)
    expected = mixup(images, split.labels[indices], stream(Purpose.MIXUP), 0.4)
    for ours, theirs in zip(inputs, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    streams = [tuple(np.asarray(jax.random.key_data(stream(p))[0]).tolist()) for p in Purpose]
    assert len(set(streams)) == len(Purpose)

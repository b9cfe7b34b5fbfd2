import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.data.augment import normalise, random_crop, random_flip


def test_random_crop_is_a_shift_with_zeros():
    images = np.random.default_rng(0).integers(1, 256, (50, 6, 5, 2)).astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), 50)
    crops = np.asarray(random_crop(jnp.asarray(images), keys, 2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, crop in zip(padded, crops, strict=True):
        matches = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(image[y : y + 6, x : x + 5], crop)
        ]
        assert len(matches) == 1


def test_every_shift_is_equally_likely():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4] = 1
    keys = jax.random.split(jax.random.key(1), 10_000)
    crops = np.asarray(random_crop(jnp.asarray(np.repeat(image[None], 10_000, 0)), keys, 2))
    counts = crops.sum(0)[2:7, 2:7, 0]
    assert counts.sum() == 10_000
    np.testing.assert_allclose(counts, 400, atol=5 * 400**0.5)


def test_random_flip_mirrors_half_of_the_images():
    images = np.random.default_rng(2).integers(0, 256, (10_000, 2, 3, 1)).astype(np.uint8)
    keys = jax.random.split(jax.random.key(3), 10_000)
    result = np.asarray(random_flip(jnp.asarray(images), keys))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    kept = (result == images).all((1, 2, 3))
    assert np.all(mirrored | kept)
    symmetric = mirrored & kept
    np.testing.assert_allclose((mirrored & ~symmetric).sum(), 5000, atol=5 * 50)


def test_normalise():
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    result = normalise(jnp.asarray(pixels), (0.0, 0.1, 0.5), (1.0, 0.2, 0.25), jnp.float32)
    np.testing.assert_allclose(result.ravel(), [0.0, 0.5, 2.0], rtol=1e-6)

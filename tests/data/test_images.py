"""Tests the values of images that are decoded and cropped with Pillow."""

import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from mcn_jax.data import images
from mcn_jax.errors import InputError

RGB = images.PixelFormat(channels=3, background=255, exif_orientation=True)


def encoded(image, suffix="PNG", **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def ramp(height, width):
    """Returns an image with the row number as red and the column number as green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(height)[:, None]
    pixels[..., 1] = np.arange(width)[None, :]
    return pixels


def test_padding_centers_the_image():
    ones = np.ones((2, 3, 4, 1), np.uint8)
    padded = images.padded_to(ones, 8)
    assert padded.shape == (2, 8, 8, 1)
    assert padded[:, 2:5, 2:6].all()
    assert padded.sum() == ones.sum()
    assert images.padded_to(ones, 0) is ones


def test_every_kind_of_image_becomes_rgb_or_gray():
    colour = (200, 100, 50)
    rgb = Image.new("RGB", (7, 5), colour)
    luma = rgb.convert("L").getpixel((0, 0))
    for content, expected in (
        (encoded(rgb), colour),
        (encoded(rgb, "BMP"), colour),
        (encoded(rgb, "WEBP", lossless=True), colour),
        (encoded(rgb.convert("P", palette=Image.Palette.ADAPTIVE)), colour),
        (encoded(rgb.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"), colour),
        (encoded(rgb.convert("RGBA")), colour),
        (encoded(rgb.convert("L")), (luma,) * 3),
        (encoded(Image.new("1", (7, 5), 1)), (255,) * 3),
    ):
        pixels = images.decode(content, RGB)
        assert pixels.shape == (5, 7, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_allclose(pixels, np.broadcast_to(expected, (5, 7, 3)), atol=1)
    gray = images.decode(encoded(rgb), RGB._replace(channels=1))
    np.testing.assert_array_equal(gray, np.full((5, 7, 1), luma))
    for mode in ("RGB", "L", "CMYK"):
        content = encoded(rgb.convert(mode), "JPEG", quality=95)
        expected = (luma,) * 3 if mode == "L" else colour
        pixels = images.decode(content, RGB)
        np.testing.assert_allclose(pixels, np.broadcast_to(expected, (5, 7, 3)), atol=4)


def test_the_center_crop_takes_the_center():
    content = encoded(Image.fromarray(ramp(40, 100)))
    np.testing.assert_array_equal(
        images.center_crop(content, RGB, 40, 1.0), ramp(40, 100)[:, 30:70]
    )
    np.testing.assert_array_equal(
        images.center_crop(content, RGB, 20, 0.5), ramp(40, 100)[10:30, 40:60]
    )
    halved = images.center_crop(content, RGB, 20, 1.0)
    rows = np.arange(40).reshape(20, 2).mean(1)
    np.testing.assert_allclose(halved[2:-2, 5, 0], rows[2:-2], atol=1)


def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same():
    y, x = np.mgrid[:480, :640] / 640
    pixels = np.stack([255 * x, 255 * y, 127 + 100 * np.sin(9 * x)], -1).astype(np.uint8)
    jpeg = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    png = encoded(Image.open(io.BytesIO(jpeg)))
    for size in (30, 60, 200, 480):
        ours = images.center_crop(jpeg, RGB, size, 0.9).astype(int)
        exact = images.center_crop(png, RGB, size, 0.9).astype(int)
        assert np.abs(ours - exact).mean() < 1.5
    generators = [np.random.default_rng(1), np.random.default_rng(1)]
    ours, exact = (
        images.random_crop(content, RGB, 32, 0.3, generator).astype(int)
        for content, generator in zip((jpeg, png), generators, strict=True)
    )
    assert np.abs(ours - exact).mean() < 1.5


def test_random_boxes_have_the_areas_and_ratios_asked_for():
    generator = np.random.default_rng(0)
    boxes = np.array([images.random_box(400, 300, 0.25, generator) for _ in range(10_000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 400).all()
    assert (boxes[:, 3] <= 300).all()
    shares, ratios = widths * heights / 120_000, widths / heights
    assert shares.min() > 0.245
    assert shares.max() <= 1
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    # Small boxes always fit, so their shares are uniform and their ratios log-uniform.
    small = shares < 0.5
    counts, _ = np.histogram(shares[small], 5, (0.25, 0.5))
    np.testing.assert_allclose(counts, counts.mean(), atol=5 * counts.mean() ** 0.5)
    counts, _ = np.histogram(np.log(ratios[small]), 4, (-np.log(4 / 3), np.log(4 / 3)))
    np.testing.assert_allclose(counts, counts.mean(), rtol=0.1)
    # The position of a box is uniform over all positions where it fits.
    free = 400 - widths
    places = (boxes[:, 0][free > 50] + 0.5) / (free[free > 50] + 1)
    counts, _ = np.histogram(places, 10, (0, 1))
    np.testing.assert_allclose(counts, counts.mean(), atol=5 * counts.mean() ** 0.5)


@pytest.mark.parametrize(("width", "height"), [(1000, 2), (2, 1000), (1, 1), (1, 300)])
def test_random_boxes_of_extreme_images_lie_inside(width, height):
    generator = np.random.default_rng(0)
    for _ in range(200):
        left, upper, right, lower = images.random_box(width, height, 0.08, generator)
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height


def test_a_random_crop_is_that_box_of_the_image():
    content = encoded(Image.fromarray(ramp(60, 80)))
    box = images.random_box(80, 60, 0.9, np.random.default_rng(3))
    crop = images.random_crop(content, RGB, 50, 0.9, np.random.default_rng(3)).astype(int)
    left, upper, right, lower = box
    rows = upper + (np.arange(50) + 0.5) * (lower - upper) / 50 - 0.5
    columns = left + (np.arange(50) + 0.5) * (right - left) / 50 - 0.5
    np.testing.assert_allclose(crop[2:-2, 20, 0], rows[2:-2], atol=1)
    np.testing.assert_allclose(crop[20, 2:-2, 1], columns[2:-2], atol=1)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "bomb"])
def test_unreadable_images_are_named(damage):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = encoded(Image.fromarray(noise), "JPEG")
    if damage == "bomb":
        content = bytearray(encoded(Image.fromarray(noise)))
        content[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height of a PNG
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        content = bytes(content)
    broken = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"no image",
        "bomb": content,
    }[damage]
    reason = "exceeds limit" if damage == "bomb" else ""
    with pytest.raises(InputError, match=rf"pictures/a\.jpg cannot be read .*{reason}") as error:
        images.check_readable(broken, "pictures/a.jpg")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"qoif" + (8).to_bytes(4, "big") * 2 + b"\x03\x00",  # an IndexError of Pillow
        b"DDS " + (124).to_bytes(4, "little") + bytes(120),  # a NotImplementedError
        b"\x00\x00\x00\x1cftypavif" + bytes(40),  # a RuntimeError
    ],
)
def test_damaged_images_of_rare_formats_are_named(content):
    with pytest.raises(InputError, match=r"^pictures/a cannot be read as an image \(.*\); replace"):
        images.check_readable(content, "pictures/a")


def test_readable_images_pass():
    for suffix in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        images.check_readable(encoded(Image.new("RGB", (33, 21), 77), suffix), "x")


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "PNG"), (np.float32, "TIFF")])
def test_images_of_more_than_8_bits_are_refused_and_not_clipped(dtype, suffix):
    content = encoded(Image.fromarray(np.full((4, 4), 30, dtype)), suffix)
    with pytest.raises(InputError, match=r"x\.png has more than 8 bits per channel .*; convert it"):
        images.check_readable(content, "x.png")


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_errors_do_not_name_a_buffer(content):
    for read in (
        lambda: images.decode(content, RGB),
        lambda: images.center_crop(content, RGB, 8, 1.0),
        lambda: images.upright_size(content, RGB),
        lambda: images.has_transparency(content),
    ):
        with pytest.raises(OSError, match=r"^its format is unknown$"):
            read()


def test_a_folder_with_a_pipe_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert images.image_files(tmp_path) == [tmp_path / "a.png"]
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png is a pipe, socket or device"):
        images.image_files(tmp_path)

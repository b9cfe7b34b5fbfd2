"""Tests the transparency and EXIF orientation of encoded images against pixels made by NumPy."""

import dataclasses
import io
import itertools
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mcn_jax.config import NO_BACKGROUND, DataConfig
from mcn_jax.data import __main__ as data_command
from mcn_jax.data import contact_sheet, images
from mcn_jax.data.dataset import open_dataset
from mcn_jax.data.examples import Examples
from mcn_jax.deploy.header import InputImages
from mcn_jax.errors import InputError
from mcn_jax.predict import read_image

# The package silences these, and pytest shows them again.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}:UserWarning")
    for text in (
        "Palette images with Transparency",
        "Corrupt EXIF",
        "Possibly corrupt EXIF",
        "Truncated File Read",
    )
]
RGB = images.PixelFormat(channels=3, background=255, exif_orientation=True)
AS_STORED = images.PixelFormat(channels=3, background=NO_BACKGROUND, exif_orientation=False)
SIDE = 16
RANDOM = np.random.default_rng(0)
COLORS = RANDOM.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
GRAY = np.repeat(COLORS[..., :1], 3, axis=2)
ALPHA = RANDOM.choice([0, 0, 1, 100, 254, 255], (SIDE, SIDE)).astype(np.uint8)
KEYED = np.where(ALPHA < 100, 0, 255).astype(np.uint8)  # transparent or opaque
ORIENTATION = 0x0112
# orientation -> side of the upright image at which the stored rows begin, and the columns (EXIF)
BEGINS = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(samples, depth, color, transparent=b""):
    """Encodes samples [Y, X, C] of 8 or 16 bits, or [Y, X, 1] of fewer bits."""
    height, width, _ = samples.shape
    if depth < 8:
        bits = np.unpackbits(samples.astype(np.uint8), axis=2)[..., -depth:]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    else:
        rows = samples.astype(f">u{depth // 8}").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    size = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )  # fmt: skip


def wide(samples):
    """Returns samples of 16 bits with these high bytes and random low bytes."""
    return samples.astype(np.uint16) * 256 + np.random.default_rng(1).integers(
        256, size=samples.shape
    )


def rgba(**options):
    return encoded(Image.fromarray(np.dstack([COLORS, ALPHA])), **options)


def gray_alpha(kind):
    return encoded(Image.fromarray(np.dstack([GRAY[..., 0], ALPHA]), "LA"), kind)


def premultiplied():
    """Returns a TIFF whose colors are multiplied by alpha, as its tag 338 says."""
    colors = np.rint(COLORS * (ALPHA[..., None] / 255)).astype(np.uint8)
    content = encoded(Image.fromarray(np.dstack([colors, ALPHA])), "TIFF")
    straight, multiplied = (struct.pack("<HHIH", 338, 3, 1, kind) for kind in (2, 1))
    assert content.count(straight) == 1
    return content.replace(straight, multiplied)


def palette(kind, **options):
    """Returns an image of 8 colors; its index 3 is transparent where ALPHA is."""
    image = Image.fromarray(_indices(), "P")
    image.putpalette(PALETTE.tobytes())
    return encoded(image, kind, **options)


PALETTE = np.random.default_rng(2).integers(0, 256, (8, 3)).astype(np.uint8)
PALETTE_ALPHA = np.array([255, 0, 100, 0, 255, 1, 254, 255], np.uint8)


def _indices():
    others = np.where(COLORS[..., 0] % 8 == 3, 4, COLORS[..., 0] % 8)
    return np.where(KEYED == 0, 3, others).astype(np.uint8)


def keyed_rgb(depth):
    """Returns colors of 8 or 16 bits; one of them, below hidden pixels, is transparent."""
    samples = COLORS if depth == 8 else wide(COLORS)
    key = [77, 1, 200] if depth == 8 else [77 * 256 + 9, 1 * 256, 200 * 256 + 255]
    samples = np.where(KEYED[..., None] == 0, np.array(key), samples)
    return png(samples, depth, 2, struct.pack(">HHH", *key))


def keyed_gray(depth):
    return png(_levels(depth)[..., None], depth, 0, struct.pack(">H", 1))


def _levels(depth):
    """Returns gray samples of a depth; 1 is transparent."""
    levels = COLORS[..., 0].astype(int) % 2**depth
    return np.where(KEYED == 0, 1, np.where(levels == 1, 0, levels))


def key_shown(depth):
    levels = _levels(depth) * 255 // (2**depth - 1)
    return np.repeat(levels[..., None], 3, axis=2)


# name -> encoded image, its colors (below hidden pixels, too), and its alpha
TRANSPARENT = {
    "rgba": (rgba(), COLORS, ALPHA),
    "rgba_webp": (rgba(kind="WEBP", lossless=True, exact=True), COLORS, ALPHA),
    "rgba_tiff": (rgba(kind="TIFF"), COLORS, ALPHA),
    "rgba_16_bits": (png(wide(np.dstack([COLORS, ALPHA])), 16, 6), COLORS, ALPHA),
    "premultiplied_tiff": (premultiplied(), COLORS, ALPHA),
    "gray_alpha": (gray_alpha("PNG"), GRAY, ALPHA),
    "gray_alpha_tiff": (gray_alpha("TIFF"), GRAY, ALPHA),
    "gray_alpha_16_bits": (png(wide(np.dstack([GRAY[..., :1], ALPHA])), 16, 4), GRAY, ALPHA),
    "palette": (
        palette("PNG", transparency=PALETTE_ALPHA.tobytes()),
        PALETTE[_indices()],
        PALETTE_ALPHA[_indices()],
    ),
    "palette_index": (palette("PNG", transparency=3), PALETTE[_indices()], KEYED),
    "gif": (palette("GIF", transparency=3), PALETTE[_indices()], KEYED),
    "rgb_key": (
        keyed_rgb(8), np.where(KEYED[..., None] == 0, np.uint8([77, 1, 200]), COLORS), KEYED,
    ),
    "rgb_key_16_bits": (
        keyed_rgb(16), np.where(KEYED[..., None] == 0, np.uint8([77, 1, 200]), COLORS), KEYED,
    ),
    **{f"gray_key_{d}_bits": (keyed_gray(d), key_shown(d), KEYED) for d in (1, 2, 4, 8)},
}  # fmt: skip


def composited(colors, alpha, background):
    share = alpha[..., None] / 255
    return colors * share + background * (1 - share)


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_show_the_background(name):
    content, colors, alpha = TRANSPARENT[name]
    # The pixels of a premultiplied file are rounded twice.
    tolerance = 1.5 if name == "premultiplied_tiff" else 0.51
    assert images.has_transparency(content)
    for background in (255, 0, 90):
        expected = composited(colors, alpha, background)
        pixels = RGB._replace(background=background)
        for found in (
            images.decode(content, pixels),
            images.center_crop(content, pixels, SIDE, 1.0),
            images.random_crop(content, pixels, SIDE, 1.0, np.random.default_rng(0)),
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        gray = images.decode(content, pixels._replace(channels=1))[..., 0]
        luma = np.rint(expected) @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(gray, luma, rtol=0, atol=tolerance + 0.51)
    if name != "premultiplied_tiff":
        np.testing.assert_array_equal(images.decode(content, AS_STORED), colors)


def test_an_edge_is_composited_before_it_is_resized():
    """Hidden colors would shine through if an image were resized first."""
    colors = np.zeros((SIDE, SIDE, 3), np.uint8)
    colors[:, ::2] = 250  # hidden stripes
    alpha = np.tile(np.array([0, 255], np.uint8), (SIDE, SIDE // 2))
    content = encoded(Image.fromarray(np.dstack([colors, alpha])))
    found = images.center_crop(content, RGB._replace(background=100), SIDE // 4, 1.0)
    np.testing.assert_allclose(found[:, 1:-1], 50, atol=4)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "L", "JPEG"])
def test_opaque_images_are_not_transparent(kind):
    image = Image.fromarray(COLORS).convert("RGB" if kind == "JPEG" else kind)
    content = encoded(image, "JPEG" if kind == "JPEG" else "PNG")
    assert not images.has_transparency(content)
    np.testing.assert_array_equal(
        images.decode(content, RGB), images.decode(content, RGB._replace(background=0))
    )


def picture(height=24, width=40):
    """Returns a picture whose red grows with the row, and green with the column."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 250 / height, x * 250 / width, 0 * x], -1).astype(np.uint8)


def stored(upright, orientation):
    """Returns the pixels that a file of an orientation stores for an upright picture."""
    first_row, first_column = BEGINS[orientation]
    if first_row in ("left", "right"):
        upright = upright.swapaxes(0, 1)
    rows = -1 if first_row in ("right", "bottom") else 1
    columns = -1 if first_column in ("right", "bottom") else 1
    return np.ascontiguousarray(upright[::rows, ::columns])


def oriented(kind, orientation, upright):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(stored(upright, orientation))
    if kind == "late PNG":  # EXIF data may stand behind the pixels
        content = encoded(image)
        end = chunk(b"IEND", b"")
        return content.removesuffix(end) + chunk(b"eXIf", exif.tobytes()[6:]) + end
    options = {
        "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "JPEG": {"quality": 95},
        "MPO": {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (8, 8))]},
    }[kind]  # fmt: skip
    return encoded(image, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "late PNG", "WEBP", "TIFF", "JPEG", "MPO"])
def test_all_orientations_are_turned_upright(kind):
    upright = picture()
    tolerance = 12 if kind in ("JPEG", "MPO") else 0  # at an edge of a JPEG's color blocks
    for orientation in BEGINS:
        content = oriented(kind, orientation, upright)
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == kind.removeprefix("late ")
        assert images.upright_size(content, RGB) == (40, 24)
        found = images.decode(content, RGB)
        np.testing.assert_allclose(found.astype(int), upright, rtol=0, atol=tolerance)
        found = images.center_crop(content, RGB, 24, 1.0)
        np.testing.assert_allclose(found.astype(int), upright[:, 8:32], rtol=0, atol=tolerance)
        if kind != "TIFF":  # Pillow always turns these
            found = images.decode(content, AS_STORED).astype(int)
            expected = stored(upright, orientation)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("kind", "size"), [("PNG", 50), ("JPEG", 50), ("JPEG", 16)])
def test_crops_lie_in_the_upright_image(kind, size):
    """The small crop of a JPEG is decoded at a fraction of its size."""
    upright = picture(240, 400)
    left, upper, right, lower = images.random_box(400, 240, 0.5, np.random.default_rng(5))
    rows = upper + (np.arange(size) + 0.5) * (lower - upper) / size - 0.5
    columns = left + (np.arange(size) + 0.5) * (right - left) / size - 0.5
    for orientation in BEGINS:
        content = oriented(kind, orientation, upright)
        found = images.random_crop(content, RGB, size, 0.5, np.random.default_rng(5)).astype(int)
        np.testing.assert_allclose(found[2:-2, size // 2, 0], rows[2:-2] * 250 / 240, atol=4)
        np.testing.assert_allclose(found[size // 2, 2:-2, 1], columns[2:-2] * 250 / 400, atol=4)


def test_transparency_and_orientation_together():
    image = Image.fromarray(np.dstack([COLORS, ALPHA])[:, :9])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    expected = np.rot90(composited(COLORS, ALPHA, 255)[:, :9], -1)
    found = images.decode(encoded(image, exif=exif), RGB)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.51)


def entry(kind, count, value):
    """Returns EXIF data with one entry: an orientation with a value of this TIFF type."""
    return (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0"
        + struct.pack("<HHI", 0x112, kind, count)
        + value
        + b"\0" * 4
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_do_not_matter(kind):
    upright = picture()
    for exif in (
        b"Exif\0\0", b"Exif\0\0II*\0", b"no EXIF data at all",
        b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 20,
        entry(3, 1, struct.pack("<HH", 0, 0)), entry(3, 1, struct.pack("<HH", 9, 0)),
        entry(2, 4, b"six\0"), entry(3, 2**31, b"\6\0\0\0"), entry(5, 1, b"\xff\xff\0\0"),
        entry(99, 1, b"\6\0\0\0"),
    ):  # fmt: skip
        content = encoded(Image.fromarray(upright), kind, exif=exif, **LOSSLESS.get(kind, {}))
        images.check_readable(content, "x")
        assert images.upright_size(content, RGB) == (40, 24)
        found = images.decode(content, RGB).astype(int)
        np.testing.assert_allclose(found, upright, rtol=0, atol=12 if kind == "JPEG" else 0)


LOSSLESS = {"WEBP": {"lossless": True}}


@pytest.fixture
def folder(tmp_path):
    """Returns an image folder: icons whose shape is their alpha, and pictures that lie sideways."""
    for name, number in itertools.product(("icon", "picture"), range(3)):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "images" / name / f"{number}.png"
        if name == "icon":
            icon = np.dstack([np.zeros((SIDE, SIDE, 3), np.uint8), ALPHA])
            path.write_bytes(encoded(Image.fromarray(icon)))
        else:
            path.write_bytes(oriented("PNG", 6, picture(SIDE, SIDE)))
    return tmp_path


@pytest.mark.parametrize(("background", "orientation"), [(255, True), (40, False), (-1, False)])
def test_training_evaluation_and_prediction_read_the_same_pixels(background, orientation, folder):
    dataset = open_dataset(
        DataConfig(
            name="image_folder", root=str(folder / "images"), data_dir=str(folder / "data"),
            image_size=SIDE, background=background, exif_orientation=orientation,
        )
    )  # fmt: skip
    icon = np.zeros((SIDE, SIDE, 3))
    if background != NO_BACKGROUND:
        icon = composited(icon, ALPHA, background)
    upright = picture(SIDE, SIDE)
    expected = [icon, upright if orientation else stored(upright, 6)]
    spec = InputImages(
        height=SIDE, width=SIDE, channels=3, mean=dataset.mean, std=dataset.std,
        background=background, exif_orientation=orientation,
    )  # fmt: skip
    for label, name in enumerate(dataset.class_names):
        for path in (folder / "images" / name).iterdir():
            found = read_image(path, spec)
            np.testing.assert_allclose(found, expected[label], rtol=0, atol=0.51)
    for examples in (dataset.train, dataset.test):
        for image, label in zip(*examples.read_all(), strict=True):
            np.testing.assert_allclose(image, expected[label], rtol=0, atol=0.51)
    assert dataset.train.count_transparent() + dataset.test.count_transparent() == 3


def test_the_data_command_counts_images_with_transparency(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(contact_sheet, "draw", lambda *arguments: None)
    arguments = ["image_folder", "--root=images", "--data_dir=data", f"--image_size={SIDE}"]
    data_command.main([*arguments, "--background=7"])
    out = capsys.readouterr().out
    assert "images with transparency: 3 of 6, shown on gray level 7" in out
    assert "(config.data.background=7)" in out
    data_command.main([*arguments, "--background=-1"])
    assert "images with transparency: 3 of 6, which is ignored" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"--background=256 must lie in -1\.\.255"):
        data_command.main([*arguments, "--background=256"])


def test_an_image_that_turns_out_of_shape_is_one_line():
    examples = Examples(
        source=None, encoded=True, path=pathlib.Path("there"), shape=(40, 24, 3), classes=2,
        config=DataConfig(name="sideways"),
    )  # fmt: skip
    examples = dataclasses.replace(examples, source=Source(oriented("PNG", 6, picture(24, 40))))
    message = "data set sideways in there has an image of 24x40x3 instead of 40x24x3"
    with pytest.raises(InputError, match=message):
        examples.read(np.arange(1))
    config = dataclasses.replace(examples.config, exif_orientation=False)
    found = dataclasses.replace(examples, config=config).read(np.arange(1)).images[0]
    np.testing.assert_array_equal(found, stored(picture(24, 40), 6))


class Source:
    """One example, as TFDS gives it."""

    def __init__(self, content):
        self.content = content

    def __getitems__(self, rows):
        return [{"image": self.content, "label": 0} for _ in rows]

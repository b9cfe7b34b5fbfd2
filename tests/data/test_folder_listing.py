"""Tests which files of a folder are images, and that what is left out is listed."""

import io
import os
import pathlib
import shutil
import socket
import zlib

import pytest
from PIL import Image

from mcn_jax.data.folder_listing import images_below, skipped_lines, suffixes
from mcn_jax.errors import InputError


def encoded(name="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 0, 0)).save(buffer, name)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with one image."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(encoded())
    return tmp_path / "cat"


def listed(folder):
    """Returns the paths of the images relative to the folder, and the lines of what was skipped."""
    skipped = []
    paths = images_below(folder, skipped)
    return [str(path.relative_to(folder)) for path in paths], skipped_lines(skipped, folder)


IMAGES = {
    "x.jfif": "JPEG", "x.jpe": "JPEG", "x.JPG": "JPEG", "x.pgm": "PPM", "x.pbm": "PPM",
    "x.jp2": "JPEG2000", "x.tga": "TGA", "x.avif": "AVIF", "x.dib": "DIB", "x.ico": "ICO",
    "x.qoi": "QOI", "x.apng": "PNG", "without_suffix": "JPEG", "with space .webp": "WEBP",
    "line\nbreak.bmp": "BMP", "deeper/x.gif": "GIF", "a/b/c/d/x.tif": "TIFF",
    "folder.jpg/x.png": "PNG",
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_what_pillow_decodes_is_used_in_deeper_folders_too(name, folder):
    if name.endswith(".avif") and ".avif" not in suffixes():
        pytest.skip("this Pillow has no AVIF")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded(IMAGES[name]))
    assert listed(folder) == (sorted(["a.png", name], key=pathlib.PurePath), [])


def huge():
    """Returns a PNG whose header has more pixels than Pillow takes for honest."""
    content = bytearray(encoded())
    content[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


SUFFIX = "a suffix that Pillow does not read as an image on this machine"
SKIPPED = {
    "x.heic": (b"?", f".heic files, {SUFFIX}"),
    "x.pdf": (b"%PDF", f".pdf files, {SUFFIX}"),
    "x.eps": (b"%!PS", f".eps files, {SUFFIX}"),
    "notes.TXT": (b"notes", f".txt files, {SUFFIX}"),
    "x.mp4": (b"?", f".mp4 files, {SUFFIX}"),
    "README": (b"text", "files without a suffix, which do not begin as an image does"),
    "empty": (b"", "files without a suffix, which do not begin as an image does"),
    "x.bak": (encoded(), ".bak files, which contain images (PNG) but have another suffix"),
    "x.jpg~": (
        encoded("JPEG"),
        ".jpg~ files, which contain images (JPEG) but have another suffix",
    ),
    "slide.svs": (huge(), f".svs files, {SUFFIX}"),
    "slide": (huge(), "files without a suffix, which do not begin as an image does"),
    "x.dds.old": (b"DDS " + (124).to_bytes(4, "little") + bytes(120), f".old files, {SUFFIX}"),
    "Thumbs.db": (b"?", "hidden or system files"),
    ".DS_Store": (b"?", "hidden or system files"),
    "._x.jpg": (b"?", "hidden or system files"),
    ".hidden/x.png": (encoded(), "hidden or system files"),
    "__MACOSX/x.png": (encoded(), "hidden or system files"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_left_out_is_listed_with_the_reason(name, folder):
    content, what = SKIPPED[name]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    what, comma, why = what.partition(",")
    line = f"skipped {what} (1){comma}{why}: {name.partition('/')[0]}"
    assert listed(folder) == (["a.png"], [line])


def test_kinds_are_counted_with_three_examples(folder):
    for number in range(7):
        (folder / f"{number}.heic").write_bytes(b"?")
    (folder / "x\ny.txt").write_bytes(b"?")
    assert listed(folder)[1] == [
        f"skipped .heic files (7), {SUFFIX}: 0.heic, 1.heic, 2.heic and 4 more",
        f"skipped .txt files (1), {SUFFIX}: x\\ny.txt",
    ]


def pipe(path):
    os.mkfifo(path)


def listening_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to_a_device(path):
    path.symlink_to("/dev/zero")


def link_to_a_pipe(path):
    os.mkfifo(path.parents[1] / "pipe")
    path.symlink_to(path.parents[1] / "pipe")


def broken_link(path):
    path.symlink_to("nowhere.png")


def link_to_itself(path):
    path.symlink_to(path.name)


def link_to_its_folder(path):
    path.symlink_to(".")


def link_to_a_folder_above(path):
    path.symlink_to(path.parents[2], target_is_directory=True)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (pipe, "pipes"),
        (listening_socket, "sockets"),
        (link_to_a_device, "devices"),
        (link_to_a_pipe, "pipes"),
        (broken_link, "links, which lead nowhere"),
        (link_to_itself, "links, which lead nowhere"),
        (link_to_its_folder, "links, which lead to a folder that contains them"),
        (link_to_a_folder_above, "links, which lead to a folder that contains them"),
    ],
)
@pytest.mark.parametrize("name", ["x.jpg", "x"])
def test_what_is_not_a_file_is_listed_and_not_opened(make, what, name, folder, monkeypatch):
    monkeypatch.chdir(folder)  # the path of a socket must be short
    make(folder / name if make is not listening_socket else type(folder)(name))
    images, [line] = listed(folder)
    assert images == ["a.png"]
    what, comma, why = what.partition(",")
    assert line.startswith(f"skipped {what} (1){comma}{why}")
    assert line.endswith(f": {name}")


def test_links_to_files_and_folders_are_followed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.png").write_bytes(encoded())
    (folder / "file.png").symlink_to(elsewhere / "b.png")
    (folder / "folder").symlink_to(elsewhere)
    assert listed(folder) == (["a.png", "file.png", "folder/b.png"], [])


def test_folders_that_link_to_each_other_end(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "dog")
    (folder / "link").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "link").symlink_to(folder)
    images, [line] = listed(folder)
    assert images == ["a.png", "link/a.png"]
    assert line.endswith("which lead to a folder that contains them: link/link")


def test_the_order_does_not_depend_on_the_file_system(folder, monkeypatch):
    for name in ("b.png", "c/x.png", "c.png", "C.png", "c/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encoded())
    expected = ["C.png", "a.png", "b.png", "c/a.png", "c/x.png", "c.png"]
    names = os.listdir
    for order in (sorted, lambda found: sorted(found, reverse=True)):
        monkeypatch.setattr(os, "listdir", lambda path, order=order: order(names(path)))
        assert listed(folder)[0] == expected


@pytest.mark.parametrize("name", ["below", "a\nb", "a/b/c", "x.jpg", "without"])
def test_a_folder_that_cannot_be_read_is_named_in_one_line(name, folder, monkeypatch):
    (folder / name).mkdir(parents=True)
    names = os.listdir

    def refuse(path):
        if path == folder / name:
            raise PermissionError(13, "Permission denied", str(path))
        return names(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)") as error:
        images_below(folder, [])
    assert "\n" not in str(error.value)
    assert name.replace("\n", r"\n") in str(error.value)

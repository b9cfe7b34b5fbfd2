"""Exports a model file as a web page: one HTML file that runs the network in a browser.

The page is the template `page.html` with the data of the network. It contains the network as
WebAssembly, loads nothing, and prepares images as `python -m mcn_jax.predict` does.
"""

import base64
import dataclasses
import hashlib
import html
import json
import pathlib
import re
from typing import Any

import numpy as np

from mcn_jax.deploy.c_source import CSource
from mcn_jax.deploy.model_file import Model
from mcn_jax.deploy.predictor import of_model
from mcn_jax.deploy.wasm import compiled
from mcn_jax.escapes import shown
from mcn_jax.workdirs.files import write_bytes_atomically

PAGE = "model.html"
TEMPLATE = pathlib.Path(__file__).with_name("page.html")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a data set makes an image of a handwritten character.

    Attributes:
        field: height and width of the image in which the character is placed, in pixels.
        box: height and width that the character is scaled to; None to leave it as it was drawn.
        pen: width of a line, in pixels of the field.
        stretch: the most that one side may be scaled more than the other side.
        by_mass: whether the center of mass moves to the center of the field; otherwise the box is
            in the center.
        cell: side of the squares in which black and white pixels are counted; 1 for gray pixels
            that are not counted. The counts are enlarged bilinearly to the size of the field.
    """

    field: tuple[int, int]
    box: tuple[int, int] | None = None
    pen: float
    stretch: float = 1
    by_mass: bool = False
    cell: int = 1


# MNIST: LeCun et al. 1998. Digits: Alpaydin and Kaynak 1998 count the pixels of a bitmap of 32x32
# pixels in cells of 4x4; in these images, characters are 32 pixels high and about 20 wide. The
# width of the pen is about that of the data.
DRAWINGS = {
    "mnist": Drawing(field=(28, 28), box=(20, 20), pen=2.4, by_mass=True),
    "digits": Drawing(field=(32, 32), box=(32, 20), pen=4.5, stretch=2, cell=4),
}
PEN = 0.08  # for other data, as a share of the shorter side


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebPage:
    """A network as a web page.

    Attributes:
        text: the HTML, in ASCII.
        wasm_bytes: size of the WebAssembly module in it.
    """

    text: str
    wasm_bytes: int


def web_page(model: Model, source: CSource) -> WebPage:
    """Returns the page of a network.

    Args:
        model: the content of a model file.
        source: the same network from `c_source`.

    Raises:
        InputError: if the compiler is not installed, or fails.
    """
    module = compiled(source)
    data = {
        "classes": [shown(name) for name in model.class_names],
        "images": dataclasses.asdict(model.images),
        "drawing": None if model.images.channels > 1 else dataclasses.asdict(_drawing(model)),
        "weight_bytes": source.constant_bytes,
        "wasm_bytes": len(module),
        "expected": of_model(model).logits(selftest_image(model)[None])[0].tolist(),
        "wasm": base64.b64encode(module).decode(),
    }
    template = TEMPLATE.read_text(encoding="ascii")
    values = {
        "TITLE": _title(model),
        "STYLE_HASH": _digest(template, "style"),
        "SCRIPT_HASH": _digest(template, "script"),
        "MODEL": _json(data),
    }
    # One pass, so a marker in a value stays as it is.
    text = re.sub("|".join(f"@{name}@" for name in values), lambda m: values[m[0][1:-1]], template)
    return WebPage(text=text, wasm_bytes=len(module))


def write_web_page(page: WebPage, directory: pathlib.Path) -> None:
    """Writes the page into an existing directory, atomically."""
    write_bytes_atomically(directory / PAGE, page.text.encode("ascii"))


def selftest_image(model: Model) -> np.ndarray:
    """Returns the image [Y, X, C] uint8 that the page computes when it opens, as its self-test."""
    images = model.images
    index = np.arange(images.height * images.width * images.channels, dtype=np.int64)
    pixels = (index * index + 7 * index) % 251
    return pixels.astype(np.uint8).reshape(images.height, images.width, images.channels)


def _drawing(model: Model) -> Drawing:
    field = model.images.height, model.images.width
    known = DRAWINGS.get(_data_name(model))
    return known if known and known.field == field else Drawing(field=field, pen=PEN * min(field))


def _data_name(model: Model) -> str:
    """Returns the name of the data that a network was trained on; empty if unknown."""
    data = model.provenance.get("data")
    return str(data.get("name", "")) if isinstance(data, dict) else ""


def _title(model: Model) -> str:
    """Returns the title as HTML in ASCII."""
    name, data = model.network.config.model.name, shown(_data_name(model))
    title = html.escape(f"{name}, trained on {data}" if data else name)
    return title.encode("ascii", "xmlcharrefreplace").decode()


def _digest(template: str, tag: str) -> str:
    """Returns the hash by which the page's security policy knows its own style or script."""
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _json(data: Any) -> str:
    """Returns JSON in ASCII in which nothing can end an element of HTML."""
    text = json.dumps(data, allow_nan=False)
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)

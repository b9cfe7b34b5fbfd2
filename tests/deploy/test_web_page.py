"""Opens exported web pages in headless Chromium, draws, and drops images.

They need `pip install playwright`, and Chromium (Debian: `apt-get install chromium`).
"""

import dataclasses
import io
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exported import random_model
from mcn_jax import predict
from mcn_jax.data.digits import enlarged
from mcn_jax.deploy import predictor, web
from mcn_jax.deploy.c_source import c_source
from mcn_jax.escapes import shown
from mcn_jax.training.evaluation import probabilities

pytest.importorskip("ziglang", reason="pip install -r requirements-web.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

SEVEN = ([(0.2, 0.2), (0.7, 0.2), (0.5, 0.7)],)  # strokes, as shares of the drawing area
CROSSED = ([(0.3, 0.1), (0.8, 0.1), (0.6, 0.6)], [(0.4, 0.4), (0.8, 0.4)])
NAMES = (
    "</script><img src=x onerror=evil=1>", "<img src=x onerror=evil=1>", "<b>bold</b>",
    "</script x", "<!--<script x",
    "@MODEL@", "a\nb", "\u202etxt.exe", "'\"\\`${evil=1}", "日本語 é " * 30,
)  # fmt: skip
# Returns the pixels that the page gave to the network, without alpha.
SEEN = """() => {
  const canvas = document.getElementById("seen");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, ...data];
}"""
# Dispatches an event with a file, as when a person drops or pastes one.
SEND = """([type, name, bytes]) => {
  const files = new DataTransfer();
  if (bytes.length) files.items.add(new File([Uint8Array.from(bytes)], name));
  document.dispatchEvent(type === "paste"
    ? new ClipboardEvent(type, { clipboardData: files, bubbles: true, cancelable: true })
    : new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        chromium = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def living(name="mnist", classes=10, **fields):
    """Returns a random model, trained on some data by its own account, that tells images apart."""
    model, _, _ = random_model(classes=classes, **fields)
    tensors = {n: abs(t) if n.endswith("/offset") else t for n, t in model.tensors.items()}
    return dataclasses.replace(model, tensors=tensors, provenance={"data": {"name": name}})


class Visit:
    """A model's page, open in a browser. Anything but the page itself is an error."""

    def __init__(self, browser, model, directory, change=lambda text: text, **options):
        self.model, self.problems = model, []
        page = web.web_page(model, c_source(model))
        path = directory / web.PAGE
        path.write_text(change(page.text))
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", lambda request: self.problems.append(request.url))
        self.page.goto(path.as_uri())
        self.wait_for("network || element('problem').textContent")
        assert self.problems == [path.as_uri()]
        self.problems.clear()

    def text(self, name):
        return self.page.locator(f"#{name}").inner_text()

    def wait_for(self, expression):
        """Waits until an expression is true; Playwright's own function is against the policy."""
        for _ in range(3000):
            if self.page.evaluate(f"Boolean({expression})"):
                return
            self.page.wait_for_timeout(20)
        pytest.fail(f"{expression} is not true after a minute")

    def draw(self, strokes):
        box = self.page.locator("#pad").bounding_box()
        for stroke in strokes:
            points = [
                (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke
            ]
            self.page.mouse.move(*points[0])
            self.page.mouse.down()
            for point in points[1:]:
                self.page.mouse.move(*point, steps=5)
            self.page.mouse.up()
        self.wait_for_frames()

    def wait_for_frames(self):
        """Waits until the page has computed what was drawn."""
        self.page.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def send(self, content, kind="drop", name="image"):
        """Drops, pastes or chooses a file, and waits for its result or error."""
        self.page.evaluate("element('status').textContent = element('problem').textContent = ''")
        if kind == "choose":
            file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
            self.page.locator("#file").set_input_files(files=[file])
        else:
            self.page.evaluate(SEND, [kind, name, list(content)])
        self.wait_for("element('status').textContent + element('problem').textContent")

    def seen(self):
        """Returns the image [Y, X, C] that the network got."""
        height, width, *pixels = self.page.evaluate(SEEN)
        rgba = np.array(pixels, np.uint8).reshape(height, width, 4)
        assert np.all(rgba[..., 3] == 255)
        return rgba[..., : self.model.images.channels]

    def rows(self):
        """Returns the shown classes and shares as texts, in the order on the page."""
        rows = self.page.locator("#classes tr").all()
        return [tuple(row.locator("th, td:last-child").all_inner_texts()) for row in rows]

    def check_result(self):
        """Compares what is shown with what Python computes of the image that the network got."""
        [shares] = probabilities(predictor.of_model(self.model).logits(self.seen()[None]))
        assert np.ptp(shares) > 0.01
        order = np.argsort(-shares, kind="stable")
        names = [shown(name) for name in self.model.class_names]
        assert self.rows()[0][0] == names[order[0]]
        for name, share in self.rows():
            assert float(share.rstrip("%")) == pytest.approx(
                100 * shares[names.index(name)], abs=0.1
            )
        assert self.text("status").startswith(f"{names[order[0]]} (")
        assert self.text("problem") == ""
        assert float(self.text("time").removesuffix(" ms")) > 0

    def close(self):
        self.context.close()
        assert not self.problems


@pytest.fixture
def visit(browser, tmp_path):
    opened: list[Visit] = []

    def open_page(model, **options: Any):
        opened.append(Visit(browser, model, tmp_path, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.close()


def encoded(array, kind="PNG", **options):
    """Returns the file of an image, from an array or an image of Pillow."""
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(*shape):
    """Returns random pixels, uint8."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def prepared(content, model, directory):
    """Returns the image [Y, X, C] that `mcn_jax.predict` makes of a file."""
    path = directory / "sent"
    path.write_bytes(content)
    return predict.read_image(path, model.images)


def test_a_drawn_seven_is_classified_as_by_python(visit):
    shown_page = visit(living(size=(28, 28)))
    shown_page.draw(SEVEN)
    shown_page.check_result()
    image = shown_page.seen()[..., 0]
    y, x = np.indices(image.shape)
    for axis in (y, x):  # MNIST: the center of mass is at pixel 14, rounded
        assert 13.5 <= np.sum(axis * image) / image.sum() < 14.5
    rows, columns = np.flatnonzero(image.max(1)), np.flatnonzero(image.max(0))
    assert np.ptp(rows) + 1 in (20, 21)  # 20 pixels high
    assert np.ptp(columns) + 1 == pytest.approx(20, abs=1.5)
    # A seven: ink along the top, at the upper right, and below the center.
    assert image[rows[1], columns[2] : columns[-2]].min() > 200
    assert image[rows[-3], : columns[0] + 6].max() == 0
    assert image[rows[-3]].max() > 200


def test_the_size_and_place_of_a_drawing_do_not_matter(visit):
    shown_page = visit(living(size=(28, 28)))
    shown_page.draw([[(0.4 + x / 5, 0.5 + y / 5) for x, y in stroke] for stroke in SEVEN])
    small = shown_page.seen().astype(int)
    shown_page.page.locator("#clear").click()
    shown_page.draw([[(x + 0.1, y + 0.1) for x, y in stroke] for stroke in SEVEN])
    assert np.abs(shown_page.seen() - small).mean() < 3
    assert small.mean() > 20


def test_a_drawing_for_digits_is_counted_in_cells(visit):
    shown_page = visit(living("digits", size=(32, 32)))
    shown_page.draw(CROSSED)
    shown_page.check_result()
    image = shown_page.seen()
    # Undoes the bilinear enlargement of the counts, 0 to 16, of 8x8 cells.
    centers = (np.arange(32) + 0.5) / 4 - 0.5
    enlarging = np.stack([np.interp(centers, np.arange(8), row) for row in np.eye(8)], axis=1)
    smaller = np.linalg.pinv(enlarging)
    counts = np.clip(np.round(smaller @ image[..., 0] @ smaller.T * 16 / 255), 0, 16)
    np.testing.assert_array_equal(enlarged(counts), image)
    assert (counts > 0).any(1).all()  # over the whole height
    assert np.flatnonzero((counts > 0).any(0)).tolist() == [1, 2, 3, 4, 5, 6]  # 20 of 32 pixels


def test_drawings_for_other_data_are_only_scaled(visit):
    shown_page = visit(living("others", size=(20, 30)))
    shown_page.draw(SEVEN)
    shown_page.check_result()
    image = shown_page.seen()[..., 0]
    assert image.shape == (20, 30)
    assert image[4, 7:20].min() > 150
    assert image[:2].max() == image[17:].max() == 0


def test_fingers_draw_and_clear_clears(visit):
    shown_page = visit(living(size=(28, 28)), has_touch=True, is_mobile=True,
                       viewport={"width": 375, "height": 812})  # fmt: skip
    page = shown_page.page
    box, client = page.locator("#pad").bounding_box(), shown_page.context.new_cdp_session(page)
    for kind, x, y in [
        ("touchStart", 0.2, 0.2), ("touchMove", 0.7, 0.2), ("touchMove", 0.5, 0.7),
        ("touchEnd", 0, 0),
    ]:  # fmt: skip
        point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        points = [] if kind == "touchEnd" else [point]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    shown_page.wait_for_frames()
    shown_page.check_result()
    assert page.evaluate("scrollY") == 0  # drawing does not scroll
    image = shown_page.seen()
    assert image[..., 0].max(1).astype(bool).sum() >= 20
    for element in ("#clear", ".button", "label.check"):  # large enough for a finger
        assert page.locator(element).bounding_box()["height"] >= 44
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.locator("#clear").click()
    assert shown_page.text("status") == ""
    assert {share for _, share in shown_page.rows()} == {""}
    assert page.evaluate("strokes.length") == 0


GRAY, COLOR = {"size": (28, 28)}, {"size": (24, 24), "channels": 3, "name": "cifar10"}
FILES = {
    "gray": encoded(pixels(28, 28)),
    "enlarged": encoded(pixels(13, 17)),
    "reduced": encoded(pixels(101, 73, 3)),
    "large": encoded(np.kron(pixels(30, 50), np.ones((13, 11), np.uint8))),
    "palette": encoded(Image.fromarray(pixels(40, 40, 3)).quantize(17)),
    "transparent or not": encoded(
        np.dstack([pixels(50, 37, 3), 255 * (pixels(50, 37) > 128).astype(np.uint8)])
    ),
}


@pytest.mark.parametrize("fields", [GRAY, COLOR], ids=["gray", "color"])
def test_dropped_pngs_are_prepared_and_classified_as_by_python(fields, visit, tmp_path):
    model = living(**fields)
    images = dataclasses.replace(
        model.images, background=255, exif_orientation=True,
        center_crop=0.875 if fields is COLOR else 1,
    )  # fmt: skip
    model = dataclasses.replace(model, images=images)
    shown_page = visit(model)
    for name, content in FILES.items():
        shown_page.send(content)
        expected = prepared(content, model, tmp_path)
        np.testing.assert_array_equal(shown_page.seen(), expected, err_msg=name)
        shown_page.check_result()


@pytest.mark.parametrize("background", [0, 200])
def test_half_transparent_pixels_differ_by_one_level_at_most(background, visit, tmp_path):
    model = living(**COLOR)
    images = dataclasses.replace(model.images, background=background)
    model = dataclasses.replace(model, images=images)
    alpha = np.linspace(0, 255, 24).astype(np.uint8)[:, None] * np.ones((1, 24), np.uint8)
    content = encoded(np.dstack([pixels(24, 24, 3), alpha]))
    shown_page = visit(model)
    shown_page.send(content)
    expected = prepared(content, model, tmp_path).astype(int)
    assert np.abs(shown_page.seen() - expected).max() <= 1
    assert np.all(expected[0] == background)


@pytest.mark.parametrize("turned", [True, False])
def test_photos_are_turned_upright_as_by_python(turned, visit, tmp_path):
    model = living(**COLOR)
    images = dataclasses.replace(model.images, exif_orientation=turned)
    model = dataclasses.replace(model, images=images)
    photo = Image.fromarray(pixels(3, 5, 3)).resize((80, 48), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was held upright
    content = encoded(photo, "JPEG", quality=95, subsampling=0, exif=exif)
    shown_page = visit(model)
    shown_page.send(content)
    # Decoders of JPEG differ by a few levels, and Pillow decodes large images at a smaller size.
    expected = prepared(content, model, tmp_path).astype(int)
    assert np.abs(shown_page.seen() - expected).mean() < 3
    assert np.abs(np.rot90(expected) - expected).mean() > 30


@pytest.mark.parametrize("kind", ["paste", "choose"])
def test_images_are_pasted_and_chosen(kind, visit, tmp_path):
    model = living(**COLOR)
    shown_page = visit(model)
    content = encoded(pixels(30, 40, 3))
    shown_page.send(content, kind)
    np.testing.assert_array_equal(shown_page.seen(), prepared(content, model, tmp_path))
    shown_page.check_result()
    assert not shown_page.page.locator("#pad").is_visible()  # nobody draws in color


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (b"no image", GRAY, "letter.txt cannot be used: "),
        (
            encoded(Image.fromarray(np.arange(784, dtype=np.uint16).reshape(28, 28))), GRAY,
            "letter.txt cannot be used: it has more than 8 bits per channel and would be clipped.",
        ),
        (
            encoded(pixels(28, 28)), {"size": (20, 30)},
            "letter.txt cannot be used: it does not have 20 x 30 pixels, and is resized only to"
            " squares.",
        ),
        (b"", GRAY, "Drop an image file."),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_named(content, fields, message, visit):
    shown_page = visit(living(**fields))
    shown_page.send(content, name="letter.txt")
    assert shown_page.text("problem").startswith(message)
    assert shown_page.text("status") == ""
    shown_page.draw(SEVEN)
    shown_page.check_result()  # and the error is gone


def test_an_image_replaces_a_drawing(visit):
    shown_page = visit(living(size=(28, 28)))
    shown_page.draw(SEVEN)
    shown_page.send(encoded(pixels(28, 28)))
    assert shown_page.page.evaluate("strokes.length") == 0
    shown_page.check_result()


def test_classes_are_sorted_or_in_order(visit):
    model = dataclasses.replace(living(classes=6, size=(28, 28)), class_names=tuple("fedcba"))
    shown_page = visit(model)
    shown_page.draw(SEVEN)
    likeliest = shown_page.rows()
    shares = [float(share.rstrip("%")) for _, share in likeliest]
    assert shares == sorted(shares, reverse=True)
    assert [name for name, _ in likeliest] != list("fedcba")
    shown_page.page.get_by_label("Likeliest first").uncheck()
    assert [name for name, _ in shown_page.rows()] == list("fedcba")
    assert sorted(shown_page.rows()) == sorted(likeliest)
    widths = shown_page.page.evaluate("rows.map(row => row.querySelector('.bar').offsetWidth)")
    track = shown_page.page.evaluate("rows[0].querySelector('.bar').parentElement.offsetWidth")
    in_order = [float(share.rstrip("%")) for _, share in shown_page.rows()]
    np.testing.assert_allclose(
        np.array(widths) / max(widths), np.array(in_order) / shares[0], atol=0.02
    )
    assert max(widths) <= track


def test_hostile_class_names_are_only_shown(visit):
    model = living(NAMES[0], classes=len(NAMES), size=(28, 28))
    shown_page = visit(dataclasses.replace(model, class_names=NAMES))
    shown_page.draw(SEVEN)
    shown_page.check_result()
    page = shown_page.page
    assert page.evaluate("rows.map(row => row.firstChild.textContent)") == [
        shown(name) for name in NAMES
    ]
    assert page.evaluate("typeof evil") == "undefined"
    assert page.locator("img, b").count() == 0
    assert page.title() == f"simple_cnn, trained on {NAMES[0]}"
    page.set_viewport_size({"width": 375, "height": 812})  # long names are wrapped
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_the_policy_blocks_requests(visit):
    shown_page = visit(living(size=(28, 28)))
    blocked = "fetch('data:,x').then(() => 'loaded', () => 'blocked')"
    assert shown_page.page.evaluate(blocked) == "blocked"
    assert "Content Security Policy" in shown_page.problems[0]
    shown_page.problems.clear()


def test_a_failing_self_test_is_told(visit):
    model = living(size=(28, 28))
    shown_page = visit(model, change=lambda text: text.replace('"expected": [', '"expected": [9'))
    assert shown_page.text("problem").startswith("The self-test failed")
    shown_page.draw(SEVEN)
    assert shown_page.text("status") == ""

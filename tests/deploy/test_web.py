"""Tests the web page of a network: its WebAssembly in wasmtime, and its text."""

import base64
import dataclasses
import hashlib
import json
import re
import sys
import tempfile

import numpy as np
import pytest
import wasmtime

from c_programs import relative_difference
from exported import random_images, random_model
from mcn_jax import export
from mcn_jax.deploy import predictor, wasm, web
from mcn_jax.deploy.c_source import c_source
from mcn_jax.deploy.model_file import read_model
from mcn_jax.escapes import shown
from web_pages import Elements, instance, logits_from_wasm, model_data

pytest.importorskip("ziglang", reason="pip install -r requirements-web.txt")

NETWORKS = {
    "two centers": {},
    "four centers, color": {"num_centers": 4, "channels": 3},
    "padded images": {"image_size": 20},
    "wide_resnet, float16": {"name": "wide_resnet", "channels": 3, "dense": "float16"},
    "one bit, int8": {"conv": "dorefa", "planes": 3, "dense": "int8"},
    "signs": {"conv": "xnor", "name": "wide_resnet", "head": "conv_relu"},
    "odd sizes": {"size": (37, 21), "widths": (3, 5, 4), "head": "linear"},
}
HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "<!--<script>", "</script x", "]]>", "&lt;b&gt;",
    "@MODEL@", "@TITLE@", "${evil}`", "'\"\\", "a\nb\u2028c", "\u202etxt.exe", "日本語 é", "",
)  # fmt: skip


def hostile_model():
    """Returns a model whose class names and name of the data try to become HTML or code."""
    model, _, _ = random_model(classes=len(HOSTILE), size=(8, 8), widths=(2,))
    provenance = model.provenance | {"data": {"name": HOSTILE[0]}}
    return dataclasses.replace(model, class_names=HOSTILE, provenance=provenance)


@pytest.fixture(scope="module")
def small():
    """Returns (model, its page) of a small network."""
    model, _, _ = random_model()
    return model, web.web_page(model, c_source(model))


@pytest.mark.parametrize("name", NETWORKS)
def test_webassembly_computes_the_logits_of_jax(name):
    model, _, _ = random_model(**NETWORKS[name])
    tensors = {n: abs(t) if n.endswith("/offset") else t for n, t in model.tensors.items()}
    model = dataclasses.replace(model, tensors=tensors)  # so that a ReLU leaves something
    images = random_images(4, model)
    module = wasm.compiled(c_source(model))
    logits = logits_from_wasm(module, images, len(model.class_names))
    expected = predictor.of_model(model).logits(images)
    assert relative_difference(logits, expected) <= 1e-5


def test_webassembly_imports_nothing_and_uses_vector_instructions(small):
    _, page = small
    module = base64.b64decode(model_data(page.text)["wasm"])
    assert len(module) == page.wasm_bytes == model_data(page.text)["wasm_bytes"]
    store, exports = instance(module)  # without imports
    assert set(exports) == {"memory", "web_image", "web_logits", "web_predict"}
    # The network, two small arrays and the stack; memory consists of pages of 64 KiB.
    model, _ = small
    source = c_source(model)
    needed = source.arena_bytes + source.constant_bytes + wasm.STACK_BYTES
    assert needed < exports["memory"].data_len(store) < needed + 2 * 2**16
    config = wasmtime.Config()
    config.wasm_relaxed_simd = config.wasm_simd = False
    with pytest.raises(wasmtime.WasmtimeError, match=r"(?s)SIMD"):
        wasmtime.Module(wasmtime.Engine(config), module)


def test_the_page_has_the_network_and_what_it_must_compute(small):
    model, page = small
    data = model_data(page.text)
    assert data["weight_bytes"] == c_source(model).constant_bytes
    assert data["images"] == json.loads(json.dumps(dataclasses.asdict(model.images)))
    image = web.selftest_image(model)
    assert image.ravel()[[0, 1, 2, 15, 255]].tolist() == [0, 8, 18, 79, 44]  # (i*i + 7*i) % 251
    expected = predictor.of_model(model).logits(image[None])[0]
    np.testing.assert_array_equal(np.float32(data["expected"]), expected)
    module = base64.b64decode(data["wasm"])
    computed = logits_from_wasm(module, image[None], len(model.class_names))[0]
    np.testing.assert_allclose(computed, expected, atol=1e-5 * np.abs(expected).max())


def test_drawings_are_prepared_as_the_data_were_made():
    def drawing(name, size, **fields):
        model, _, _ = random_model(size=size, widths=(2,), **fields)
        model = dataclasses.replace(model, provenance={"data": {"name": name}})
        return model_data(web.web_page(model, c_source(model)).text)["drawing"]

    mnist = drawing("mnist", (28, 28))
    assert (mnist["field"], mnist["box"], mnist["by_mass"]) == ([28, 28], [20, 20], True)
    digits = drawing("digits", (32, 32))
    assert (digits["field"], digits["box"], digits["cell"]) == ([32, 32], [32, 20], 4)
    assert drawing("mnist", (16, 12))["box"] is None
    assert drawing("others", (16, 12))["field"] == [16, 12]
    assert drawing("cifar10", (32, 32), channels=3) is None


def test_hostile_names_stay_text():
    model = hostile_model()
    page = web.web_page(model, c_source(model)).text
    assert page.isascii()
    elements = Elements(page)
    tags = [tag for tag, _, _ in elements.found]
    harmless, _, _ = random_model()
    expected = Elements(web.web_page(harmless, c_source(harmless)).text)
    assert tags == [tag for tag, _, _ in expected.found]
    assert model_data(page)["classes"] == [shown(name) for name in HOSTILE]
    title = f"simple_cnn, trained on {HOSTILE[0]}"
    assert elements.texts("title") == elements.texts("h1") == [title]


def test_nothing_is_loaded_and_the_policy_forbids_it(small):
    _, page = small
    elements = Elements(page.text)
    [policy] = [a["content"] for tag, a, _ in elements.found if tag == "meta" and "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        text = elements.texts(tag)[-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules[f"{tag}-src"].split()
    links = {a[n] for _, a, _ in elements.found for n in ("src", "href") if n in a}
    assert links == {"data:,"}
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(", page.text)


def test_the_command_writes_the_page_alone(report_runs, tmp_path, capsys):
    arguments = [str(report_runs["seed_0"]), str(tmp_path), "--no-evaluate", "--web"]
    export.main(arguments)
    printed = " ".join(capsys.readouterr().out.split())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.html", "model.onnx", "model.safetensors"}
    model = read_model(tmp_path / "model.safetensors")
    page = web.web_page(model, c_source(model))
    assert (tmp_path / "model.html").read_text() == page.text
    sizes = f"{len(page.text):,} bytes, of which WebAssembly {page.wasm_bytes:,} before encoding"
    assert f"model.html: {sizes}" in printed
    assert model_data(page.text)["drawing"]["cell"] == 4
    export.main([*arguments, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["model.html"] == {"bytes": len(page.text), "wasm_bytes": page.wasm_bytes}
    assert "model.c" not in record


def test_a_missing_compiler_is_named_before_anything_is_written(report_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    arguments = [str(report_runs["seed_0"]), str(tmp_path / "out"), "--no-evaluate", "--web"]
    with pytest.raises(SystemExit) as error:
        export.main(arguments)
    assert str(error.value) == (
        "mcn_jax.export: error: a web page needs the package ziglang, which compiles to"
        " WebAssembly; install it: pip install ziglang"
    )
    assert not (tmp_path / "out").exists()


def test_a_failing_compiler_leaves_nothing(report_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(wasm, "FLAGS", (*wasm.FLAGS, "-DMCN_MODEL_H"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    arguments = [str(report_runs["seed_0"]), str(tmp_path / "out"), "--no-evaluate", "--web"]
    message = r"^mcn_jax.export: error: the compiler of ziglang failed \(.*error.*\); [^\n]*$"
    with pytest.raises(SystemExit, match=message):
        export.main(arguments)
    assert not list(tmp_path.iterdir())


def test_networks_without_c_source_are_refused(report_runs, tmp_path):
    arguments = [str(report_runs["umcn"]), str(tmp_path / "out"), "--no-evaluate", "--web"]
    with pytest.raises(SystemExit, match="the layer conv_1 has float filters with M"):
        export.main(arguments)
    assert not (tmp_path / "out").exists()


def test_a_page_that_cannot_be_written_leaves_the_old_one(small, tmp_path, monkeypatch):
    _, page = small
    (tmp_path / "model.html").write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        web.write_web_page(page, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_help_lists_the_formats(capsys):
    with pytest.raises(SystemExit):
        export.main(["--help"])
    text = capsys.readouterr().out
    for name, when in {
        "model.safetensors": "always", "model.onnx": "always", "model.c, model.h,": "with --c",
        "model.html": "with --web",
    }.items():  # fmt: skip
        assert re.search(rf"^  {re.escape(name)} +{when} ", text, re.MULTILINE)

"""Tests the inspection of trained networks."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from exported import random_model
from mcn_jax import ops
from mcn_jax.deploy.model_file import write_model
from mcn_jax.errors import InputError
from mcn_jax.inspect_checkpoint import main
from mcn_jax.layers import binary_filters
from mcn_jax.reports.inspected import array_of, inspect
from mcn_jax.reports.measures import compare, describe
from mcn_jax.reports.page import page
from mcn_jax.workdirs.files import read_metrics
from mcn_jax.workdirs.trained import read_trained


@pytest.fixture
def model_path(tmp_path):
    model, _, _ = random_model(widths=(2, 4))
    write_model(model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_layer_by_hand(report_runs):
    description = describe(inspect(report_runs["seed_0"]))
    layers = {record["layer"]: record for record in description["layers"]}
    # The first layer turns one map of four planes and 32x32 pixels into two; the second has 16x16.
    first = layers["conv_1"]
    assert (first["shape"], first["in_maps"], first["out_maps"]) == ([3, 3, 4, 2], 1, 2)
    assert (first["weights"], first["bits"], first["float32_bits"]) == (72, 72, 72 * 32)
    assert (first["m_filters"], first["m_and_center_bits"]) == (36, 32 * 38)
    assert first["multiply_adds_direct"] == 32 * 32 * 9 * 4 * 8
    assert first["multiply_adds_factored"] == 32 * 32 * (9 * 4 * 2 + 9 * 4 * 2)
    assert layers["conv_2"]["multiply_adds_direct"] == 16 * 16 * 9 * 8 * 16
    assert sum(first["shares"]) == pytest.approx(1)
    assert layers["dense_2"]["weights"] == 32 * 10 + 10
    totals = description["totals"]
    assert (totals["filter_bits"], totals["float32_filter_bits"]) == (360, 360 * 32)
    others = sum(layers[name]["weights"] for name in layers if not name.startswith("conv"))
    assert totals["bits"] == 360 + 32 * (2 * 38 + others)
    assert totals["float32_bits"] == 32 * (360 + 2 * 36 + others)


def test_measures_are_those_that_training_recorded(report_runs):
    for name in ("seed_0", "centers_3"):
        [health] = [
            record
            for record in read_metrics(report_runs[name] / "metrics.jsonl")
            if record["kind"] == "health" and record["epoch"] == 1
        ]
        for record in describe(inspect(report_runs[name]))["layers"][:2]:
            for measure in ("quantization_error", "m_min", "m_max"):
                recorded = health[f"{record['layer']}/{measure}"]
                assert record[measure] == pytest.approx(recorded, rel=1e-5)
            for index, share in enumerate(record["shares"]):
                assert share == pytest.approx(health[f"{record['layer']}/share_{index}"])


def test_a_umcn_has_no_centers(report_runs):
    record = describe(inspect(report_runs["umcn"]))["layers"][0]
    assert record["bits"] == record["float32_bits"]
    assert "centers" not in record
    assert "quantization_error" not in record


def test_a_model_file_tells_the_same_of_its_filters(model_path):
    inspected = inspect(model_path)
    description = describe(inspected)
    assert [record["bits"] for record in description["layers"][:2]] == [72, 9 * 8 * 4]
    assert "quantization_error" not in description["layers"][0]
    assert description["totals"]["bits"] <= 8 * model_path.stat().st_size
    with pytest.raises(InputError, match="has no array 'conv_1/latent_filters'"):
        array_of(inspected, "conv_1/latent_filters")


def test_a_pattern_of_planes_is_part_of_the_reconstructed_filters(tmp_path):
    model, _, _ = random_model(widths=(2, 4), plane_signs="circulant")
    write_model(model, tmp_path / "model.safetensors")
    inspected = inspect(tmp_path / "model.safetensors")
    filters, m = (array_of(inspected, f"conv_2/{name}") for name in ("binary_filters", "m_filters"))
    q = array_of(inspected, "conv_2/reconstructed_filters")
    # Output plane 1 takes plane j + 1 of the input with plane j of the filter.
    np.testing.assert_array_equal(q[:, :, 7, 1], filters[:, :, 6, 0] * m[..., 1])
    np.testing.assert_array_equal(q[:, :, 4, 1], filters[:, :, 7, 0] * m[..., 1])
    view = inspected.view("conv_2")
    pictures = view.layer.family.pictures(view)
    np.testing.assert_array_equal(pictures.filters["reconstructed, plane 2"], q[..., 1::4])
    record = describe(inspected)["layers"][1]
    assert record["multiply_adds_direct"] == 8 * 8 * 9 * 8 * 16
    assert "multiply_adds_factored" not in record


def test_a_pattern_of_signs_shares_products_and_mixes_each_slice(tmp_path):
    model, _, _ = random_model(widths=(2, 4), plane_signs="hadamard")
    write_model(model, tmp_path / "model.safetensors")
    record = describe(inspect(tmp_path / "model.safetensors"))["layers"][1]
    assert record["multiply_adds_direct"] == 8 * 8 * 9 * 8 * 16
    # 8 channels to 4 maps, and 4 slices of 4 maps to 4 planes.
    assert record["multiply_adds_factored"] == 8 * 8 * 9 * (8 * 4 + 4 * 4 * 4)


def test_pixels_of_a_wide_resnet(tmp_path):
    model, _, _ = random_model(name="wide_resnet")
    write_model(model, tmp_path / "model.safetensors")
    inspected = inspect(tmp_path / "model.safetensors")
    pixels = {layer.name: layer.out_pixels for layer in inspected.plan}
    assert next(iter(pixels)) == "stem"
    assert pixels["stem"] == 16 * 16
    assert pixels["stage_2_block_1/conv_1"] == 8 * 8
    assert pixels["stage_3_block_1/conv_1"] == pixels["stage_3_block_1/conv_2"] == 4 * 4
    layers = {record["layer"]: record for record in describe(inspected)["layers"]}
    assert layers["stage_3_block_1/conv_1"]["multiply_adds_direct"] == 16 * 9 * 8 * 12


def test_an_ordinary_network_costs_multiply_adds_and_saves_none(tmp_path):
    model, _, _ = random_model(conv="conv", num_centers=0)
    write_model(model, tmp_path / "model.safetensors")
    description = describe(inspect(tmp_path / "model.safetensors"))
    first = next(r for r in description["layers"] if r["layer"] == "conv_1")
    assert first["multiply_adds_direct"] == 16 * 16 * 9 * 1 * 8
    totals = description["totals"]
    assert totals["filter_bits"] == totals["float32_filter_bits"] == 32 * (9 * 8 + 9 * 8 * 12)
    assert totals["multiply_adds_factored"] == 0


@pytest.mark.parametrize(
    ("head", "layers", "bits"),
    [
        # The convolutions with 2 and 3 maps come first, then the others in call order.
        ("linear", ["dense"], 9 * 4 * 2 + 9 * 8 * 3),
        ("conv", ["head", "batch_norm_head"], 9 * 4 * 2 + 9 * 8 * 3 + 32 * 12 * 5),
    ],
)
def test_heads_are_counted(head, layers, bits, tmp_path):
    model, _, _ = random_model(head=head)
    write_model(model, tmp_path / "model.safetensors")
    description = describe(inspect(tmp_path / "model.safetensors"))
    names = [record["layer"] for record in description["layers"]]
    assert names == ["conv_1", "conv_2", "batch_norm_1", "batch_norm_2", *layers]
    assert description["totals"]["filter_bits"] == bits
    last = description["layers"][4]
    if head == "conv":
        assert (last["shape"], last["weights"]) == ([1, 1, 12, 5], 60)
        assert last["multiply_adds_direct"] == 4 * 4 * 60
    else:
        assert last["weights"] == 4 * 4 * 12 * 5 + 5


def test_one_bit_dense_layers_are_dense_layers(tmp_path, capsys, monkeypatch):
    model, _, _ = random_model(
        name="convnet", conv="binaryconnect", head="one_bit_dense", planes=1, widths=(2, 4)
    )
    write_model(model, tmp_path / "model.safetensors")
    description = describe(inspect(tmp_path / "model.safetensors"))
    layers = {record["layer"]: record for record in description["layers"]}
    # Images have 16x16 pixels, halved twice.
    weights = {"dense_1": 4 * 4 * 4 * 16, "dense_2": 16 * 16, "dense_3": 16 * 5}
    for name, count in weights.items():
        record = layers[name]
        assert (record["kind"], record["shape"][:2]) == ("BinaryConnect", [1, 1])
        assert (record["weights"], record["bits"]) == (count, count)
        assert record["multiply_adds_dense"] == count
        assert "multiply_adds_direct" not in record
    totals = description["totals"]
    filters = 9 * (2 + 2 * 2 + 2 * 4 + 4 * 4)
    assert totals["filter_bits"] == filters
    direct = 9 * (256 * 2 + 256 * 2 * 2 + 64 * 2 * 4 + 64 * 4 * 4)
    assert totals["multiply_adds_direct"] == direct
    norms = 32 * 2 * (2 + 2 + 4 + 4 + 16 + 16 + 5)
    assert totals["bits"] == filters + sum(weights.values()) + 7 * 32 + norms
    monkeypatch.setenv("COLUMNS", "200")
    main([str(tmp_path / "model.safetensors")])
    [line] = [row for row in capsys.readouterr().out.splitlines() if "1x1x64x16" in row]
    assert line.count("1,024") == 2
    assert "1.0k" in line
    main([str(tmp_path / "model.safetensors"), "--html", str(tmp_path / "page.html")])
    assert 'data-key="1024">1.0k<' in (tmp_path / "page.html").read_text()


def test_comparison_of_two_checkpoints(report_runs):
    workdir = report_runs["seed_0"]
    first, last = (inspect(workdir / "checkpoints" / step) for step in ("44", "88"))
    # The records end with the epoch of the checkpoint.
    assert [part.records[-1]["step"] for part in (first, last)] == [44, 88]
    for record in compare(first, last):
        before, after = (
            read_trained(workdir / "checkpoints" / step).variables for step in ("44", "88")
        )
        binary, next_binary = (
            binary_filters(variables["params"], variables["centers"])[record["layer"]]
            for variables in (before, after)
        )
        # Centers do not change between the two epochs, so every flip changes the value.
        assert record["flip_ratio"] == np.mean(binary != next_binary)
        for name, measure in (("m_filters", "m_drift"), ("latent_filters", "latent_drift")):
            a, b = (v["params"][record["layer"]][name].ravel() for v in (before, after))
            assert record[measure] == pytest.approx(((b - a) @ (b - a) / (a @ a)) ** 0.5)
            assert record[measure] > 0
    assert [record["m_drift"] for record in compare(last, inspect(workdir))] == [0, 0]
    other = compare(last, inspect(report_runs["centers_3"]))
    assert [record["flip_ratio"] for record in other] == [None, None]


def test_other_networks_are_not_compared(report_runs, tmp_path):
    model, _, _ = random_model(widths=(3, 4))
    write_model(model, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="cannot be compared: they do not have the same"):
        compare(inspect(tmp_path / "model.safetensors"), inspect(report_runs["seed_0"]))


def test_any_array_can_be_taken_out(report_runs, tmp_path, capsys):
    workdir, path = str(report_runs["seed_0"]), tmp_path / "out.npy"
    arrays = {}
    for name in ("binary_filters", "m_filters", "reconstructed_filters"):
        main([workdir, "--array", f"layers/2/{name}", str(path)])
        arrays[name] = np.load(path, allow_pickle=False)
    assert "float32 [3, 3, 8, 4]" in capsys.readouterr().out
    centers = array_of(inspect(workdir), "conv_2/centers")
    assert set(arrays["binary_filters"].ravel().tolist()) == set(centers.tolist())
    expected = ops.reconstructed_filters(arrays["binary_filters"], arrays["m_filters"])
    np.testing.assert_array_equal(arrays["reconstructed_filters"], expected)
    assert array_of(inspect(workdir), "dense_2/bias").shape == (10,)


def test_tables_and_numbers_on_the_terminal(report_runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main([str(report_runs["seed_0"]), "--compare", str(report_runs["seed_1"])])
    out = capsys.readouterr().out
    assert "32.0 x smaller" in out
    assert "flip ratio" in out
    assert max(map(len, out.splitlines())) <= 80
    main([str(report_runs["seed_0"]), "--json"])
    assert json.loads(capsys.readouterr().out) == describe(inspect(report_runs["seed_0"]))


def test_every_layer_can_be_read_on_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model, _, _ = random_model(name="wide_resnet", num_centers=4)
    path = str(tmp_path / "a:x:b.safetensors")
    write_model(model, pathlib.Path(path))
    main([path, "--compare", path])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "a:x:b.safetensors" in out.replace("\n", "")
    cells = "".join(line.split("│")[1].strip() for line in out.splitlines() if line[0] == "│")
    for record in describe(inspect(path))["layers"]:
        # All layers are in the table of costs; an MCconv is in the two others, too.
        assert cells.count(record["layer"]) >= (3 if record["kind"] == "MCconv" else 1)


def test_bytes_on_disk(report_runs, model_path, capsys):
    workdir = report_runs["seed_0"]
    files = [path for path in (workdir / "checkpoints" / "88").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path, size in (
        (workdir, sum(len(file.read_bytes()) for file in files)),
        (model_path, len(model_path.read_bytes())),
    ):
        description = describe(inspect(path))
        assert description["totals"]["file_bytes"] == size
        main([str(path)])
        assert re.search(rf"on disk +│ {size:,}", capsys.readouterr().out)
        shown = f'<td data-key="{8 * size}">{size:,} bytes</td>'
        assert shown in page(inspect(path), description)


def test_an_array_is_written_whole_and_not_compared(report_runs, tmp_path, monkeypatch):
    arguments = [str(report_runs["seed_0"]), "--array", "conv_1/centers", str(tmp_path / "x.npy")]
    with pytest.raises(SystemExit, match=r"--compare=other does nothing with --array"):
        main([*arguments, "--compare", "other"])
    (tmp_path / "x.npy").write_text("before")

    def disk_full(number):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", disk_full)
        with pytest.raises(SystemExit, match="disk full"):
            main(arguments)
    assert (tmp_path / "x.npy").read_text() == "before"
    main(arguments)
    assert np.load(tmp_path / "x.npy", allow_pickle=False).shape == (2,)


@pytest.mark.parametrize("number", ["0", "3", "²", "٢", "9" * 5000])
def test_a_number_of_no_layer_is_told(number, model_path):
    with pytest.raises(InputError, match=r"has no array 'layers/.*/centers'"):
        array_of(inspect(model_path), f"layers/{number}/centers")


def test_what_an_older_config_lacks_has_its_default(report_runs, tmp_path):
    shutil.copytree(report_runs["seed_0"], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("pooling", "head"):
        del record["config"]["model"][name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    expected, found = (describe(inspect(p)) for p in (report_runs["seed_0"], tmp_path / "run"))
    assert found["layers"] == expected["layers"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist; name a work directory"),
        ("empty", "empty is not the work directory of a run: it has no config.json"),
        ("file.txt", "file.txt is not a .safetensors file, work directory or checkpoint"),
        ("run/checkpoints/7", "at step 7; choose one of the steps 44, 88"),
        ("old", "config.json does not fit this version ('mean'); train the run"),
        (
            "newer",
            "config.json does not fit this version (unknown field config.loss.tetha; did you mean"
            " theta?)",
        ),
        ("damaged", "config.json is damaged"),
    ],
)
def test_what_cannot_be_looked_into_is_one_line(name, message, report_runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    for copy in ("run", "old", "newer", "damaged"):
        shutil.copytree(report_runs["seed_0"], tmp_path / copy)
    (tmp_path / "run" / "checkpoints" / "7").mkdir()
    record = json.loads((tmp_path / "old" / "config.json").read_text())
    record["config"]["loss"]["tetha"] = 1e-3
    (tmp_path / "newer" / "config.json").write_text(json.dumps(record))
    del record["config"]["loss"]["tetha"]
    del record["data"]["mean"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(record))
    (tmp_path / "damaged" / "config.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / name)])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("place", [".", "/", "there"])
@pytest.mark.parametrize("flags", [("--html",), ("--array", "conv_1/m_filters")])
def test_a_directory_is_not_written_to(flags, place, model_path, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"error: {place}: Is a directory; .*another place$"):
        main([str(model_path), *flags, place])
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "model.safetensors"}


class Resources(html.parser.HTMLParser):
    """Collects the headings of a page, and the resources that it would load."""

    def __init__(self):
        super().__init__()
        self.found, self.headings, self._inside = [], [], False

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset")]
        self._inside = tag == "h2"

    def handle_data(self, data):
        if self._inside:
            self.headings.append(data)
            self._inside = False


def test_the_page_is_whole_in_itself(report_runs, tmp_path, capsys):
    path = tmp_path / "page.html"
    main([str(report_runs["seed_0"]), "--compare", str(report_runs["seed_1"]), "--html", str(path)])
    resources = Resources()
    resources.feed(path.read_text())
    assert resources.headings == [
        "Totals", "Layers", "Changes", "Training", "Filters over the epochs",
        "Latent weights and their quantization levels", "M-filters, plane by plane",
        "Filters of conv_1",
    ]  # fmt: skip
    assert len(resources.found) == 6  # five pictures and the icon
    assert all(value.startswith("data:") for value in resources.found)
    for word in ("http:", "https:", "@import", "url("):
        assert word not in path.read_text()


def test_names_on_the_page_are_text(model_path):
    inspected = inspect(model_path)
    description = describe(inspected) | {"path": "x"}
    description["layers"][0]["layer"] = "<script>alert(1)</script>"
    content = page(inspected, description)
    assert f"<title>{model_path}</title>" in content
    assert "<script>alert" not in content
    assert "&lt;script&gt;alert(1)" in content


@pytest.mark.slow
def test_the_page_opens_and_sorts_in_a_browser(report_runs, tmp_path):
    """In Chromium, if installed: no error, no request, and a click sorts."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    browser = next(filter(None, found), None)
    if browser is None:
        pytest.skip("install chromium")
    path = tmp_path / "page.html"
    main([str(report_runs["seed_0"]), "--html", str(path)])
    probe = """
    <script>
    const errors = [], bits = () => [...document.querySelectorAll("table")[1].tBodies[0].rows].map(
        row => Number(row.children[4].dataset.key));
    window.addEventListener("error", event => errors.push(event.message));
    const error = console.error;
    console.error = (...values) => { errors.push(values.join(" ")); error(...values); };
    window.addEventListener("load", () => {
      const button = document.querySelectorAll("table")[1].querySelectorAll("th button")[4];
      button.click(); const up = bits(); button.click(); const down = bits();
      const loaded = performance.getEntriesByType("resource").map(entry => entry.name);
      const result = {errors, up, down,
        requests: loaded.filter(name => !name.startsWith("data:"))};
      document.body.innerHTML = "<pre id=result>" + JSON.stringify(result) + "</pre>";
    });
    </script>"""
    path.write_text(path.read_text().replace("<head>", f"<head>{probe}"))
    dump = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    result = json.loads(dump.partition('<pre id="result">')[2].partition("</pre>")[0])
    assert result["errors"] == []
    assert result["requests"] == []
    assert result["up"] == sorted(result["up"])
    assert result["down"] == sorted(result["up"], reverse=True)
    assert len(set(result["up"])) > 3

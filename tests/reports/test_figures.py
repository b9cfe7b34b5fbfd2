import pathlib
import statistics

import numpy as np
import pytest

from mcn_jax.reports import figures, health_plots
from mcn_jax.workdirs.files import read_metrics

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures/v0_1"


@pytest.fixture(scope="module")
def records(report_runs):
    return {name: read_metrics(path / "metrics.jsonl") for name, path in report_runs.items()}


def line(axes, label):
    [found] = [line for line in axes.lines if line.get_label() == label]
    return found


def epochs(records, name):
    return [record[name] for record in records if record["kind"] == "epoch"]


def percent(values):
    return pytest.approx([100 * value for value in values])


def test_saved_files_are_whole_and_the_same_each_time(records, tmp_path):
    def saved(name):
        paths = figures.save(health_plots.health(records["seed_0"]), tmp_path / name)
        return paths, [path.read_bytes() for path in paths]

    paths, content = saved("a_0.5")
    assert [path.name for path in paths] == ["a_0.5.png", "a_0.5.svg"]
    assert content[0].startswith(b"\x89PNG")
    assert content[1].rstrip().endswith(b"</svg>")
    assert saved("b")[1] == content
    other = figures.save(health_plots.health(records["seed_1"]), tmp_path / "c")
    assert all(path.read_bytes() != before for path, before in zip(other, content, strict=True))


def test_curves_of_a_run(records):
    figure = figures.curves(records["seed_0"])
    loss_axes, accuracy_axes = figure.axes
    for split in ("train", "test"):
        loss = line(loss_axes, split)
        assert list(loss.get_xdata()) == [1, 2]
        assert list(loss.get_ydata()) == epochs(records["seed_0"], f"{split}_loss")
        accuracy = line(accuracy_axes, split)
        assert list(accuracy.get_ydata()) == percent(epochs(records["seed_0"], f"{split}_accuracy"))
    assert line(loss_axes, "train").get_linestyle() != line(loss_axes, "test").get_linestyle()
    assert len(loss_axes.lines) == len(figures.curves(records["umcn"]).axes[0].lines) == 2
    later = [r | {"binarized": r["epoch"] == 1} for r in records["seed_0"] if r["kind"] == "epoch"]
    loss_axes, _ = figures.curves(later).axes
    assert list(line(loss_axes, "binary from here").get_xdata()) == [1.5, 1.5]


@pytest.mark.parametrize(("name", "centers"), [("seed_0", 2), ("centers_3", 3)])
def test_health_shows_the_records_of_every_layer(records, name, centers):
    figure = health_plots.health(records[name])
    by_epoch = [record for record in records[name] if record["kind"] == "health"]
    assert [record["epoch"] for record in by_epoch] == [0, 1]
    flips, error, share, m_range, correlation, effective = figure.axes
    for layer in ("conv_1", "conv_2"):
        for axes, measure, scale in (
            (flips, "flip_ratio", 100), (error, "quantization_error", 1), (m_range, "m_min", 1),
            (correlation, "plane_correlation", 1), (effective, "effective_planes", 1),
        ):  # fmt: skip
            drawn = line(axes, layer)
            assert list(drawn.get_xdata()) == [1, 2]
            values = [scale * record[f"{layer}/{measure}"] for record in by_epoch]
            assert list(drawn.get_ydata()) == pytest.approx(values)
        names = [f"{layer}/share_{center}" for center in range(centers)]
        least = [100 * min(record[name] for name in names) for record in by_epoch]
        assert list(line(share, layer).get_ydata()) == pytest.approx(least)
        assert f"{layer}/share_{centers}" not in by_epoch[0]
    greatest = [[record[f"{layer}/m_max"] for record in by_epoch] for layer in ("conv_1", "conv_2")]
    assert [list(drawn.get_ydata()) for drawn in m_range.lines[1::2]] == greatest
    together = line(flips, "all layers together")
    assert list(together.get_ydata()) == percent(
        record["flip_ratio"] for record in records[name] if "flip_ratio" in record
    )
    styles = {(drawn.get_linestyle(), drawn.get_marker()) for drawn in share.lines}
    assert len(styles) == 2


def test_health_of_a_deep_network_names_the_first_layer_and_the_last(records):
    [template, *_] = [record for record in records["seed_0"] if record["kind"] == "health"]
    measures = {
        name.removeprefix("conv_1/"): value
        for name, value in template.items()
        if name.startswith("conv_1/")
    }
    record = {"kind": "health", "step": 1, "epoch": 0}
    for layer in range(33):
        record |= {f"block_{layer}/conv/{name}": value for name, value in measures.items()}
    figure = health_plots.health([record, record | {"epoch": 1}])
    assert len(figure.axes[0].lines) == 33
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "first layer, block_0/conv", "the 31 between", "last layer, block_32/conv",
    ]  # fmt: skip
    first, between, last = (figure.axes[0].lines[i] for i in (0, 1, 32))
    assert first.get_linestyle() != last.get_linestyle()
    assert between.get_linewidth() < first.get_linewidth()
    assert first.get_marker() == "None"
    of_one_epoch = health_plots.health([record]).axes[0]
    assert {line.get_marker() for line in of_one_epoch.lines} == {"."}
    assert all(tick == int(tick) for tick in of_one_epoch.get_xticks())


def older(record):
    """Returns a record without the measures that older versions did not write."""
    newer = ("/plane_correlation", "/effective_planes", "/m_spread")
    return {name: value for name, value in record.items() if not name.endswith(newer)}


def test_health_of_older_records_has_the_panels_of_its_measures(records):
    lines = [record for record in records["seed_0"] if record["kind"] == "health"]
    old = [older(record) for record in lines]
    assert len(old[0]) == len(lines[0]) - 6  # three measures of two layers
    figure = health_plots.health(old)
    assert len(figure.axes) == 4
    for axes, new in zip(figure.axes, health_plots.health(lines).axes, strict=False):
        assert axes.get_ylabel() == new.get_ylabel()
        drawn, expected = ([list(line.get_ydata()) for line in a.lines] for a in (axes, new))
        assert drawn == expected
    # A newer version resumed the run: its epochs alone are in the new panels.
    mixed = health_plots.health([old[0], lines[1]])
    assert list(line(mixed.axes[0], "conv_1").get_xdata()) == [1, 2]
    effective = line(mixed.axes[5], "conv_1")
    assert list(effective.get_xdata()) == [2]
    assert list(effective.get_ydata()) == [lines[1]["conv_1/effective_planes"]]
    fixture = FIXTURES / "mcn/metrics.jsonl"
    assert len(health_plots.health(read_metrics(fixture)).axes) == 4


def test_flips_of_zero_have_their_place(records):
    lines = [
        record | {"conv_1/flip_ratio": 0.1, "conv_2/flip_ratio": 0.001}
        for record in records["seed_0"]
        if record["kind"] == "health"
    ]
    assert health_plots.health(lines).axes[0].get_yscale() == "log"
    lines[-1]["conv_1/flip_ratio"] = 0.0
    axes = health_plots.health(lines).axes[0]
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] < 0
    assert 0 in axes.get_yticks()
    for record in lines:
        record["conv_1/flip_ratio"] = record["conv_2/flip_ratio"] = 0.0
    assert health_plots.health(lines).axes[0].get_yscale() == "linear"


def test_health_needs_binary_epochs(records):
    with pytest.raises(ValueError, match="no health records"):
        health_plots.health(records["umcn"])


def test_several_runs_become_mean_and_band(records):
    figure = figures.compare(
        {"MCN": [records["seed_0"], records["seed_1"]], "U": [records["umcn"]]}
    )
    accuracy_axes, error_axes = figure.axes
    a, b = (epochs(records[name], "test_accuracy") for name in ("seed_0", "seed_1"))
    means = [50 * (x + y) for x, y in zip(a, b, strict=True)]
    assert list(line(accuracy_axes, "MCN").get_ydata()) == pytest.approx(means)
    assert list(line(error_axes, "MCN").get_ydata()) == pytest.approx([100 - m for m in means])
    assert list(line(accuracy_axes, "U").get_ydata()) == percent(
        epochs(records["umcn"], "test_accuracy")
    )
    [band] = accuracy_axes.collections
    at_2 = [y for x, y in band.get_paths()[0].vertices if x == 2]
    spread = statistics.stdev([100 * a[1], 100 * b[1]])
    assert max(at_2) == pytest.approx(means[1] + spread)
    assert min(at_2) == pytest.approx(means[1] - spread)
    train = [drawn for drawn in accuracy_axes.lines if drawn.get_linestyle() == "--"]
    assert list(train[1].get_ydata()) == percent(epochs(records["umcn"], "train_accuracy"))
    markers = {line(accuracy_axes, name).get_marker() for name in ("MCN", "U")}
    assert len(markers) == 2


def test_runs_of_different_length_are_averaged_where_all_of_them_are(records):
    cut = [record for record in records["seed_1"] if record["epoch"] < 1]
    axes = figures.compare({"MCN": [records["seed_0"], cut]}).axes[0]
    assert list(line(axes, "MCN").get_xdata()) == [1]


def points(series, by_value):
    return [
        {"series": series, "value": value, "accuracy": accuracy}
        for value, accuracies in by_value.items()
        for accuracy in accuracies
    ]


def test_a_sweep_has_means_deviations_and_single_runs(tmp_path):
    first = points("MCN", {1e-3: [0.9, 0.92], 0.0: [0.8], 1e-4: [0.7, 0.74]})
    figure = figures.over_parameter(first + points("XNOR", {0.0: [0.5], 1e-3: [0.6]}), "theta")
    [axes] = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.0001", "0.001"]
    assert axes.get_xlabel() == "theta"
    # Zero is set apart: no line leads there, and the axis is broken after it.
    assert list(line(axes, "MCN").get_ydata()) == pytest.approx([72, 91])
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [("//", (0.5, 0))]
    mcn, xnor = axes.containers
    assert list(mcn.lines[0].get_ydata()) == pytest.approx([80, 72, 91])
    bars = np.array([segment[:, 1] for segment in mcn.lines[2][0].get_segments()[1:]])
    spreads = [statistics.stdev([70, 74]), statistics.stdev([90, 92])]
    assert (bars[:, 1] - bars[:, 0]) / 2 == pytest.approx(np.array(spreads))
    singles = [list(drawn.get_ydata()) for drawn in axes.lines if drawn.get_marker() == "."]
    assert singles == [pytest.approx([70, 74]), pytest.approx([90, 92])]
    assert list(xnor.lines[0].get_ydata()) == pytest.approx([50, 60])
    assert line(axes, "MCN").get_marker() != line(axes, "XNOR").get_marker()
    assert [path.stat().st_size > 1000 for path in figures.save(figure, tmp_path / "theta")] == [
        True, True,
    ]  # fmt: skip


def test_centers_stand_in_order_with_a_line_through_all():
    figure = figures.over_centers(points("MCN", {8: [0.9], 2: [0.7], 4: [0.85], 3: [0.8]}))
    [axes] = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "3", "4", "8"]
    assert list(line(axes, "MCN").get_ydata()) == pytest.approx([70, 80, 85, 90])
    assert not axes.texts


@pytest.mark.parametrize("length", [5, 40, 150])
def test_many_long_names_fit_into_the_figure_and_leave_the_axes_their_height(records, length):
    runs = {f"{i:02}{'x' * length}": [records["seed_0"]] for i in range(12)}
    figure = figures.compare(runs)
    figure.draw_without_rendering()
    [legend] = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= page.y1
    assert all(box.y1 < axes.get_window_extent().y0 for axes in figure.axes)
    assert all(axes.get_window_extent().height > 3 * figure.dpi for axes in figure.axes)


def test_settings_of_many_runs_differ_without_colour(records):
    names = [str(i) for i in range(24)]
    axes = figures.compare({name: [records["seed_0"]] for name in names}).axes[0]
    lines = [line(axes, name) for name in names]
    assert len({(drawn.get_linestyle(), drawn.get_marker()) for drawn in lines}) == 24
    [axes] = figures.over_parameter(
        [point for name in names for point in points(name, {0.1: [0.5], 0.2: [0.6]})], "theta"
    ).axes
    lines = [line(axes, name) for name in names]
    assert len({(drawn.get_linestyle(), drawn.get_marker()) for drawn in lines}) == 24


@pytest.mark.parametrize("losses", [(1.9, 1.2), (2.2, 0.4), (2.3, 0.004), (2.3, 2e-6)])
def test_a_loss_of_any_range_can_be_read(records, losses):
    lines = [r for r in records["seed_0"] if r["kind"] == "epoch"]
    lines = [r | {"train_loss": x, "test_loss": x} for r, x in zip(lines, losses, strict=True)]
    figure = figures.curves(lines)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    shown = [t.get_text() for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert len(shown) >= 3
    assert all(float(text) > 0 for text in shown)

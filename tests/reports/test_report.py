"""Tests reports of small runs, and runs `python -m mcn_jax.report` as a user would."""

import json
import pathlib
import re
import shutil
import statistics

import pytest

from mcn_jax import report
from mcn_jax.config import Config, flatten
from mcn_jax.errors import InputError
from mcn_jax.reports import tables
from mcn_jax.reports.runs import (
    differing_fields,
    group_runs,
    labels,
    read_run,
    read_runs,
    sweep,
)
from mcn_jax.workdirs.files import read_metrics

RECORDS = pathlib.Path(__file__).parents[2] / "results"


def copy(source, target, **fields):
    """Copies the small files of a run, and changes its config; "loss__theta" is loss.theta."""
    target.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "result.json"):
        shutil.copy(source / name, target / name)
    record = json.loads((target / "config.json").read_text())
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (record["config"][section] if section else record["config"])[field] = value
    (target / "config.json").write_text(json.dumps(record))
    return target


def still_running(source, target, **fields):
    """Copies a run as if only its first epoch were done."""
    copy(source, target, **fields)
    (target / "result.json").unlink()
    lines = (target / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "epoch")
    (target / "metrics.jsonl").write_text("".join(lines[: first + 1]) + '{"kind": "st')
    return target


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def groups_of(*workdirs):
    return group_runs([read_run(workdir) for workdir in workdirs])


def test_the_table_tells_what_differs_and_averages_seeds(report_runs):
    runs = report_runs
    rows = tables.table(groups_of(*runs.values()))
    assert [(row["method"], row["theta"], row["centers"]) for row in rows] == [
        ("MCN", "0", "2"), ("MCN", "0.001", "2"), ("MCN", "0.001", "3"), ("U-MCN", "0.001", "2"),
    ]  # fmt: skip
    fixed = {
        "method", "data", "network", "last epoch, %", "best epoch, %", "filter bits",
        "smaller than float32", "epochs", "time per run", "seeds",
    }  # fmt: skip
    assert rows[0].keys() - fixed == {"theta", "centers"}
    results = [result(runs["seed_0"]), result(runs["seed_1"])]
    last, best = ([100 * r[f"{name}_test_accuracy"] for r in results] for name in ("final", "best"))
    row = rows[1]
    assert row["data"] == "digits"
    assert row["network"] == "simple_cnn 2-4"
    assert row["last epoch, %"] == (
        f"{sum(last) / 2:.2f} ± {abs(last[0] - last[1]) / 2**0.5:.2f} (n = 2)"
    )
    assert row["best epoch, %"] == f"{sum(best) / 2:.2f} ± {abs(best[0] - best[1]) / 2**0.5:.2f}"
    # Each pair of maps has 9 weights in 4 planes; the image is one map.
    bits = 9 * 4 * (1 * 2 + 2 * 4)
    assert [row["filter bits"] for row in rows] == [
        str(bits), str(bits), str(2 * bits), f"{32 * bits:,}",
    ]  # fmt: skip
    assert [row["smaller than float32"] for row in rows] == ["32x", "32x", "16x", "1x"]
    assert row["epochs"] == "2"
    assert row["time per run"] == f"{sum(r['wall_seconds'] for r in results) / 2:,.0f} s"
    assert row["seeds"] == "0, 1"


def test_records_of_an_older_version_give_the_table_of_results():
    path = RECORDS / "digits.jsonl"
    older = {
        record["name"]
        for record in map(json.loads, path.read_text().splitlines())
        if re.fullmatch(r"(mcn|umcn|cnn)_seed\d", record["name"])
        and "root" not in record["config"]["config"]["data"]
    }
    assert len(older) == 9
    rows = tables.table(group_runs(run for run in read_runs(path) if run.workdir.name in older))
    assert [row["method"] for row in rows] == ["CNN", "MCN", "U-MCN"]
    text = (RECORDS.parent / "docs" / "experiments.md").read_text()
    for row in rows:
        assert f"| {row['last epoch, %']} | {row['filter bits']} |" in text


def sweep_line(workdir, name):
    contents = [json.loads((workdir / f"{file}.json").read_text()) for file in ("config", "result")]
    record = dict(zip(("config", "result"), contents, strict=True))
    return json.dumps({"name": name, **record, "metrics": read_metrics(workdir / "metrics.jsonl")})


def test_a_sweep_file_gives_the_table_of_its_runs(report_runs, tmp_path):
    lines = [sweep_line(workdir, name) for name, workdir in report_runs.items()]
    path = tmp_path / "sweep.jsonl"
    path.write_text("\n".join(lines) + "\n")
    runs = read_runs(path)
    assert [run.workdir.name for run in runs] == list(report_runs)
    expected = tables.table(groups_of(*report_runs.values()))
    assert tables.table(group_runs(runs)) == expected
    assert [run.records for run in runs] == [read_run(w).records for w in report_runs.values()]


def test_a_damaged_sweep_file_is_named(report_runs, tmp_path):
    path = tmp_path / "sweep.jsonl"
    good = sweep_line(report_runs["seed_0"], "a")
    for line, message in (
        ("{", r"sweep\.jsonl, line 2, is not a run"),
        ('{"name": "b"}', r"line 2, is not a run .*metrics"),
        (good, r"line 2: .*'a'"),
        (good.replace('"a"', '"b"').replace('"config": {"config"', '"config": {"x"'), r"jsonl/b/"),
    ):
        path.write_text(f"{good}\n{line}\n")
        with pytest.raises(InputError, match=message):
            read_runs(path)
    path.write_text("")
    with pytest.raises(InputError, match=r"sweep\.jsonl has no runs; wait for one"):
        read_runs(path)
    path.write_text(good, encoding="utf-16")
    with pytest.raises(InputError, match=r"sweep\.jsonl, line 1, is not a run"):
        read_runs(path)


def test_what_an_older_config_lacks_has_its_default(report_runs, tmp_path):
    workdir = tmp_path / "older"
    shutil.copytree(report_runs["seed_0"], workdir)
    path = workdir / "config.json"
    record = json.loads(path.read_text())
    record["config"] = {"seed": 3, "loss": {"theta": 1}}
    path.write_text(json.dumps(record))
    assert read_run(workdir).config == flatten(Config()) | {"seed": 3, "loss.theta": 1.0}


def test_a_running_run_is_shown_and_left_out_of_means(report_runs, tmp_path):
    running = still_running(report_runs["seed_1"], tmp_path / "running")
    groups = groups_of(report_runs["seed_0"], running)
    [row] = tables.table(groups)
    accuracy = 100 * result(report_runs["seed_0"])["final_test_accuracy"]
    assert row["last epoch, %"] == f"{accuracy:.2f} (n = 1); running, epoch 1/2"
    axes = tables.draw(groups)["curves"].axes[0]
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert drawn["MCN"] == [1, 2]
    assert drawn["MCN, seed 1, running, epoch 1/2"] == [1]
    [row] = tables.table(groups_of(running))
    assert row["last epoch, %"] == "running, epoch 1/2"
    assert row["best epoch, %"] == row["filter bits"] == row["time per run"] == "-"
    [record] = tables.summary(groups_of(running))
    assert record["final_test_accuracy"] == {"mean": None, "std": None, "n": 0}


def test_where_files_lie_makes_no_setting_of_its_own(report_runs, tmp_path):
    first = copy(report_runs["seed_0"], tmp_path / "a", init_from="/x/seed_0", data__workers=3)
    second = copy(report_runs["seed_1"], tmp_path / "b", init_from="/y/seed_1", data__data_dir="/z")
    [group] = groups_of(first, second)
    assert [run.config["seed"] for run in group.runs] == [0, 1]
    fresh, tuned = groups_of(report_runs["seed_0"], copy(first, tmp_path / "c"))
    assert differing_fields([fresh.setting, tuned.setting]) == ["init_from"]
    assert labels([fresh.setting, tuned.setting]) == ["MCN, from scratch", "MCN, fine-tuned"]


def test_students_of_different_teachers_are_different_settings(report_runs, tmp_path):
    paths = [
        copy(report_runs[f"seed_{seed}"], tmp_path / f"{name}_{seed}", loss__teacher=teacher)
        for name, teacher in (("first", "/x/one"), ("second", "/x/two"), ("alone", ""))
        for seed in (0, 1)
    ]
    groups = groups_of(*paths)
    assert [len(group.runs) for group in groups] == [2, 2, 2]
    settings = [group.setting for group in groups]
    assert differing_fields(settings) == ["loss.teacher"]
    assert labels(settings) == [
        "MCN, distilled from /x/one", "MCN, distilled from /x/two", "MCN, without a teacher",
    ]  # fmt: skip
    # Another setting of the first teacher is named by it, too.
    theta = copy(paths[0], tmp_path / "theta", loss__theta=0.5)
    places = [group.setting["loss.teacher"] for group in groups_of(*paths[:4], theta)]
    assert sorted(places) == ["/x/one", "/x/one", "/x/two"]
    [group] = groups_of(paths[0], paths[3])  # each seed may have a teacher of its own
    assert group.setting["loss.teacher"] is True


def test_folders_of_different_images_are_different_settings(report_runs, tmp_path):
    paths = [
        copy(report_runs[f"seed_{seed}"], tmp_path / str(seed), data__root=f"/{seed}")
        for seed in (0, 1)
    ]
    assert len(groups_of(*paths)) == 1
    record = json.loads((paths[1] / "config.json").read_text())
    record["data"]["full_name"] = "image_folder/other"
    (paths[1] / "config.json").write_text(json.dumps(record))
    assert len(groups_of(*paths)) == 2


def test_labels_name_what_tells_settings_apart(report_runs, tmp_path):
    source = report_runs["seed_0"]
    tuned = copy(source, tmp_path / "a", loss__center_loss_weight=1e-3, optimizer__momentum=0.5)
    settings = [group.setting for group in groups_of(source, tuned, report_runs["umcn"])]
    assert labels(settings) == [
        "MCN, no center loss, momentum 0.9",
        "MCN, center loss, lambda 0.001, momentum 0.5",
        "U-MCN",
    ]
    signed = copy(source, tmp_path / "signed", model__plane_signs="hadamard")
    settings = [group.setting for group in groups_of(source, signed)]
    assert labels(settings) == ["MCN", "MCN, hadamard"]
    assert "model.plane_signs" not in differing_fields(settings)
    named = copy(source, tmp_path / "b", optimizer__name="adam", model__name="wide_resnet")
    deeper = copy(source, tmp_path / "c", model__depth=28, model__name="wide_resnet")
    assert labels([group.setting for group in groups_of(named, deeper)]) == [
        "MCN, wide_resnet 20 layers 2-4", "MCN, wide_resnet 28 layers 2-4",
    ]  # fmt: skip


def test_a_sweep_keeps_series_in_which_all_else_is_equal(report_runs):
    runs = report_runs
    groups = groups_of(*runs.values())
    accuracy = {name: result(path)["final_test_accuracy"] for name, path in runs.items()}
    assert sweep(groups, "loss.theta") == [
        {"series": "MCN", "value": 0.0, "accuracy": accuracy["theta_0"]},
        {"series": "MCN", "value": 0.001, "accuracy": accuracy["seed_0"]},
        {"series": "MCN", "value": 0.001, "accuracy": accuracy["seed_1"]},
    ]
    assert [point["value"] for point in sweep(groups, "binarize.num_centers")] == [2, 2, 3]
    assert sweep(groups, "loss.center_loss_weight") == []


def test_the_command_writes_what_it_names(report_runs, tmp_path, capsys):
    out, numbers = tmp_path / "out", tmp_path / "report.json"
    lambda_1 = copy(report_runs["seed_0"], tmp_path / "lambda", loss__center_loss_weight=1e-3)
    workdirs = [str(path) for path in (*report_runs.values(), lambda_1)]
    report.main([*workdirs, "--out", str(out), "--json", str(numbers)])
    printed = capsys.readouterr().out
    drawn = {
        "curves", "theta", "lambda", "centers",
        "health_seed_0", "health_theta_0", "health_centers_3", "health_lambda",
    }  # fmt: skip
    files = {f"{name}.{suffix}" for name in drawn for suffix in ("png", "svg")} | {"report.md"}
    assert {path.name for path in out.iterdir()} == files
    for path in (*out.iterdir(), numbers):
        assert str(path) in printed.splitlines()
    text = (out / "report.md").read_text()
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    assert links == files - {"report.md"}
    two = statistics.mean(
        result(report_runs[name])["final_test_accuracy"] for name in ("seed_0", "seed_1")
    )
    assert f"| {100 * two:.2f} ± " in text
    assert f"{100 * two:.2f} ± " in printed
    for workdir in workdirs:
        assert f"`{workdir}`" in text
    record = next(r for r in json.loads(numbers.read_text()) if len(r["runs"]) == 2)
    assert record["final_test_accuracy"]["mean"] == pytest.approx(two)
    assert record["final_test_accuracy"]["n"] == 2
    assert record["runs"][1]["result"] == result(report_runs["seed_1"])
    assert record["fields"]["loss.theta"] == 1e-3
    before = {path: path.read_bytes() for path in out.iterdir()}
    report.main([*workdirs, "--out", str(out)])
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_narrow_terminal_gets_a_list_instead_of_cut_cells(report_runs, tmp_path, capsys):
    import rich.console

    rows = tables.table(groups_of(report_runs["seed_0"], report_runs["theta_0"]))
    tables.print_table(rows, rich.console.Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    for row in rows:
        assert ["last epoch, %", row["last epoch, %"]] in cells
        assert ["theta", row["theta"]] in cells


def test_runs_of_one_name_have_figures_of_their_own(report_runs, tmp_path):
    paths = [
        copy(report_runs["seed_0"], tmp_path / place / "run", loss__theta=theta)
        for place, theta in (("a", 0.1), ("b", 0.2))
    ]
    drawn = tables.draw(groups_of(*paths))
    assert list(drawn) == ["curves", "health_run", "health_run_2", "theta"]


def spoil(file, content):
    return lambda workdir: (workdir / file).write_text(content)


def spoil_json(file, **changes):
    def change(workdir):
        record = json.loads((workdir / file).read_text())
        (workdir / file).write_text(json.dumps(record | changes))

    return change


def spoil_health(workdir):
    records = read_metrics(workdir / "metrics.jsonl")
    del next(record for record in records if record["kind"] == "health")["conv_2/m_min"]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "RUN is not a directory; name work directories, such as runs/digits"),
        (lambda w: (w / "config.json").unlink(), "RUN has no config.json; name work directories"),
        (spoil("config.json", "{"), "RUN/config.json is damaged"),
        (spoil("config.json", "[]"), "RUN/config.json is damaged"),
        (spoil_json("config.json", config={"data": 3}), "RUN/config.json is damaged"),
        (
            spoil_json("config.json", config={"model": {"widths": "wide"}}),
            "RUN/config.json is damaged (config.model.widths='wide' must be a tuple of integers)",
        ),
        (spoil("result.json", '{"seed": 0'), "RUN/result.json is damaged"),
        (
            spoil("result.json", '{"seed": 0}'),
            "RUN/result.json is damaged: 'final_test_accuracy' is absent; mend it, or leave the",
        ),
        (spoil("metrics.jsonl", "{}\n"), "RUN/metrics.jsonl, line 1, is damaged: 'kind' is absent"),
        (spoil("metrics.jsonl", "no\n"), "RUN/metrics.jsonl, line 1, is damaged"),
        (
            spoil("metrics.jsonl", '{"kind": "epoch", "step": 4, "epoch": "x"}\n'),
            "RUN/metrics.jsonl, line 1, is damaged: 'epoch' is 'x'; mend it",
        ),
        (lambda w: (w / "metrics.jsonl").write_bytes(b'"\xff"\n'), "metrics.jsonl, line 1, is dam"),
        (spoil_health, "RUN/metrics.jsonl is damaged: not all of its health records"),
        (spoil("metrics.jsonl", ""), "RUN has no complete epoch yet; wait for one, or leave"),
        (lambda w: (w / "metrics.jsonl").unlink(), "RUN has no complete epoch yet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line_before_anything_is_written(
    report_runs, tmp_path, capsys, damage, message
):
    workdir = copy(report_runs["seed_1"], tmp_path / "run")
    damage(workdir)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        report.main([str(report_runs["seed_0"]), str(workdir), "--out", str(out)])
    line = str(ended.value)
    assert line.startswith("mcn_jax.report: error: ")
    assert message.replace("RUN", str(workdir)) in line
    assert "\n" not in line
    assert not out.exists()
    assert capsys.readouterr().out == ""


def test_a_run_of_an_older_version_that_was_resumed_is_shown(report_runs, tmp_path):
    workdir = copy(report_runs["seed_1"], tmp_path / "run")
    records = read_metrics(workdir / "metrics.jsonl")
    first, second = (record for record in records if record["kind"] == "health")
    newer = [name for name in first if name.endswith(("_planes", "_correlation", "m_spread"))]
    assert len(newer) == 6  # three measures of two layers
    for name in newer:
        del first[name]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    run = read_run(workdir)
    assert [r for r in run.records if r["kind"] == "health"] == [first, second]


def test_runs_given_twice_are_both_named(report_runs, tmp_path):
    first, second = report_runs["seed_0"], copy(report_runs["seed_0"], tmp_path / "again")
    with pytest.raises(InputError, match=f"{first} and {second} have the same config and seed=0"):
        groups_of(first, second)
    other = first.parent / "theta_0" / ".." / "seed_0"
    with pytest.raises(InputError, match=f"{re.escape(str(other))} is the same as {first}; leave"):
        groups_of(first, other)


def test_places_that_cannot_be_written_to_are_refused_first(report_runs, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--out", str(tmp_path / "file")], "is a file; name a directory"),
        (["--json", str(tmp_path / "none" / "a.json")], "there is no directory"),
        (["--json", str(tmp_path)], "is a directory; name a file"),
    ):
        with pytest.raises(SystemExit, match=f"mcn_jax.report: error: {arguments[0]}=.*{message}"):
            report.main([str(tmp_path / "missing"), *arguments])


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        report.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("WORKDIR", "--out DIR", "--json FILE", "health_RUN"):
        assert flag in text

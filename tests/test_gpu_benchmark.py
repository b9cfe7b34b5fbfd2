"""Tests benchmarks/gpu.py on the CPU, at tiny sizes."""

import json
import os
import pathlib
import signal
import threading
import time

import benchmark_tables
import gpu
import gpu_steps
import gpu_tables
import jax.numpy as jnp
import mcconv
import pytest
import record_files
import roofline
from measure import FEWEST, WARM_UP, alternated
from turns import DeadlineError, join

from mcn_jax.errors import InputError
from mcn_jax.ops import fastest
from mcn_jax.ops.fastest import Shape
from mcn_jax.ops.mcconv import FORMS, Form
from processes import Running, run

ROOT = pathlib.Path(__file__).parents[1]
TINY_STEPS = ("--depth=8", "--widths=1,1,1,1", "--batch_size=2", "--steps=2", "--repeats=1")
TINY_LAYER = Shape(in_maps=1, out_maps=2, planes=4, size=4, stride=2)


def h100(benchmark, run="main"):
    return record_files.read_benchmark("h100", benchmark, run)


def fails(*_):
    raise NotImplementedError("not on this device\nmore about it")


@pytest.fixture
def broken_form(monkeypatch):
    monkeypatch.setitem(FORMS, "broken", Form(fails, fails))


def refused(capsys, *arguments):
    """Returns the one line in which a command line is refused."""
    with pytest.raises(SystemExit) as ended:
        gpu.main([*map(str, arguments)])
    assert ended.value.code not in (0, None)
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_steps_are_measured_without_a_network_that_fails(
    tmp_path, monkeypatch, capsys, broken_form
):
    monkeypatch.setitem(gpu_steps.NETWORKS, "broken", ({}, {"quantized": True, "form": "broken"}))
    out = tmp_path / "new" / "step.json"
    gpu.main(["steps", *TINY_STEPS, "--networks=broken;WRN;U-MCN", f"--out={out}"])
    named = [line for line in capsys.readouterr().out.splitlines() if "broken" in line]
    assert named == ["broken: not measured: NotImplementedError: not on this device"]
    record, recorded = json.loads(out.read_text()), h100("step", "16-16-32-64_bfloat16")
    assert record.keys() == recorded.keys() | {"native_kernel"}
    [network], [recorded] = record["networks"], recorded["networks"]
    assert network.keys() == recorded.keys() | {"config", "depth"}
    assert (network["config"], network["depth"]) == ("cifar10_20_16_16_32_64", 8)
    assert (network["widths"], network["batch_size"]) == ([1, 1, 1, 1], 2)
    assert (network["steps_per_dispatch"], network["repeats"]) == (2, 1)
    measured = ("median_seconds", "images_per_second", "temporary_bytes", "compile_seconds")
    for name in (*measured, "over_wrn"):
        assert network[name].keys() == {"WRN", "U-MCN"}
        assert all(value > 0 for value in network[name].values())
    for name, seconds in network["median_seconds"].items():
        assert network["images_per_second"][name] == pytest.approx(2 / seconds)
        assert network["over_wrn"][name] == pytest.approx(
            seconds / network["median_seconds"]["WRN"]
        )

    peer = h100("step", "pytorch_16-16-32-64_bfloat16")
    monkeypatch.setattr(
        gpu_tables, "read_benchmark", lambda *n: peer if "pytorch" in n[-1] else record
    )
    assert gpu_tables.h100_step_table().count("| 1-1-1-1 | bfloat16 | 2 | U-MCN |") == 3


def test_no_network_can_be_measured(tmp_path, monkeypatch, capsys, broken_form):
    monkeypatch.setitem(gpu_steps.NETWORKS, "broken", ({}, {"quantized": True, "form": "broken"}))
    arguments = ("steps", *TINY_STEPS, "--networks=broken", f"--out={tmp_path / 'step.json'}")
    assert "--networks=broken" in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "depth", "widths"),
    [
        ([], 20, (16, 16, 32, 64)),
        (["--depth=34"], 34, (16, 16, 32, 64)),
        ([f"--config={ROOT / 'configs' / 'cifar100.py'}"], 34, (64, 64, 128, 256)),
    ],
)
def test_the_network_is_that_of_the_config_and_the_options(arguments, depth, widths):
    options = gpu.make_parser().parse_args(["steps", *arguments, "--out=x", "--batch_size=8"])
    config = gpu_steps.network_config(options)
    assert (config.model.depth, config.model.widths) == (depth, widths)
    assert (config.dtype, config.batch_size) == ("bfloat16", 8)


def test_the_tables_count_the_convolutions_of_each_depth():
    widths = {"widths": [16, 16, 32, 64]}
    counts = {
        depth: len(benchmark_tables.convolutions(widths | depths))
        for depth, depths in ((8, {"depth": 8}), (20, {"depth": 20}), (34, {"depth": 34}))
    }
    assert counts == {8: 7, 20: 19, 34: 31}
    assert len(benchmark_tables.convolutions(widths)) == 19  # records without a depth


def test_layers_are_measured_without_a_form_that_fails(tmp_path, monkeypatch, capsys, broken_form):
    monkeypatch.setattr(gpu, "LAYERS", (TINY_LAYER,))
    sizes = ("--largest_batch=4", "--calls=1", "--repeats=1")
    gpu.main(["layers", "--forms=broken,direct,factored", *sizes, f"--out={tmp_path}"])
    named = [line for line in capsys.readouterr().out.splitlines() if "broken" in line]
    assert [line.partition(" (")[0] for line in named] == [
        f"broken, {what}, {dtype}"
        for dtype in ("bfloat16", "float32")
        for what in ("forward", "with gradient")
    ]
    assert all("NotImplementedError: not on this device" in line for line in named)
    records = {}
    for dtype in ("bfloat16", "float32"):
        record = records[dtype] = json.loads((tmp_path / f"mcconv_{dtype}.json").read_text())
        recorded = h100("mcconv", dtype)
        assert record.keys() == recorded.keys() | {"native_kernel"}
        assert (record["dtype"], record["repeats"], record["calls"]) == (dtype, 1, 1)
        [layer] = record["layers"]
        assert layer.keys() == recorded["layers"][0].keys()
        assert Shape.of(layer) == TINY_LAYER
        for what in ("forward", "with gradient"):
            assert layer[what].keys() == recorded["layers"][0][what].keys()
            assert layer[what]["over_ordinary"].keys() == {"direct", "factored"}
    monkeypatch.setattr(gpu_tables, "read_benchmark", lambda *names: records[names[-1]])
    assert gpu_tables.h100_layer_table().count("| 1-2 | 4x4 |") == 2


def test_a_form_that_fails_raises_its_error_elsewhere(broken_form):
    with pytest.raises(NotImplementedError):
        mcconv.measure(TINY_LAYER, 4, jnp.dtype("float32"), 1, 1, ["broken"])


def test_a_form_can_be_measured_alone():
    record = mcconv.measure(TINY_LAYER, 4, jnp.dtype("float32"), 1, 1, ["auto"])
    assert record["forward"]["over_ordinary"].keys() == {"auto"}
    assert "factored_over_direct" not in record["forward"]


def test_the_machine_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "SIZES", (8,))
    monkeypatch.setattr(roofline, "ARRAY_BYTES", 2**12)
    out = tmp_path / "machine.json"
    gpu.main(["machine", "--repeats=1", f"--out={out}"])
    record, recorded = json.loads(out.read_text()), h100("machine")
    assert record.keys() == recorded.keys() | {"native_kernel"}
    assert {name: [*rates] for name, rates in record["peak"].items()} == {
        name: [*rates] for name, rates in recorded["peak"].items()
    }
    assert all(rate > 0 for rates in record["peak"].values() for rate in rates.values())
    for errors in record["float32_error"].values():
        assert all(1e-8 < error < 1e-5 for error in errors.values())


@pytest.mark.parametrize("command", ["steps", "layers", "machine"])
def test_nothing_begins_after_the_deadline(command, tmp_path, capsys):
    gpu.main([command, "--until=1", f"--out={tmp_path}/record"])
    assert "the deadline has passed" in capsys.readouterr().out.splitlines()[-1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_layers_end_where_the_longest_would_pass_the_deadline(tmp_path, monkeypatch, capsys):
    now = 0.0

    def takes_ten_seconds(*arguments, **keywords):
        nonlocal now
        now += 10
        return {"with gradient": {"over_ordinary": {}}}

    monkeypatch.setattr(mcconv, "measure", takes_ten_seconds)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now)
        gpu.main(["layers", "--dtypes=float32", "--until=25", f"--out={tmp_path}"])
    assert "the deadline has passed" in capsys.readouterr().out.splitlines()[-1]
    record = json.loads((tmp_path / "mcconv_float32.json").read_text())
    assert len(record["layers"]) == 2


@pytest.mark.parametrize(("until", "counted"), [(0, FEWEST), (float("inf"), FEWEST + 2)])
def test_fewer_turns_are_counted_after_the_deadline(until, counted):
    calls = []
    times = alternated({"a": lambda: calls.append(1)}, FEWEST + 2, until=until)
    assert (len(times["a"]), len(calls)) == (counted, WARM_UP + counted)


def killed_in_turn(directory, number):
    """Takes a turn, and is killed when the file `end` appears."""
    with join(directory, number, float("inf")):
        while not (directory / "end").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_waits_until_earlier_ones_have_ended_in_any_way(tmp_path):
    waited = threading.Event()

    def wait(turn):
        turn.wait()
        waited.set()

    with join(tmp_path, 2, time.time() + 60) as turn:
        thread = threading.Thread(target=wait, args=[turn])
        thread.start()
        assert not waited.wait(0.2)  # neither process has started
        with join(tmp_path, 0, float("inf")):
            running = Running(killed_in_turn, tmp_path, 1)
            while not (tmp_path / "1").exists():
                time.sleep(0.01)
        early = waited.wait(0.2)
        (tmp_path / "end").touch()
        thread.join()
        assert not early  # process 1 was running
        assert running.finish().returncode == -signal.SIGKILL
        assert waited.is_set()


def test_the_deadline_ends_the_wait(tmp_path):
    with join(tmp_path, 1, time.time() + 0.2) as turn, pytest.raises(DeadlineError):
        turn.wait()


def test_a_turn_ends_with_an_error(tmp_path, capsys):
    place = (f"--turns={tmp_path}", "--turn=0", f"--out={tmp_path / 'x.json'}")
    assert "no_config.py" in refused(capsys, "steps", "--config=no_config.py", *place)
    with join(tmp_path, 1, time.time() + 60) as turn:
        turn.wait()


def test_a_turn_is_taken_once(tmp_path):
    with join(tmp_path, 3, float("inf")):
        pass
    with pytest.raises(InputError, match="--turn=3"), join(tmp_path, 3, float("inf")):
        pass


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["steps", "--networks=WRN;UMCN"], ["'UMCN'", "did you mean U-MCN?"]),
        (["layers", "--forms=direct,factord"], ["'factord'", "did you mean factored?"]),
        (["layers", "--dtypes=float16"], ["'float16'", "bfloat16"]),
        (["steps", "--dtype=float16"], ["'float16'", "bfloat16"]),
        (["steps", "--widths=4,x"], ["'4,x'", "16,16,32,64"]),
        (["steps", "--widths=8,4,4,4"], ["(8, 4, 4, 4)", "must not decrease"]),
        (["steps", "--depth=9"], ["depth=9", "8 and 10"]),
        (["steps", "--steps=0"], ["'0'", "at least 1"]),
        (["steps", "--batch_size=50001"], ["50001", "lower it"]),
        (["steps", "--config=nowhere.py"], ["nowhere.py", "configs/*.py"]),
        (["steps", f"--config={ROOT}/configs/mnist.py"], ["mnist.py", "configs/cifar10.py"]),
        (["steps", f"--config={ROOT}/configs/imagenet100.py"], ["100.py", "configs/cifar10.py"]),
        (["layers", "--turn=1"], ["--turn=1", "--turns"]),
        (["machine", f"--out={ROOT}"], [str(ROOT), "name a JSON file"]),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, named, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    line = refused(capsys, arguments[0], out, *arguments[1:])
    assert all(text in line for text in named), line


def test_pytorch_is_missed_in_one_line(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(gpu_steps.importlib.util, "find_spec", lambda name: None)
        line = refused(capsys, "pytorch", f"--out={tmp_path / 'x.json'}")
    assert "pip install -r benchmarks/requirements.txt" in line


def test_the_command_ends_without_an_error_after_the_deadline(tmp_path):
    ended = run("gpu", "layers", "--until=1", "--out=here", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "the deadline has passed" in ended.stdout


def layer_record(shape, **over_ordinary):
    """Returns the record of a layer; the factored form's gain is over the direct form."""
    measured = {"over_ordinary": over_ordinary}
    if {"direct", "factored"} <= over_ordinary.keys():
        measured["factored_over_direct"] = over_ordinary["factored"] / over_ordinary["direct"]
    return {**shape._asdict(), "batch": 4, "form": "direct", "with gradient": measured}


def test_the_table_of_auto_is_made_from_a_record(tmp_path, monkeypatch, capsys):
    table, path = tmp_path / "fastest.json", tmp_path / "record.json"
    shapes = [Shape(maps, maps, 4, 8, 1) for maps in (1, 2, 4, 8, 16)]
    old = {"dtype": "bfloat16", **shapes[0]._asdict(), "form": "factored"}
    table.write_text(json.dumps([old | {"platform": "cuda"}, old | {"platform": "tpu"}]))
    monkeypatch.setattr(mcconv, "TABLE", table)
    layers = [
        layer_record(shapes[0], direct=1.0, factored=0.9, pallas=0.5),
        layer_record(shapes[1], direct=1.0, factored=0.9, pallas=0.95),
        layer_record(shapes[2], direct=1.0, factored=1.2),
        layer_record(shapes[3], pallas=0.7),
        layer_record(shapes[4]),  # all forms failed
    ]
    path.write_text(json.dumps({"platform": "cuda", "dtype": "bfloat16", "layers": layers}))
    mcconv.tune_from(path)
    rows = fastest.parse(json.loads(table.read_text()))
    assert rows["tpu", "bfloat16"] == [(shapes[0], "factored")]
    assert rows["cuda", "bfloat16"] == list(
        zip(shapes[:4], ("pallas", "factored", "direct", "pallas"), strict=True)
    )
    assert "4 layers on cuda in bfloat16" in capsys.readouterr().out


def test_the_gain_of_native_code_is_over_the_form_of_the_row(tmp_path, monkeypatch):
    table, path = tmp_path / "fastest.json", tmp_path / "record.json"
    table.write_text("[]")
    monkeypatch.setattr(mcconv, "TABLE", table)
    shapes = [Shape(maps, maps, 4, 8, 1) for maps in (1, 2)]
    layers = [
        layer_record(shapes[0], direct=1.0, factored=0.5, native=0.25),
        layer_record(shapes[1], direct=1.0, factored=2.0),
    ]
    layers[0]["with gradient"]["native_over"] = {"direct": 0.25, "factored": 0.5}
    path.write_text(json.dumps({"platform": "cpu", "dtype": "float32", "layers": layers}))
    mcconv.tune_from(path)
    rows = json.loads(table.read_text())
    assert fastest.parse(rows)["cpu", "float32"] == [(shapes[0], "factored"), (shapes[1], "direct")]
    assert fastest.parse(rows, "native_over_form")["cpu", "float32"] == [
        (shapes[0], 0.5),
        (shapes[1], None),
    ]
    chosen = [layer | {"form": mcconv.faster_form(layer)} for layer in layers]
    assert [mcconv.auto(layer, by_table=False) for layer in chosen] == ["native", "direct"]
    monkeypatch.setattr(fastest, "_measured_gains", lambda: fastest.parse(rows, "native_over_form"))
    assert [mcconv.auto(layer, by_table=True) for layer in chosen] == ["native", "direct"]
    rows[0]["native_over_form"] = 1.5
    assert mcconv.auto(chosen[0], by_table=True) == "factored"


def test_another_record_is_refused_and_the_table_is_kept(tmp_path, monkeypatch):
    table, path = tmp_path / "fastest.json", tmp_path / "record.json"
    monkeypatch.setattr(mcconv, "TABLE", table)
    path.write_text(json.dumps({"platform": "cuda", "dtype": "bfloat16", "networks": []}))
    with pytest.raises(InputError, match="is not a record of layers"):
        mcconv.tune_from(path)
    assert not table.exists()

"""Tests the C source of networks: compiles it, and compares its logits with JAX's."""

import ctypes
import dataclasses
import json
import re
import subprocess

import cortex_m4
import numpy as np
import pytest

from c_programs import (
    STRICT,
    compiled,
    logits_from_c,
    need_compiler,
    relative_difference,
    run,
)
from exported import random_images, random_model
from mcn_jax import export
from mcn_jax.config import BinarizeConfig, DataConfig, ModelConfig
from mcn_jax.data.dataset import open_dataset
from mcn_jax.deploy import c_library, predictor
from mcn_jax.deploy.c_fusion import fuse_additions
from mcn_jax.deploy.c_memory import Buffer, Step, plan_arena
from mcn_jax.deploy.c_source import c_source, write_c_source
from mcn_jax.deploy.c_trace import translate
from mcn_jax.deploy.model_file import model_of, read_model, write_model
from mcn_jax.errors import InputError
from mcn_jax.layers.table import LAYERS
from mcn_jax.workdirs.trained import read_trained
from small_runs import digits_config

NETWORKS = {
    "two centers": {},
    "four centers, color": {"num_centers": 4, "channels": 3},
    "three centers, three planes": {"num_centers": 3, "planes": 3},
    "rgbx, padded images": {"input_planes": "rgbx", "channels": 3, "image_size": 20},
    "odd sizes, first plane": {
        "size": (37, 21), "input_planes": "first", "widths": (3, 5, 4), "head": "linear",
        "channels": 3,
    },
    "signs per plane": {"plane_signs": "hadamard", "channels": 3, "input_planes": "rgbx"},
    "signs per plane, many groups, four centers": {
        "name": "wide_resnet", "plane_signs": "hadamard", "planes": 2, "widths": (5, 9, 11, 16),
        "num_centers": 4, "head": "linear",
    },
    "signs of eight planes, three centers": {
        "plane_signs": "hadamard", "planes": 8, "widths": (1, 5), "num_centers": 3,
    },
    "tiles of columns": {"size": (12, 72), "num_centers": 4},
    "wide_resnet": {"name": "wide_resnet", "channels": 3, "head": "linear"},
    "wide_resnet, strided stem": {"name": "wide_resnet", "stem": "imagenet", "size": (16, 80)},
    "tiles of columns that add": {
        "name": "wide_resnet", "widths": (2, 2, 2, 3), "size": (8, 40), "channels": 3,
        "head": "linear",
    },
    "tiles of columns that add, preactivation": {
        "name": "resnet", "preactivation": True, "size": (5, 72), "head": "linear",
    },
    "long strides": {
        "name": "wide_resnet", "size": (12, 180), "strides": (3, 4, 1), "planes": 2,
        "head": "linear",
    },
    "one bit, stride of four": {
        "name": "resnet", "size": (7, 150), "strides": (1, 4), "conv": "bwn", "pointwise": "bwn",
        "planes": 1, "head": "linear",
    },
    "one row": {
        "name": "nin", "size": (1, 99), "conv": "bwn_exact", "pointwise": "dorefa", "planes": 1,
        "head": "one_bit_hidden",
    },
    "one class": {"classes": 1, "head": "linear"},
    "resnet, zeros": {"name": "resnet", "shortcut": "zeros", "head": "conv"},
    "resnet, projections": {
        "name": "resnet", "block": "bottleneck", "head": "linear", "preactivation": True,
        "num_centers": 4,
    },
    "one bit, pointwise": {
        "name": "resnet", "block": "bottleneck", "conv": "irnet", "pointwise": "mcdonnell",
        "planes": 1, "widths": (5, 6, 7), "size": (15, 15),
    },
    "one scale per layer": {"conv": "dorefa", "planes": 3, "head": "dense_batch_norm"},
    "scale per filter": {"conv": "bwn", "planes": 1, "widths": (5, 6), "head": "one_bit_hidden"},
    "signs": {"conv": "bnn", "head": "one_bit_dense"},
    "signs and their scales": {"conv": "xnor", "name": "wide_resnet", "head": "conv_relu"},
    "maxout head": {"conv": "bwn_exact", "head": "maxout", "stem_conv": "conv"},
    "convnet": {"name": "convnet", "conv": "binaryconnect", "widths": (2, 3, 3)},
    "densenet": {"name": "densenet", "conv": "mcdonnell", "head": "linear"},
    "clipped": {"conv": "bnn", "num_centers": 0},
    "float": {"conv": "conv", "planes": 3, "channels": 3},
    "float stem": {"stem_conv": "conv", "input_planes": "copy"},
    "max-pooling": {"pooling": "max", "head": "linear"},
    "average pooling": {"name": "wide_resnet", "pooling": "average"},
    "spectral pooling": {"name": "wide_resnet", "pooling": "spectral", "size": (12, 18)},
    "learned strides": {"name": "resnet", "pooling": "diffstride", "size": (20, 17)},
    # The second pooling leaves 3x4 pixels, as many as channels.
    "overlapping windows": {"name": "nin", "conv": "mcdonnell", "size": (13, 17)},
    "lbcnn": {"name": "lbcnn", "conv": "mcdonnell", "widths": (3,), "depth": 2},
    "maxout": {"name": "maxout", "conv": "conv", "planes": 1, "size": (28, 28)},
    "int8 dense": {"dense": "int8"},
    "float16 dense": {"dense": "float16"},
}  # fmt: skip
HOSTILE = (
    '"};int evil(void){return system("rm -rf /");}/*', "a\nb\r\t", "??/", "??/\n\"", "*/ #error",
    "\\", "\\\"", "日本語 é", "%s%n", "",
)  # fmt: skip


def living_model(**fields):
    """Returns a random model whose logits depend on the image, for `fields` of `random_model`."""
    model, _, config = random_model(**fields)
    if LAYERS[config.model.conv].takes_signs:
        return model
    # With negative offsets, a ReLU may leave nothing.
    tensors = {n: abs(t) if n.endswith("/offset") else t for n, t in model.tensors.items()}
    return dataclasses.replace(model, tensors=tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_those_of_jax(name, tmp_path):
    model = living_model(**NETWORKS[name])
    images = random_images(4, model)
    logits = logits_from_c(c_source(model), tmp_path, images)
    expected = predictor.of_model(model).logits(images)
    assert relative_difference(logits, expected) <= 1e-5


@pytest.mark.parametrize(
    "name", ["four centers, color", "wide_resnet", "signs and their scales", "signs per plane"]
)
@pytest.mark.parametrize(
    ("compiler", "flags"), [("cc", ("-O3",)), ("clang", ("-O2",)), ("cc", ("-O2", "-m32"))]
)
def test_compilers_and_word_sizes(name, compiler, flags, tmp_path):
    model = living_model(**NETWORKS[name])
    images, source = random_images(4, model), c_source(model)
    logits = logits_from_c(source, tmp_path, images, compiler, flags)
    assert relative_difference(logits, predictor.of_model(model).logits(images)) <= 1e-5
    run(str(compiled(source, tmp_path, "model_selftest.c", compiler, flags)))


def test_selftest_notices_a_wrong_weight(tmp_path):
    model, _, _ = random_model()
    source = c_source(model)
    run(str(compiled(source, tmp_path, "model_selftest.c")))
    text = source.files["model.c"]
    [(bias, first)] = re.findall(r"( dense_2_offsets_\d+\[5\] = \{\n\s+)([^,]+),", text)
    wrong = text.replace(bias + first, f"{bias}{float(first[:-1]) + 0.01}f")
    changed = dataclasses.replace(source, files=source.files | {"model.c": wrong})
    program = compiled(changed, tmp_path, "model_selftest.c")
    assert subprocess.run([program], check=False).returncode == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"conv": "lbc"},
            r"the layer conv_1 \(.*\) has no C source; these have: mcconv, conv, bin",
        ),
        ({"conv": "phc"}, r"the layer conv_1 \(.*\) has no C source"),
        (
            {"plane_signs": "quaternion"},
            "the layer conv_1 has plane_signs='quaternion', which has no C source; use the"
            " .safetensors or the .onnx file, or train with model.plane_signs=hadamard",
        ),
        ({"num_centers": 5}, "the layer conv_1 has 5 centers, but C source supports only 4"),
        ({"num_centers": 0}, "the layer conv_1 has float filters with M, which have no C source"),
    ],
)
def test_what_is_not_supported_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        c_source(random_model(**fields)[0])


def test_networks_that_need_too_much_memory_are_refused(monkeypatch):
    monkeypatch.setattr("mcn_jax.deploy.c_source.MAX_ARENA_BYTES", 10_000)
    with pytest.raises(InputError, match=r"the network needs 1\d,\d+ bytes of activations"):
        c_source(random_model()[0])


def test_refused_networks_leave_no_files(report_runs, tmp_path):
    arguments = [str(report_runs["umcn"]), str(tmp_path / "out"), "--no-evaluate", "--c"]
    with pytest.raises(SystemExit, match="the layer conv_1 has float filters with M"):
        export.main(arguments)
    assert not (tmp_path / "out").exists()


def test_hostile_class_names_stay_strings(tmp_path):
    model, _, _ = random_model(classes=len(HOSTILE))
    model = dataclasses.replace(model, class_names=HOSTILE)
    write_model(model, tmp_path / "model.safetensors")
    source = c_source(read_model(tmp_path / "model.safetensors"))
    for text in source.files.values():
        assert text.isascii()
        assert "??" not in text
        assert "evil" not in re.sub(r'"[^"\n]*"', "", text)
    need_compiler("cc")
    write_c_source(source, tmp_path)
    flags = (*STRICT, "-Wtrigraphs", "-shared", "-fPIC", str(tmp_path / "model.c"))
    run("cc", *flags, "-o", str(tmp_path / "model.so"))
    library = ctypes.CDLL(str(tmp_path / "model.so"))
    names = (ctypes.c_char_p * len(HOSTILE)).in_dll(library, "mcn_model_class_names")
    assert tuple(name.decode() for name in names) == HOSTILE
    assert not hasattr(library, "evil")


def test_numbers_beyond_float32_are_refused():
    model, _, _ = random_model()
    images = dataclasses.replace(model.images, mean=(1e30,), std=(1e-37,))
    with pytest.raises(InputError, match="is beyond float32; C source cannot hold it"):
        c_source(dataclasses.replace(model, images=images))


def test_filters_stay_bits():
    model, _, _ = random_model(widths=(8, 16), head="linear", classes=2, size=(4, 4))
    program, _ = translate(model)
    text = "".join(program.constants)
    # Four bits per four weights: 9 taps, 4 and 32 input channels; a row of a tap is whole bytes.
    codes = dict(re.findall(r"static const uint8_t (\w+)_codes_\d+\[(\d+)\]", text))
    assert codes == {"conv_1": "72", "conv_2": "576"}
    bits = sum(tensor.nbytes for name, tensor in model.tensors.items() if name.endswith("/bits"))
    assert bits == 36 + 576
    floats = sum(tensor.size for tensor in model.tensors.values() if tensor.dtype == np.float32)
    # Both layers have the same two centers here, which are stored once.
    assert program.constant_bytes == 72 + 576 + 4 * (floats - 2)


def test_the_arena_is_far_smaller_than_all_arrays():
    model, _, _ = random_model(name="wide_resnet", depth=20, widths=(2, 2, 2, 2), size=(32, 32))
    program, _ = translate(model)
    arena = plan_arena(program.steps)
    assert 4 * arena == c_source(model).arena_bytes
    written = sum(buffer.size for step in program.steps for buffer in step.writes)
    # Two arrays of the first stage, 32x32 pixels with 8 channels, and a layer's own memory.
    assert 2 * 8192 < arena < 2.4 * 8192
    assert arena < written / 5


def test_arrays_that_live_together_do_not_overlap():
    a, b, c, d, e = (Buffer("", size) for size in (64, 32, 64, 32, 64))
    steps = [
        Step(code="", reads=set(), writes=[a]),
        Step(code="", reads={a}, writes=[b]),
        Step(code="", reads={a, b}, writes=[c]),
        Step(code="", reads={b}, writes=[d]),
        Step(code="", reads={c, d}, writes=[e], over=c),
    ]
    assert plan_arena(steps) == 64 + 64 + 32
    assert len({a.offset, b.offset, c.offset}) == 3
    assert d.offset == a.offset  # the lowest place that is free again
    assert e.offset == c.offset  # written over an array that nothing else reads
    steps.append(Step(code="", reads={c}, writes=[Buffer("f", 1)]))
    for buffer in (a, b, c, d, e):
        buffer.place = buffer
    plan_arena(steps)
    assert e.offset != c.offset


def block(*later):
    """Returns the steps of a residual block, and its buffers; `later` steps read the shortcut."""
    x, y, own, total = (Buffer(name, 64) for name in ("x", "y", "own", "total"))
    before = Buffer("before", 64)
    layer = Step(code="write(y)", reads={before}, writes=[y, own], accumulating="add(y, my)")
    add = Step(code="total = y + x", reads={x, y}, writes=[total], adds=(y, x))
    steps = [Step(code="x = 1", reads=set(), writes=[x]), layer, add]
    steps += [Step(code="", reads={x}, writes=[Buffer("", 1)]) for _ in later]
    return steps, (x, total)


def test_a_layer_adds_to_the_shortcut_of_its_block():
    steps, (x, total) = block()
    first, layer = fuse_additions(steps)
    assert (first.code, layer.code) == ("x = 1", "add(total, my)")
    assert layer.writes[0] is total
    assert layer.over is x
    assert x in layer.reads


def test_a_shortcut_that_something_else_reads_is_not_written_over():
    for steps in (block("later")[0], block()[0]):
        if len(steps) == 3:  # the layer reads the shortcut itself
            steps[1].reads = set(steps[0].writes)
        assert [step.code for step in fuse_additions(steps)] == [step.code for step in steps]


def test_the_header_states_sizes_and_the_command_prints_them(report_runs, tmp_path, capsys):
    arguments = [str(report_runs["seed_0"]), str(tmp_path), "--no-evaluate", "--c"]
    export.main(arguments)
    printed = " ".join(capsys.readouterr().out.split())
    header = (tmp_path / "model.h").read_text()
    macros = {
        name: int(value) for name, value in re.findall(r"#define MCN_MODEL_(\w+) (\d+)", header)
    }
    model = read_model(tmp_path / "model.safetensors")
    source = c_source(model)
    assert macros == {
        "HEIGHT": 32, "WIDTH": 32, "CHANNELS": 1, "CLASSES": 10,
        "ARENA_BYTES": source.arena_bytes, "CONSTANT_BYTES": source.constant_bytes,
    }  # fmt: skip
    assert f"{source.arena_bytes:,} bytes of memory for activations" in printed
    assert f"model.c: {source.constant_bytes:,} bytes of weights" in printed
    assert {name: (tmp_path / name).read_text() for name in source.files} == source.files
    run(str(compiled(source, tmp_path, "model_selftest.c")))


def exported_c(run, directory, capsys):
    """Returns what the command says of the C source of a run, and of its model file."""
    export.main([str(run), str(directory), "--no-evaluate", "--c", "--json"])
    printed = json.loads(capsys.readouterr().out)
    return printed["model.c"], printed["model.safetensors"]


def test_the_command_runs_the_source(report_runs, tmp_path, capsys, monkeypatch):
    need_compiler("cc", "-shared", "-fPIC")
    of_c, of_file = exported_c(report_runs["seed_0"], tmp_path / "right", capsys)
    assert 0 < of_c["difference"] < 1e-5
    assert of_c["same_class"] == of_file["same_class"] == 1
    assert "untested" not in of_c
    function_of = c_library.function_of

    def too_large(*arguments):
        function = function_of(*arguments)
        return lambda image: 1.5 * function(image)

    monkeypatch.setattr(c_library, "function_of", too_large)
    of_c, of_file = exported_c(report_runs["seed_0"], tmp_path / "wrong", capsys)
    assert of_c["difference"] == pytest.approx(0.5, rel=1e-3)
    assert of_file["difference"] < 1e-5


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-cc", "the compiler no-cc is not installed"),
        ("false", "the compiler false failed (with"),
    ],
)
def test_a_source_that_is_not_compiled_is_untested(
    compiler, reason, report_runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(c_library, "COMPILER", compiler)
    of_c, of_file = exported_c(report_runs["seed_0"], tmp_path, capsys)
    assert of_c.pop("untested").startswith(reason)
    assert set(of_c) == {"arena_bytes", "constant_bytes"}
    assert of_file["difference"] < 1e-5
    export.main([str(report_runs["seed_0"]), str(tmp_path), "--no-evaluate", "--c"])
    assert compiler in capsys.readouterr().out


def test_a_library_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "model.so").write_text("no library")
    with pytest.raises(InputError, match="its compiled library cannot be loaded"):
        c_library.function_of(tmp_path / "model.so", 10)


def trained_digits(data_dir, shared_run, run_name, **fields):
    """Returns (model, test images) of a network trained on digits for some epochs."""
    config = digits_config(
        data_dir, num_epochs=6, batch_size=64, binarize=BinarizeConfig(start_epoch=2),
        model=ModelConfig(**fields),
    )  # fmt: skip
    trained = read_trained(shared_run(run_name, config))
    model = model_of(trained, predictor.stored_shape(trained, {}))
    images = open_dataset(DataConfig(name="digits", data_dir=data_dir)).test.read_all().images
    return model, images


PAPERS_DIGITS = {"widths": (5, 10, 20, 40), "dense_features": 256}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("c_digits", PAPERS_DIGITS),
        (
            "c_digits_wide_resnet",
            {"name": "wide_resnet", "depth": 14, "widths": (2, 2, 4, 8), "head": "linear"},
        ),
    ],
)
def test_trained_networks_agree_on_every_test_image(name, fields, data_dir, shared_run, tmp_path):
    model, images = trained_digits(data_dir, shared_run, name, **fields)
    assert len(images) == 360
    logits = logits_from_c(c_source(model), tmp_path, images, flags=("-O2",))
    compare(logits, predictor.of_model(model).logits(images))


@pytest.mark.slow
def test_a_cortex_m4_computes_the_same(data_dir, shared_run, tmp_path):
    if missing := cortex_m4.missing_tools():
        pytest.skip(f"{missing[0]} is not installed")
    model, images = trained_digits(data_dir, shared_run, "c_digits", **PAPERS_DIGITS)
    images = images[:50]
    built = cortex_m4.build(c_source(model), tmp_path, images)
    compare(cortex_m4.logits_of(built, 50), predictor.of_model(model).logits(images))
    source = c_source(model)
    assert built.ram == source.arena_bytes
    assert source.constant_bytes < built.flash < source.constant_bytes + 8192


def compare(logits, expected):
    """Compares logits, and the classes of images whose two likeliest classes differ clearly."""
    assert relative_difference(logits, expected) <= 1e-4
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > 1e-4 * np.abs(expected).max()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(logits.argmax(1)[clear], expected.argmax(1)[clear])

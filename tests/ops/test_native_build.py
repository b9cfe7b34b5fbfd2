"""Tests how the native kernel is built, loaded and chosen."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax import ops
from mcn_jax.deploy.onnx_translator import translate
from mcn_jax.errors import InputError
from mcn_jax.models.plan import computed_by, plan_of
from mcn_jax.ops import fastest, native, native_build
from mcn_jax.ops.fastest import Shape
from onnx_cases import random_images, run
from small_runs import digits_config

ROOT = pathlib.Path(__file__).parents[2]
TARGET = "mcn_mcconv"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Returns the path of a library: that of the package if it is good, or else a new one."""
    if native._loaded(native.LIBRARY).__class__ is not str:
        return native.LIBRARY
    directory = tmp_path_factory.mktemp("library")
    try:
        native_build.build(directory / native_build.LIBRARY)
    except native_build.NotBuiltError as error:
        if str(error) != "no C++ compiler was found":
            raise
        pytest.skip("no C++ compiler was found")
    return directory / native_build.LIBRARY


@pytest.fixture
def kernel(built, monkeypatch):
    monkeypatch.setattr(native, "LIBRARY", built)
    monkeypatch.delenv(native.SWITCH, raising=False)
    assert native.why_unavailable() is None


@pytest.fixture
def absent(tmp_path, monkeypatch):
    """Takes the library away; returns the place where it would be."""
    monkeypatch.setattr(native, "LIBRARY", tmp_path / native_build.LIBRARY)
    monkeypatch.delenv(native.SWITCH, raising=False)
    return native.LIBRARY


@pytest.fixture
def measured(monkeypatch):
    """Returns a function that makes the table say that the kernel takes such a part of the time."""

    def measure(gain, platform="cpu"):
        table = {(platform, "float32"): [(Shape(2, 3, 4, 8, 1), gain)]}
        monkeypatch.setattr(fastest, "_measured_gains", lambda: table)

    return measure


def arguments(dtype=jnp.float32, batch=(2,)):
    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (*batch, 8, 6, 8), dtype)
    filters = jax.random.normal(keys[1], (3, 3, 8, 3))
    return features, filters, jax.random.normal(keys[2], (3, 3, 4))


def gradient(form):
    def loss(features, filters, m):
        output = ops.mcconv(features, filters, None, m, strides=(2, 1), form=form)
        return jnp.sum(jnp.sin(output.astype(jnp.float32)))

    return jax.grad(loss, argnums=(0, 1, 2))


def program(form, platform="cpu", dtype=jnp.float32):
    return jax.jit(gradient(form)).trace(*arguments(dtype)).lower(lowering_platforms=(platform,))


def has_kernel(*options, **more):
    return TARGET in program(*options, **more).as_text()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "no C++ compiler was found"),
        ({"CXX": "no-such-program -v"}, "CXX=no-such-program -v is not a program"),
        ({"CXX": shutil.which("false")}, f"{shutil.which('false')} failed: exit status 1"),
    ],
)
def test_without_a_working_compiler_the_reason_is_kept_and_no_old_library(
    tmp_path, monkeypatch, environment, reason
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    library = tmp_path / native_build.LIBRARY
    library.write_text("an old one")
    assert native_build.install(tmp_path) == reason
    assert [path.name for path in tmp_path.iterdir()] == [native_build.REASON]
    told = native._loaded(library)
    assert told == f"the native kernel was not built ({reason} when mcn_jax was installed)"


def test_without_headers_the_reason_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(native_build.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(native_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(native_build.NotBuiltError, match="headers were not found"):
        native_build.find_headers()


def test_the_compiler_of_the_environment_is_asked(tmp_path, monkeypatch):
    """Its first line with "error" becomes the reason; unfinished files are removed."""
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho note >&2\necho 'x.cc:1: error: bad' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} -v")
    assert native_build.install(tmp_path) == f"{compiler} failed: x.cc:1: error: bad"
    assert not list(tmp_path.glob(".mcn_native*"))


def test_each_source_changes_the_hash(tmp_path, monkeypatch):
    shutil.copytree(native_build.SOURCES, tmp_path / "cpp")
    monkeypatch.setattr(native_build, "SOURCES", tmp_path / "cpp")
    before = native_build.sources_hash()
    for path in (tmp_path / "cpp").iterdir():
        content = path.read_text()
        path.write_text(content.swapcase())
        assert native_build.sources_hash() != before
        path.write_text(content)
    assert native_build.sources_hash() == before
    shutil.rmtree(tmp_path / "cpp")
    assert native_build.sources_hash() is None


@pytest.mark.skipif(not native_build.instruction_sets()[0], reason="it is not an x86 machine")
@pytest.mark.skipif(not (shutil.which("nm") and shutil.which("objdump")), reason="no binutils")
def test_code_that_all_instruction_sets_share_runs_on_every_machine(built):
    """The linker keeps one copy of a template of the standard library, from any of the objects."""
    symbols = subprocess.run(["nm", built], capture_output=True, text=True, check=True).stdout
    shared = {line.split()[-1] for line in symbols.splitlines() if " W " in line}
    command = ["objdump", "-d", "--no-show-raw-insn", built]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.findall(r"^[0-9a-f]+ <(\S+)>:\n((?:.+\n)+)", code, re.MULTILINE)
    assert {name for name, _ in functions} & shared
    for name, body in functions:
        if name in shared:
            assert not re.search(r"\tv[a-z]|%[yz]mm|%k[0-7]", body), name


def test_a_library_of_other_sources_is_refused(built, absent, monkeypatch):
    shutil.copy(built, absent)
    monkeypatch.setattr(native_build, "sources_hash", lambda: "0" * 64)
    assert "built from other sources" in native.why_unavailable()
    with pytest.raises(ValueError, match=r"form='native' cannot be used: .* other sources"):
        ops.mcconv(*arguments()[:2], None, arguments()[2], form="native")


def test_a_broken_library_is_refused_in_one_line(absent):
    absent.write_text("not a library")
    told = native.why_unavailable()
    assert "cannot be loaded" in told
    assert str(absent) in told
    assert "\n" not in told


def test_the_environment_turns_it_off(kernel, measured, monkeypatch):
    measured(0.5)
    assert has_kernel("auto")
    monkeypatch.setenv(native.SWITCH, "0")
    assert not has_kernel("auto")
    with pytest.raises(ValueError, match="turned off by MCN_JAX_NATIVE=0"):
        program("native")
    monkeypatch.setenv(native.SWITCH, "1")
    assert native.why_unavailable() is None
    monkeypatch.setenv(native.SWITCH, "no")
    with pytest.raises(InputError, match="MCN_JAX_NATIVE='no' must be 0"):
        native.why_unavailable()


def test_without_the_library_auto_takes_an_xla_form(absent, measured):
    measured(0.5)
    assert not has_kernel("auto")


@pytest.mark.parametrize(("gain", "takes"), [(0.9, True), (1.1, False), (None, False)])
def test_auto_takes_it_where_it_was_faster(kernel, measured, gain, takes):
    measured(gain)
    assert has_kernel("auto") == takes
    assert not has_kernel("auto", dtype=jnp.bfloat16)


def test_only_float32_on_a_cpu_runs_it(kernel):
    assert has_kernel("native")
    assert not has_kernel("native", platform="cuda")
    assert not has_kernel("native", platform="tpu")
    assert not has_kernel("native", dtype=jnp.bfloat16)
    assert program("native", "cuda").as_text() == program("auto", "cuda").as_text()


@pytest.mark.parametrize("way", ["plain", "jit", "vmap", "pmap", "checkpoint"])
def test_transformations_give_the_gradients_of_the_direct_form(kernel, way):
    transform = {
        "plain": lambda f: f,
        "jit": jax.jit,
        "vmap": lambda f: jax.jit(jax.vmap(f, (0, None, None))),
        "pmap": lambda f: jax.pmap(f, in_axes=(0, None, None)),
        "checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
    }[way]
    batch = (jax.local_device_count(), 2) if way in ("vmap", "pmap") else (2,)
    found, expected = (
        transform(gradient(form))(*arguments(batch=batch)) for form in ("native", "direct")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_gradients_have_the_dtypes_of_their_arguments(kernel):
    features, filters, m = arguments()
    found = gradient("native")(features, filters.astype(jnp.bfloat16), m.astype(jnp.bfloat16))
    assert [one.dtype for one in found] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]


def test_an_exported_graph_computes_the_same_without_it(kernel):
    _, filters, m = arguments()

    def function(tensors, images):
        x = images.astype(jnp.float32) / 256
        return ops.mcconv(x, filters, None, m, form="native")

    images = random_images(2, (8, 6, 8))
    found = run(translate(function, {}, images.shape[1:]), images)
    np.testing.assert_allclose(found, jax.jit(function)({}, images), rtol=1e-4, atol=1e-4)


def test_training_says_which_code_computes(kernel, measured, monkeypatch):
    plan = plan_of(digits_config(), 10, (8, 8, 1))
    layers = sum(layer.family.kind == "MCconv" for layer in plan)
    assert layers > 1
    start = "MCconv on this CPU:"
    measured(0.5)
    name = native.instruction_set()
    assert name in ("avx512", "avx2", "baseline")
    assert computed_by(plan, "float32") == [f"{start} native kernel ({name})"]
    assert computed_by(plan, "bfloat16")[0].startswith(f"{start} XLA forms; ")
    measured(1.5)
    assert computed_by(plan, "float32")[0].startswith(f"{start} XLA forms; ")
    monkeypatch.setenv(native.SWITCH, "0")
    assert computed_by(plan, "float32") == [f"{start} XLA forms; {native.why_unavailable()}"]


def test_training_says_which_code_computes_ordinary_convolutions(kernel, monkeypatch):
    # One channel to 136 is too much for the code for few channels, and too little for the other.
    widths = (34, 4)
    model = dataclasses.replace(digits_config().model, conv="mcdonnell", planes=4, widths=widths)
    plan = plan_of(digits_config(model=model), 10, (8, 8, 1))
    start = "ordinary convolutions on this CPU:"
    told = f"{start} native kernel ({native.instruction_set()}) in 1 of 2 layers"
    assert computed_by(plan, "float32") == [told]
    not_here = f"{start} XLA; the native kernel does not compute bfloat16"
    assert computed_by(plan, "bfloat16") == [not_here]
    monkeypatch.setenv(native.SWITCH, "0")
    assert computed_by(plan, "float32") == [f"{start} XLA; {native.why_unavailable()}"]


def test_training_says_which_code_computes_a_pattern_of_planes(kernel, monkeypatch):
    for signs, told in (
        ("hadamard", ""),
        # The first layer reads the four channels of one map, and has 80 channels.
        ("circulant", " in 1 of 2 layers, XLA forms in the others"),
    ):
        model = dataclasses.replace(digits_config().model, plane_signs=signs, widths=(20, 4))
        plan = plan_of(digits_config(model=model), 10, (8, 8, 1))
        [line] = computed_by(plan, "float32")
        assert line == f"MCconv on this CPU: native kernel ({native.instruction_set()}){told}"
    monkeypatch.setenv(native.SWITCH, "0")
    assert computed_by(plan, "float32")[0].startswith("MCconv on this CPU: XLA forms; ")


@pytest.mark.slow
@pytest.mark.parametrize("compiles", [False, True])
def test_the_wheel_is_tagged_by_its_content(tmp_path, compiles):
    if compiles:
        native_build.find_compiler()
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns("libmcn_native.*", "__pycache__")
    shutil.copytree(ROOT / "mcn_jax", source / "mcn_jax", ignore=skipped)
    files = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
    for name in (*files, "requirements.txt", "requirements-web.txt"):
        shutil.copy(ROOT / name, source)
    environment = dict(os.environ) if compiles else os.environ | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "content", "zip")
    place = tmp_path / "content" / "mcn_jax" / "ops"
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert (wheel.stem.split("-")[4] == "any") == (not compiles)
    assert (place / native_build.LIBRARY).exists() == compiles
    assert (place / native_build.REASON).exists() == (not compiles)
    assert (tmp_path / "content" / "mcn_jax" / "deploy" / "page.html").is_file()

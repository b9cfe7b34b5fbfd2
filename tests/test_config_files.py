"""Tests what a user reads about a config file that cannot be run or returns no config."""

import pathlib
import sys

import pytest

import processes
from mcn_jax.config import load_config_file
from mcn_jax.errors import InputError

IMPORT = "from mcn_jax.config import default_config, load_config_file\n"
# What Python raises for a null byte.
NULL_BYTE = "SyntaxError" if sys.version_info >= (3, 11, 4) else "ValueError"
# {name: (content, what the error says after "config file PATH")}
BROKEN = {
    "syntax": (f"{IMPORT}def get_config():\n    return (\n", ", line 3: SyntaxError: '(' was"),
    "import": (f"{IMPORT}import no_such\n", ", line 2: ModuleNotFoundError: No module named"),
    "exception": (f"{IMPORT}def get_config():\n    return 1 / 0\n", ", line 3: ZeroDivisionError"),
    "silent": (f"{IMPORT}def get_config():\n    assert 0\n", ", line 3: AssertionError"),
    "exit": ("import sys\nsys.exit(0)\n", ", line 2: SystemExit: 0"),
    "field": (f"{IMPORT}c = default_config()\nc.widht = 1\n", ", line 3: unknown field widht; did"),
    "group": (f"{IMPORT}c = default_config()\nc.modle.x = 1\n", ", line 3: unknown field modle"),
    "list": (f"{IMPORT}def get_config():\n    return [1]\n", ": get_config() returns [1] instead"),
    "nothing": (f"{IMPORT}def get_config():\n    pass\n", ": get_config() returns None instead"),
    "argument": (f"{IMPORT}def get_config(name):\n    pass\n", ": TypeError: get_config() missing"),
    "missing": (f"{IMPORT}get_config = 3\n", " defines no get_config()"),
    "empty": ("", " defines no get_config()"),
    "binary": ("\x7fELF\0\0", f": {NULL_BYTE}: source code string cannot contain null"),
    "encoding": (b"x = '\xff'\n", ", line 1: SyntaxError: (unicode error) 'utf-8' codec"),
    "derived": (
        f"{IMPORT}import pathlib\ndef get_config():\n"
        "    return load_config_file(pathlib.Path(__file__).with_name('syntax.py'))\n",
        ", line 4: config file {directory}/syntax.py, line 3: SyntaxError",
    ),
}  # fmt: skip


def write(directory: pathlib.Path) -> None:
    for name, (content, _) in BROKEN.items():
        content = content if isinstance(content, bytes) else content.encode()
        (directory / f"{name}.py").write_bytes(content)
    (directory / "directory.py").mkdir()


@pytest.mark.parametrize("name", BROKEN)
def test_an_error_in_a_config_file_names_the_file_and_the_line(tmp_path, name):
    write(tmp_path)
    path = tmp_path / f"{name}.py"
    with pytest.raises(InputError) as caught:
        load_config_file(path)
    message = str(caught.value)
    assert message.startswith(f"config file {path}" + BROKEN[name][1].format(directory=tmp_path))
    assert "\n" not in message
    assert not list(tmp_path.glob("__pycache__"))


def test_a_path_that_is_no_file_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(InputError, match=r"directory\.py does not exist or is a directory"):
        load_config_file(tmp_path / "directory.py")
    with pytest.raises(InputError, match=r"none\.py does not exist"):
        load_config_file(tmp_path / "none.py")


def test_a_config_may_be_a_plain_dictionary(tmp_path):
    path = tmp_path / "dictionary.py"
    path.write_text("def get_config():\n    return {'seed': 3, 'loss': {'theta': 0.5}}\n")
    assert load_config_file(path).loss.theta == 0.5


@pytest.mark.parametrize("name", ["syntax", "exception", "nothing", "exit", "derived", "directory"])
def test_main_reports_a_broken_config_file_in_one_line(tmp_path, name):
    write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = processes.run("mcn_jax.main", f"--config={name}.py", cwd=tmp_path)
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    said = (
        BROKEN[name][1].format(directory=tmp_path)
        if name in BROKEN
        else " does not exist or is a directory"
    )
    said = said.replace(f"{tmp_path}/", "")
    assert line.startswith(f"mcn_jax.main: error: config file {name}.py{said}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--config={path}", "--config {path}", "-config={name}"])
def test_main_takes_a_config_file_in_a_directory_of_any_name(tmp_path, flag):
    """ml_collections itself takes what follows a colon for an argument of get_config."""
    path = tmp_path / "a:b" / "[x] c%20" / "wrong.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"{IMPORT}def get_config():\n    c = default_config()\n    c.batch_size = 0\n    return c\n"
    )
    name = path.relative_to(tmp_path)
    arguments = [part.format(path=path, name=name) for part in flag.split(" ", 1)]
    result = processes.run("mcn_jax.main", *arguments, cwd=tmp_path)
    assert result.stderr.startswith("mcn_jax.main: error: config.batch_size=0 must be")

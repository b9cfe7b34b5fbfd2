"""Compiles the native kernel into one shared library, when the package is installed.

`setup.py` loads this file by its path, before any dependency is installed. So it imports only the
standard library. The library calls no Python functions; it serves every version of Python.
"""

import concurrent.futures
import hashlib
import importlib.util
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

SOURCES = pathlib.Path(__file__).with_name("cpp")
LIBRARY = "libmcn_native.so"
# Next to the place of the library, a sentence why it was not built.
REASON = "libmcn_native.txt"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast",
    "-fno-trapping-math", "-Wall",
)  # fmt: skip
# The kernels are compiled once for each; the library chooses when it runs.
KERNELS = ("kernel", "hadamard", "narrow")
X86_INSTRUCTION_SETS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
}
HASH_FUNCTION = "mcn_native_sources_hash"


class NotBuiltError(Exception):
    """The message is a clause that says what is missing."""


def sources_hash() -> str | None:
    """Returns a hash of the sources and of how they are compiled; None if they are not here."""
    paths = [pathlib.Path(__file__), *sorted(SOURCES.glob("*"))]
    if len(paths) == 1:
        return None
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def install(directory: pathlib.Path) -> str | None:
    """Builds the library in a directory, in place of an earlier one.

    Returns:
        None, or why there is no library now. The directory then holds the same sentence in a file.
    """
    library, reason = directory / LIBRARY, directory / REASON
    library.unlink(missing_ok=True)
    reason.unlink(missing_ok=True)
    try:
        build(library)
    except NotBuiltError as error:
        reason.write_text(f"{error}\n")
        return str(error)
    return None


def build(library: pathlib.Path) -> None:
    """Compiles and links the library; its file appears only when it is complete.

    Raises:
        NotBuiltError: if something is missing or the compiler fails.
    """
    if sys.platform == "win32":
        raise NotBuiltError("it is for Linux and macOS")
    compiler, include = find_compiler(), find_headers()
    is_x86, sets = instruction_sets()
    common = [*compiler, *FLAGS, f"-I{include}", *(["-DMCN_X86"] if is_x86 else []), "-c"]
    with tempfile.TemporaryDirectory(prefix=".mcn_native", dir=library.parent) as folder:
        place = pathlib.Path(folder)
        stamp = place / "hash.cc"
        stamp.write_text(
            'extern "C" __attribute__((visibility("default"))) const char*'
            f' {HASH_FUNCTION}() {{ return "{sources_hash()}"; }}\n'
        )
        commands = {
            place / f"{kernel}_{name}.o": [
                *common, f"-DMCN_ISA={name}", *flags, str(SOURCES / f"{kernel}.cc")
            ]
            for name, flags in sets.items()
            for kernel in KERNELS
        }  # fmt: skip
        commands[place / "ffi.o"] = [*common, str(SOURCES / "ffi.cc")]
        commands[place / "hash.o"] = [*common, str(stamp)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, [[*command, "-o", str(o)] for o, command in commands.items()]))
        linked = place / library.name
        _run([*compiler, "-shared", "-pthread", "-o", str(linked), *map(str, commands)])
        os.replace(linked, library)


def instruction_sets() -> tuple[bool, dict[str, tuple[str, ...]]]:
    """Returns whether this is an x86-64 machine, and {instruction set: flags of the compiler}."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    # The order is that of the linker. Of a template of the standard library that several objects
    # contain, it keeps the first copy, which must run wherever any of these objects runs.
    return is_x86, {"baseline": (), **(X86_INSTRUCTION_SETS if is_x86 else {})}


def find_compiler() -> list[str]:
    """Returns the command of the C++ compiler, which the environment variable CXX can name."""
    if named := os.environ.get("CXX"):
        command = shlex.split(named)
        if not command or shutil.which(command[0]) is None:
            raise NotBuiltError(f"CXX={named} is not a program")
        return command
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise NotBuiltError("no C++ compiler was found")


def find_headers() -> str:
    """Returns the folder of XLA's headers, which jaxlib contains.

    The jaxlib of the environment itself comes first, because it loads the library. In an isolated
    build, it is not on the path of imports.
    """
    places = [os.path.join(sysconfig.get_path("platlib"), "jaxlib")]
    found = importlib.util.find_spec("jaxlib")
    if found is not None:
        places += found.submodule_search_locations or []
    for place in places:
        include = pathlib.Path(place, "include")
        if (include / "xla" / "ffi" / "api" / "ffi.h").exists():
            return str(include)
    raise NotBuiltError("jaxlib's headers were not found")


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NotBuiltError(f"{command[0]} could not be started: {error.strerror}") from error
    if result.returncode:
        lines = result.stderr.splitlines()
        lines.append(f"exit status {result.returncode}")
        line = next((line for line in lines if "error" in line), lines[0])
        raise NotBuiltError(f"{command[0]} failed: {line.strip()[:300]}")

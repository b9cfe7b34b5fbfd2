"""Compiles the C source of a network to WebAssembly, with the compiler in the package ziglang."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

from mcn_jax.deploy.c_source import HEADER, SOURCE, CSource
from mcn_jax.errors import InputError

STACK_BYTES = 2**18
FLAGS = (
    "-target", "wasm32-freestanding", "-std=c99", "-O3", "-msimd128", "-nostdlib", "-isystem", ".",
    "-Wl,--no-entry", "-Wl,--strip-all", f"-Wl,-z,stack-size={STACK_BYTES}",
)  # fmt: skip
EXPORTS = ("web_image", "web_logits", "web_predict")

# All that the source needs of a C library. Without "no_builtin", the compiler would replace the
# loop of each function by a call of the function itself.
STRING_HEADER = """\
#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int byte, size_t size);
"""
INTERFACE = """\
#include <string.h>

#include "model.h"

static uint8_t image[MCN_MODEL_HEIGHT * MCN_MODEL_WIDTH * MCN_MODEL_CHANNELS];
static float logits[MCN_MODEL_CLASSES];

uint8_t *web_image(void)
{
    return image;
}

const float *web_logits(void)
{
    return logits;
}

void web_predict(void)
{
    mcn_model_predict(image, logits);
}

__attribute__((no_builtin)) void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    }
    return to;
}

__attribute__((no_builtin)) void *memset(void *to, int byte, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        ((unsigned char *)to)[i] = (unsigned char)byte;
    }
    return to;
}
"""


def check_compiler() -> None:
    """Raises InputError if the package ziglang is not installed."""
    if importlib.util.find_spec("ziglang") is None:
        raise InputError(
            "a web page needs the package ziglang, which compiles to WebAssembly; install it:"
            " pip install ziglang"
        )


def compiled(source: CSource) -> bytes:
    """Returns a WebAssembly module with the network.

    It imports nothing. Its exports are `memory` and three functions: `web_image` and `web_logits`
    return the addresses of an image, uint8 [height, width, channels], and of its logits, float32
    [classes]; `web_predict` computes the logits of the image.

    Args:
        source: the network.

    Raises:
        InputError: if the compiler is not installed, or fails. Nothing is left on the disk.
    """
    check_compiler()
    with tempfile.TemporaryDirectory(prefix="mcn_jax_web_") as name:
        directory = pathlib.Path(name)
        files = {
            SOURCE: source.files[SOURCE], HEADER: source.files[HEADER],
            "string.h": STRING_HEADER, "interface.c": INTERFACE,
        }  # fmt: skip
        for file, text in files.items():
            (directory / file).write_text(text, encoding="ascii")
        exports = (f"-Wl,--export={name}" for name in EXPORTS)
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *exports]
        caches = {f"ZIG_{kind}_CACHE_DIR": str(directory / "cache") for kind in ("GLOBAL", "LOCAL")}
        done = subprocess.run(
            [*command, SOURCE, "interface.c", "-o", "model.wasm"],
            cwd=directory, env=os.environ | caches, capture_output=True, check=False,
        )  # fmt: skip
        module = directory / "model.wasm"
        if done.returncode or not module.is_file():
            raise InputError(
                f"the compiler of ziglang failed ({_reason(done.stderr)}); install another version"
                " of ziglang, or free memory and disk space"
            )
        return module.read_bytes()


def _reason(printed: bytes) -> str:
    """Returns the first line with an error, or the last line."""
    lines = printed.decode(errors="replace").strip().splitlines() or ["without a message"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()[:300]

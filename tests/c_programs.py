"""Compiles exported C source, and runs it on images."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from cortex_m4 import STRICT

from mcn_jax.deploy.c_source import write_c_source

SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Reads images from stdin, and writes their logits to stdout.
RUNNER = """\
#include "model.h"

#include <stdio.h>

int main(void)
{
    static uint8_t image[MCN_MODEL_HEIGHT * MCN_MODEL_WIDTH * MCN_MODEL_CHANNELS];
    static float logits[MCN_MODEL_CLASSES];
    while (fread(image, sizeof image, 1, stdin) == 1) {
        mcn_model_predict(image, logits);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""


def need_compiler(compiler, *flags):
    """Skips the test unless a compiler can make programs with these flags."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    command = [compiler, *flags, "-x", "c", "-", "-o", "/dev/null"]
    program = b"#include <stdio.h>\nint main(void) { return 0; }\n"
    if subprocess.run(command, input=program, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} cannot compile with {' '.join(flags)}")


def compiled(source, directory, main, compiler="cc", flags=SANITIZERS):
    """Compiles the source with a main file, strictly, and returns the path of the program."""
    need_compiler(compiler, *flags)
    write_c_source(source, directory)
    (directory / "runner.c").write_text(RUNNER)
    program = directory / f"{pathlib.Path(main).stem}.out"
    files = [str(directory / name) for name in ("model.c", main)]
    run(compiler, *STRICT, *flags, *files, "-o", str(program))
    return program


def run(*command, **options):
    """Runs a command and returns what it prints; fails with its errors."""
    done = subprocess.run(command, capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr.decode()[:2000]
    return done.stdout


def logits_from_c(source, directory, images, compiler="cc", flags=SANITIZERS):
    """Returns the logits of images that the compiled source computes."""
    program = compiled(source, directory, "runner.c", compiler, flags)
    printed = run(str(program), input=images.tobytes())
    return np.frombuffer(printed, np.float32).reshape(len(images), -1)


def relative_difference(logits, expected):
    """Returns the largest difference, divided by the largest logit."""
    # The logits depend on the image, so the comparison is not between constants.
    assert np.std(expected, axis=0).max() > 1e-3 * np.abs(expected).max()
    assert np.isfinite(logits).all()
    return np.abs(logits - expected).max() / np.abs(expected).max()

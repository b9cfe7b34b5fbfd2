"""Compiles the C source of a network for this machine, and runs it as a predictor."""

import ctypes
import dataclasses
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence

import numpy as np

from mcn_jax.deploy import predictor
from mcn_jax.deploy.c_source import SOURCE, CSource, write_c_source
from mcn_jax.errors import InputError, first_line

COMPILER = "cc"
FLAGS = ("-std=c99", "-shared", "-fPIC")


def compiled(
    source: CSource, directory: pathlib.Path, flags: Sequence[str] = ("-O2",)
) -> pathlib.Path:
    """Writes the source into an existing directory, and compiles it there to a shared library.

    Raises:
        InputError: if this machine has no compiler `cc`, or it fails.
    """
    if not shutil.which(COMPILER):
        raise InputError(f"the compiler {COMPILER} is not installed")
    write_c_source(source, directory)
    library = directory / "model.so"
    command = [COMPILER, *FLAGS, *flags, SOURCE, "-o", library.name]
    done = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["without a message"]
        raise InputError(f"the compiler {COMPILER} failed ({lines[0].strip()[:300]})")
    return library


def function_of(library: pathlib.Path, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function of a compiled network.

    Args:
        library: from `compiled`.
        classes: the number of logits.

    Returns:
        A function from an image [height, width, channels] uint8 of the network's size to its
        logits [classes] float32. Each call overwrites the array of the call before.

    Raises:
        InputError: if the library cannot be loaded, for example from a disk without programs.
    """
    try:
        predict = ctypes.CDLL(str(library)).mcn_model_predict
    except OSError as error:
        raise InputError(f"its compiled library cannot be loaded ({first_line(error)})") from error
    logits = np.zeros(classes, np.float32)
    result = logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def call(image: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(image)
        predict(pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), result)
        return logits

    return call


def of_c_source(
    source: CSource, network: predictor.Predictor, directory: pathlib.Path
) -> predictor.Predictor:
    """Returns a predictor that runs the compiled source of a network on one core.

    Args:
        source: the source.
        network: another predictor of the same network.
        directory: where it is compiled; may be deleted afterwards.

    Raises:
        InputError: if the source cannot be compiled or its library cannot be loaded.
    """
    call = function_of(compiled(source, directory), len(network.class_names))

    def logits(images: np.ndarray) -> np.ndarray:
        return np.stack([call(image).copy() for image in images])

    return dataclasses.replace(network, logits=logits)

"""Exports a model file as C99 source, for microcontrollers and whatever else has a C compiler.

The source allocates nothing and needs no library. Weights of quantized layers stay bits in
constant arrays, and are never expanded as a whole. All activations lie in one static array.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from mcn_jax.deploy import c_text
from mcn_jax.deploy.c_memory import plan_arena
from mcn_jax.deploy.c_program import HELPERS, Program
from mcn_jax.deploy.c_trace import translate
from mcn_jax.deploy.model_file import Model
from mcn_jax.deploy.predictor import of_model
from mcn_jax.errors import InputError
from mcn_jax.workdirs.files import write_bytes_atomically

HEADER, SOURCE, SELFTEST = "model.h", "model.c", "model_selftest.c"
MAX_ARENA_BYTES = 2**31 - 1  # so that sizes fit into 32 bits
SELFTEST_IMAGES, SEED = 2, 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CSource:
    """A network as C source.

    Attributes:
        files: {name: text}.
        arena_bytes: size of the static array of activations.
        constant_bytes: size of all constant arrays, without the class names.
    """

    files: Mapping[str, str]
    arena_bytes: int
    constant_bytes: int


def c_source(model: Model) -> CSource:
    """Returns the C source of a network.

    Args:
        model: the content of a model file.

    Raises:
        InputError: naming the layer or operation without C source, or if the network is too large.
    """
    program, logits = translate(model)
    arena = plan_arena(program.steps)
    if 4 * arena > MAX_ARENA_BYTES:
        raise InputError(f"the network needs {4 * arena:,} bytes of activations, too many for C")
    assert logits.buffer is not None
    header = _header(model, 4 * arena, program.constant_bytes)
    source = _source(model, program, arena, logits.buffer.name)
    files = {HEADER: header, SOURCE: source, SELFTEST: _selftest(model)}
    return CSource(files=files, arena_bytes=4 * arena, constant_bytes=program.constant_bytes)


def write_c_source(source: CSource, directory: pathlib.Path) -> None:
    """Writes the files into an existing directory, each of them atomically."""
    for name, text in source.files.items():
        write_bytes_atomically(directory / name, text.encode("ascii"))


def _header(model: Model, arena_bytes: int, constant_bytes: int) -> str:
    images = model.images
    return f"""\
/* A network that mcn_jax exported. */
#ifndef MCN_MODEL_H
#define MCN_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* The sizes of an image, and the number of classes. */
#define MCN_MODEL_HEIGHT {images.height}
#define MCN_MODEL_WIDTH {images.width}
#define MCN_MODEL_CHANNELS {images.channels}
#define MCN_MODEL_CLASSES {len(model.class_names)}

/* The static memory of activations, and the constant arrays of weights. */
#define MCN_MODEL_ARENA_BYTES {arena_bytes}
#define MCN_MODEL_CONSTANT_BYTES {constant_bytes}

/* The names of the classes in UTF-8. */
extern const char *const mcn_model_class_names[MCN_MODEL_CLASSES];

/* Computes the logits of an image, which is uint8 [height][width][channels]. The class is the
   largest of the MCN_MODEL_CLASSES logits. Calls share memory, so they must not overlap. */
void mcn_model_predict(const uint8_t *image, float *logits);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(model: Model, program: Program, arena: int, logits: str) -> str:
    buffers = {buffer.name: buffer for step in program.steps for buffer in step.writes}
    pointers = "".join(
        f"    float *const {name} = arena + {buffer.offset};\n" for name, buffer in buffers.items()
    )
    helpers = [text for name, text in HELPERS.items() if name in program.helpers]
    steps = "\n".join(c_text.indented(step.code) for step in program.steps)
    functions: list[str] = []
    for text, name in reversed(program.functions.items()):
        if any(f"{name}(" in code for code in (steps, *functions)):
            functions.insert(0, text.replace("NAME(", f"{name}(", 1))
    names = "".join(f"    {c_text.string_literal(name)},\n" for name in model.class_names)
    blocks = [
        '/* A network that mcn_jax exported; see model.h. */\n#include "model.h"\n\n'
        "#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n",
        f"const char *const mcn_model_class_names[MCN_MODEL_CLASSES] = {{\n{names}}};\n",
        *program.constants,
        f"static float arena[{arena}];\n",
        *helpers,
        *functions,
        f"""\
void mcn_model_predict(const uint8_t *image, float *logits)
{{
{pointers}
{steps}
    memcpy(logits, {logits}, MCN_MODEL_CLASSES * sizeof *logits);
}}
""",
    ]
    return "\n".join(blocks)


def _selftest(model: Model) -> str:
    """Returns a program that compares the logits of images of random pixels with JAX's."""
    spec = model.images
    shape = (SELFTEST_IMAGES, spec.height, spec.width, spec.channels)
    images = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    logits = of_model(model).logits(images)
    return f"""\
/* Tests model.c: its exit status is 0 if the logits of two images are those that JAX computed. */
#include "model.h"

#include <stddef.h>
#include <stdint.h>

{c_text.array("images", images)}
{c_text.array("expected", logits)}
int main(void)
{{
    const size_t size = (size_t)MCN_MODEL_HEIGHT * MCN_MODEL_WIDTH * MCN_MODEL_CHANNELS;
    static float logits[MCN_MODEL_CLASSES];
    for (size_t n = 0; n < {SELFTEST_IMAGES}; n++) {{
        const float *const correct = expected + n * MCN_MODEL_CLASSES;
        float largest = 0.0f;
        mcn_model_predict(images + n * size, logits);
        for (size_t c = 0; c < MCN_MODEL_CLASSES; c++) {{
            const float magnitude = correct[c] < 0.0f ? -correct[c] : correct[c];
            largest = magnitude > largest ? magnitude : largest;
        }}
        for (size_t c = 0; c < MCN_MODEL_CLASSES; c++) {{
            const float difference = logits[c] - correct[c];
            if (!(difference <= 1e-4f * largest && -difference <= 1e-4f * largest)) {{
                return 1;
            }}
        }}
    }}
    return 0;
}}
"""

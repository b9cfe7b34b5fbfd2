"""The C text of the functions of `c_quantized_sums`, with $NAME for their sizes and parts."""

from mcn_jax.deploy.c_text import indented


def additions(groups: int) -> str:
    """Returns the code that adds one entry per group to `sum`, four groups at a time."""
    code = ""
    if groups >= 4:
        code += f"for (size_t four = 0; four < {groups // 4}; four++) {{\n"
        code += indented(_entries(4)) + "    code += 2;\n    at += 64 * $PIXELS;\n}\n"
    return code + (_entries(groups % 4) if groups % 4 else "")


def _entries(count: int) -> str:
    lines, terms = [], []
    for entry in range(count):
        bits = f"code[{entry // 2}] >> 4" if entry % 2 else f"code[{entry // 2}] & 15"
        place = f"((size_t)({bits}) + {16 * entry})" if entry else f"(size_t)({bits})"
        lines.append(f"const float *const entry_{entry} = at + {place} * $PIXELS;\n")
        terms.append(f"entry_{entry}[p]")
    pairs = [" + ".join(terms[:2]), " + ".join(terms[2:])]
    total = " + ".join(f"({pair})" for pair in pairs if pair) if count > 2 else pairs[0]
    return (
        "".join(lines)
        + "for (size_t p = 0; p < $RUN; p++) {\n"
        + f"    sum[p] += {total};\n"
        + "}\n"
    )


TABLE = """\
static void NAME(const float *restrict row, size_t column, const float *restrict levels,
                 float *restrict table$parameters)
{
    for (size_t g = 0; g < $ALL_GROUPS; g++) {
        const size_t count = $count;
        float values[$GROUP][$PIXELS];
        float low[4][$PIXELS];
        float high[4][$PIXELS];
        memset(values, 0, sizeof values);
$gather        for (size_t i = 0; i < 4; i++) {
            for (size_t p = 0; p < $PIXELS; p++) {
$halves            }
        }
        for (size_t i = 0; i < 16; i++) {
            for (size_t p = 0; p < $PIXELS; p++) {
                table[(g * 16 + i) * $PIXELS + p] = low[i & 3][p] + high[i >> 2][p];
            }
        }
    }
}
"""

# Entry i of a table is low[i & 3] + high[i >> 2], by the number of bits per weight.
HALVES = {
    1: """\
low[i][p] = levels[i & 1] * values[0][p] + levels[i >> 1] * values[1][p];
high[i][p] = levels[i & 1] * values[2][p] + levels[i >> 1] * values[3][p];
""",
    2: """\
low[i][p] = levels[i] * values[0][p];
high[i][p] = levels[i] * values[1][p];
""",
}

FUNCTION = """\
static void NAME(const float *restrict x, float *restrict y, float *restrict table,
                 float *restrict sums, const uint8_t *restrict codes,
                 const float *restrict levels$parameters)
{
    for (size_t tile = 0; tile < $TILES; tile++) {
        /* The last tile may overlap the one before it; it writes the columns from next alone. */
        const size_t next = tile * $COLUMNS;
        const size_t column = next + $COLUMNS > $OUT_X ? $OUT_X - $COLUMNS : next;
        for (size_t row = 0; row < $ROWS; row++) {
            const int inside = $inside;
            if (inside) {
                $table(x + (row - $LOW_Y) * ($X * $C), column, levels, table$arguments);
            }
            for (size_t i = 0; i < $W; i++) {
                if (row < i || (row - i) % $S != 0 || (row - i) / $S >= $OUT_Y) {
                    continue;
                }
                const size_t out_row = (row - i) / $S;
                float *const own = sums + out_row % $WAITING * $SUMS;
                if (i == 0) {
                    memset(own, 0, $SUMS * sizeof *own);
                }
                for (size_t o = 0; inside && o < $SLICED_MAPS; o++) {
$begin                    for (size_t j = 0; j < $W; j++) {
                        const uint8_t *code = codes + ((i * $W + j) * $SLICED_MAPS + o) * $BYTES;
                        const float *at = $at + j % $S * $PHASE + j / $S;
                        float *const sum = $sum;
$add                    }
$mix                }
                if (i == $LAST_TAP) {
                    for (size_t p = next - column; p < $COLUMNS; p++) {
                        float *const pixel = y + (out_row * $OUT_X + column + p) * $OK;
                        for (size_t n = 0; n < $OK; n++) {
                            pixel[n] $value;
                        }
                    }
                }
            }
        }
    }
}
"""

# Before and after the taps of a row are added up for one map, if M weighs them.
BEGIN = """\
float of_taps[$W][$RUN];
memset(of_taps, 0, sizeof of_taps);
"""

# Where channels form slices, o counts the slices of all maps, those of a map one after another.
SLICE = """\
const size_t slice = o % $SLICES;
"""

MIX = """\
for (size_t k = 0; k < $K; k++) {
    const float *const m = m_filters + i * $W * $K + k;
    float *const out = own + ($map * $K + k) * $RUN;
    for (size_t p = 0; p < $RUN; p++) {
        out[p] += $total;
    }
}
"""

"""The tables of ordinary convolutions and patterns of planes, made from records of benchmarks."""

from benchmark_tables import MACHINE, PASSES, benchmark
from record_files import read_benchmark

from mcn_jax.ops.convolution import native_passes
from mcn_jax.ops.fastest import Shape
from mcn_jax.ops.mcconv import native_pattern_is_faster

CONVOLUTION_MACHINE = "xeon"  # the code for few channels is newer than the records of `MACHINE`


def convolution_table() -> str:
    """What benchmarks/convolution.py measured: the native kernel over XLA's convolution."""
    record = read_benchmark(CONVOLUTION_MACHINE, "convolution")
    lines, ratios, of_few = [], [], []
    for layer in record["layers"]:
        taps, channels, outputs = (layer[name] for name in ("taps", "channels", "outputs"))
        found = [layer[name]["native_over_xla"] for name in PASSES]
        passes = native_passes("float32", (taps, taps, channels, outputs))
        taken = ", ".join(name for name, is_taken in passes._asdict().items() if is_taken)
        if passes.gradients:
            ratios.append(found[1])
        lines.append(
            f"| {taps}x{taps} | {channels}-{outputs} | {layer['size']}x{layer['size']}"
            f" | {layer['stride']} | {layer['batch']} | {found[0]:.2f} | {found[1]:.2f} | {taken} |"
        )
        if "native_over_general" in layer[PASSES[1]]:
            of_few.append(layer[PASSES[1]]["native_over_general"])
    table = benchmark(
        "convolution",
        "time of the native kernel over the time of XLA's convolution with our gradient of filters,"
        f" float32, medians of {record['repeats']} turns",
        "taps | channels | pixels | stride | batch | forward | with gradients | taken",
        lines,
        machine=CONVOLUTION_MACHINE,
    )
    return (
        f"{table}\n\nWith gradients, the ratio is {min(ratios):.2f} to {max(ratios):.2f} where the"
        " kernel is taken.\nForward alone it is above 1 in some of these shapes. The code for few"
        f" channels takes {min(of_few):.2f} to {max(of_few):.2f}\nof the time of the general code,"
        " with gradients."
    )


def plane_signs_table() -> str:
    """What benchmarks/plane_signs.py measured: the forms of MCconv with a Hadamard pattern."""
    record = read_benchmark(MACHINE, "plane_signs")
    lines, taken = [], []
    for layer in record["layers"]:
        shape = Shape.of(layer)
        forward, gradients = (layer[name] for name in PASSES)
        over_direct = gradients["native_over_direct"]
        is_taken = native_pattern_is_faster(shape, "hadamard")
        if is_taken:
            taken.append(over_direct)
        lines.append(
            f"| {shape.in_maps}-{shape.out_maps} | {shape.planes} | {shape.size}x{shape.size}"
            f" | {shape.stride} | {layer['batch']} | {forward['native_over_direct']:.2f}"
            f" | {over_direct:.2f} | {gradients['native_over_plain']:.2f}"
            f" | {'native' if is_taken else 'direct'} |"
        )
    table = benchmark(
        "plane_signs",
        "MCconv with a Hadamard pattern, time of the native form over the direct form and over"
        f" MCconv without a pattern, float32, medians of {record['repeats']} turns",
        "maps | planes | pixels | stride | batch | forward, over direct"
        " | with gradients, over direct | with gradients, over no pattern | auto",
        lines,
    )
    return (
        f'{table}\n\nWhere "auto" takes the native form, the ratio with gradients is'
        f" {min(taken):.2f} to {max(taken):.2f}."
    )

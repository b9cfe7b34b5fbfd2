"""The tables of docs/comparison.md, made from records of runs and from plans of networks."""

from typing import Any, NamedTuple

from markdown_tables import Row, cells
from record_files import config_record, stored_runs

from mcn_jax.config import Config, from_saved_config
from mcn_jax.data.facts import DATASETS
from mcn_jax.layers.family import FILTERS
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.plan import Plan, plan_of, specs
from mcn_jax.training.phases import quantizes

SWEEP = "equal_bits"
# Systems of equal filter bits at 4-4-8-16 maps, and the names of their runs in the sweep file.
SYSTEMS = (
    ("MCN", "mcn_seed?"),
    ("mcdonnell", "mcdonnell_seed?"),
)


class Sizes(NamedTuple):
    """What a network stores and computes.

    Attributes:
        filter_bits: bits of the filters of all convolutions.
        scale_bits: bits of M, centers, scales, exponents and anchors.
        other_bits: bits of batch norm and dense layers.
        multiply_adds: of one image, as direct convolutions.
        factored: the same, where MCconv shares products between planes.
        activation_bits: bits of the inputs of all convolutions but the first.
    """

    filter_bits: int
    scale_bits: int
    other_bits: int
    multiply_adds: int
    factored: int
    activation_bits: int


def sizes(config: Config) -> Sizes:
    """The sizes of the network of a config."""
    facts = DATASETS[config.data.name]
    height, width, channels = facts.image_shape
    assert height
    assert width
    assert facts.classes
    plan = plan_of(config, facts.classes, (height, width, channels))
    tensors = specs(plan, config, quantizes(config)).values()
    bits: dict[str, int] = {}
    for tensor in tensors:
        bits[tensor.part] = bits.get(tensor.part, 0) + tensor.bits
    scales = sum(
        bits.get(part, 0) for part in ("M-filters", "centers", "scales", "anchors", "biases")
    )
    takes_signs = LAYERS[config.model.conv].takes_signs and quantizes(config)
    return Sizes(
        filter_bits=bits[FILTERS],
        scale_bits=scales,
        other_bits=sum(bits.values()) - bits[FILTERS] - scales,
        multiply_adds=_multiply_adds(plan, "direct"),
        factored=_multiply_adds(plan, "factored"),
        activation_bits=1 if takes_signs else 32,
    )


def _multiply_adds(plan: Plan, form: str) -> int:
    """The multiply-adds of all layers that are counted; those without the form count as direct."""
    counts = [layer.family.multiply_adds(layer) for layer in plan]
    return sum(count.get(form, count.get("direct", 0)) for count in counts)


def _config(pattern: str) -> Config:
    sweep, _, _ = pattern.partition("/")
    first = stored_runs(pattern)[0].workdir.name
    record: dict[str, Any] = config_record(f"{sweep}/{first}")
    return from_saved_config(record["config"])


def equal_bits_table() -> str:
    """Systems of equal filter bits, in the same network and with the same recipe."""
    lines = []
    for system, names in SYSTEMS:
        pattern = f"{SWEEP}/{names}"
        config = _config(pattern)
        size, found = sizes(config), cells(Row("", system, record=pattern), root="../")
        channels = "-".join(str(width * config.model.planes) for width in config.model.widths)
        factored = f" ({size.factored / 1e6:.1f} M)" if size.factored != size.multiply_adds else ""
        stored = size.filter_bits + size.scale_bits + size.other_bits
        lines.append(
            f"| {system} | {channels} | {size.filter_bits:,} | {size.scale_bits:,}"
            f" | {size.other_bits:,} | {stored:,} | {size.multiply_adds / 1e6:.1f} M{factored}"
            f" | {size.activation_bits} | {found.accuracy} | {found.epochs} | {found.revisions}"
            f" | {found.links} |"
        )
    return "\n".join(
        [
            "| system | channels | filter bits | bits of M, centers, scales | bits of batch norm"
            " and dense layer | all stored bits | multiply-adds (factored) | bits of activations"
            " | test accuracy, % | epochs | revision | record |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )

"""The tables of docs/planes.md, and of the MCNs in docs/pooling.md, made from records of runs."""

import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from comparison_tables import NOT_RUN, cells_of, config_of, recorded_network
from markdown_tables import hardware, in_millions, markdown, short_revision
from network_sizes import sizes
from record_files import config_record, has_run, stored_runs

from mcn_jax.config import Config, flatten
from mcn_jax.reports.runs import Run

PLANES = "planes"
USUAL = "usual"

POOLINGS = "pooling_mcn"
POOLED = ("strided", "max", "average", "spectral", "diffstride")


class Trials(NamedTuple):
    """The runs of one option, one for each seed."""

    name: str
    config: Config
    accuracies: dict[int, float]  # {seed: validation accuracy in %}
    runs: list[Run]

    @property
    def mean(self) -> float:
        """The mean validation accuracy in %."""
        return statistics.mean(self.accuracies.values())


def idle_planes_table() -> str:
    """How alike the planes of an MCN of the paper's method are after its last epoch."""
    pattern = "cifar10_8_8_16_32/mcn_seed?"
    lines = []
    for measure in ("effective_planes", "plane_correlation", "m_spread"):
        values = _last_health(stored_runs(pattern), measure)
        mean, least, most = statistics.mean(values), min(values), max(values)
        lines.append((f"`{measure}`", f"{mean:.3f}", f"{least:.3f}", f"{most:.3f}"))
    found = cells_of(pattern)
    header = ("measure", "mean over layers and seeds", "least", "greatest")
    return (
        f"MCN of 20 layers, 8-8-16-32 maps, K = 4, {found.epochs} epochs on CIFAR-10"
        f" ({found.links}):\n\n{markdown(header, lines)}"
    )


def planes_table() -> str:
    """The trials of what could make the planes of a map differ, by their accuracy."""
    names = sorted({run.workdir.name.rpartition("_seed")[0] for run in stored_runs(f"{PLANES}/*")})
    trials = {name: _trials(name) for name in names}
    usual = trials[USUAL]
    rows = [_planes_row(one, usual) for one in sorted(trials.values(), key=lambda one: -one.mean)]
    header = (
        "trial", "fields", "validation accuracy, %", "over the usual recipe, points",
        "effective planes", "filter bits", "multiply-adds", "hardware; revision",
    )  # fmt: skip
    return markdown(header, rows)


def _trials(name: str) -> Trials:
    pattern = f"{PLANES}/{name}_seed?"
    runs = stored_runs(pattern)
    accuracies = {}
    for run in runs:
        assert run.result is not None
        accuracies[int(run.result["seed"])] = 100 * float(run.result["final_test_accuracy"])
    return Trials(name, config_of(pattern), accuracies, runs)


def _planes_row(trials: Trials, usual: Trials) -> tuple[str, ...]:
    pattern = f"{PLANES}/{trials.name}_seed?"
    size = sizes(recorded_network(pattern))
    values = list(trials.accuracies.values())
    gains = [
        accuracy - usual.accuracies[seed]
        for seed, accuracy in trials.accuracies.items()
        if seed in usual.accuracies
    ]
    base = flatten(usual.config)
    changed = {
        field: value
        for field, value in flatten(trials.config).items()
        if value != base[field] and field != "seed"
    }
    records = [config_record(f"{PLANES}/{run.workdir.name}") for run in trials.runs]
    revisions = ", ".join(sorted({short_revision(r["git_revision"]) for r in records}))
    machines = ", ".join(sorted({hardware(record) for record in records}))
    return (
        f"`{trials.name}`",
        ", ".join(f"`{field}={_flag(value)}`" for field, value in changed.items()),
        f"{trials.mean:.2f}{_spread(values)} (n = {len(values)})",
        "" if trials.name == USUAL or not gains else _gain(gains),
        _effective_planes(trials.runs),
        f"{size.filter_bits:,}",
        in_millions(sum(size.multiply_adds)),
        f"{machines}; {revisions}",
    )


def _flag(value: object) -> str:
    if isinstance(value, str):  # a teacher is another run of the same seed
        value = re.sub(r"_seed\d+$", "", value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def _spread(values: Sequence[float]) -> str:
    return f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""


def _gain(gains: Sequence[float]) -> str:
    """The mean over seeds, with its standard error."""
    error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
    return f"{statistics.mean(gains):+.2f}{error}"


def _effective_planes(runs: Sequence[Run]) -> str:
    """The mean over layers and seeds after the last epoch; empty for layers without planes."""
    found = _last_health(runs, "effective_planes")
    return f"{statistics.mean(found):.2f}" if found else ""


def _last_health(runs: Sequence[Run], measure: str) -> list[float]:
    """The values of all layers after the last epoch of each run."""
    return [
        value
        for run in runs
        for record in [r for r in run.records if r["kind"] == "health"][-1:]
        for name, value in record.items()
        if name.endswith(f"/{measure}")
    ]


def poolings_table() -> str:
    """An MCN with each pooling."""
    rows = []
    for pooling in POOLED:
        pattern = f"{POOLINGS}/{pooling}"
        if not has_run(pattern):
            rows.append((f"`{pooling}`", NOT_RUN, *5 * ("",)))
            continue
        found, size = cells_of(pattern), sizes(recorded_network(pattern))
        records = stored_runs(pattern)[0].records
        last = next((r for r in reversed(records) if r["kind"] == "strides"), {})
        learned = [f"{last[name]:.2f}" for name in last if "/" in name]
        rows.append(
            (
                f"`{pooling}`",
                found.accuracy,
                in_millions(sum(size.multiply_adds)),
                ", ".join(learned) or "2",
                found.epochs,
                f"{found.hardware}; {found.revisions}",
                found.links,
            )
        )
    header = (
        "pooling", "test accuracy, %", "multiply-adds", "strides", "epochs", "hardware; revision",
        "record",
    )  # fmt: skip
    return markdown(header, rows)

"""The tables of docs/comparison.md, made from records of runs and from plans of networks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from markdown_tables import Cells, Row, cells, in_millions, markdown, mean_accuracy
from network_sizes import Sizes, network_not_run, network_of_record, sizes
from record_files import RESULTS, config_record, has_run, stored_runs

from mcn_jax.config import (
    Config,
    from_config_dict,
    from_saved_config,
    load_config_file,
    with_fields,
)
from mcn_jax.layers.table import LAYERS
from mcn_jax.reports.runs import method
from mcn_jax.training.phases import quantizes
from mcn_jax.workdirs.trained import Trained

CPU_SWEEP = "equal_bits"
CPU_SYSTEMS = {
    "mcn": "MCN",
    "mcn_hadamard": "MCN, hadamard",
    "mcn_hadamard_rate_0.3": "MCN, hadamard",
    "mcdonnell": "mcdonnell",
    "mcdonnell_rate_0.3": "mcdonnell",
    "bwn_rate_0.3": "bwn",
    "irnet_rate_0.3": "irnet",
    "dorefa_rate_0.3": "dorefa",
}
NEW_STATISTICS = "new_statistics"  # of runs in the sweep above, under the same names
SWEEP = "equal_bits_h100"
# Systems of equal filter bits at 4-4-8-16 maps: {name of their runs in the sweep file: name}.
SYSTEMS = {
    "mcn": "MCN",
    "umcn": "U-MCN (float32)",
    "wrn": "Wide-ResNet of its weights (float32)",
    "binaryconnect": "binaryconnect",
    "bwn": "bwn",
    "dorefa": "dorefa",
    "mcdonnell": "mcdonnell",
    "irnet": "irnet",
    "bnn_sgd": "bnn, SGD",
    "bnn_adam": "bnn, Adam",
    "xnor_sgd": "xnor, SGD",
    "xnor_adam": "xnor, Adam",
}

SIZE_COLUMNS = (
    "channels", "filter bits", "bits of M, centers, scales, anchors",
    "bits of batch norm and dense layers", "all stored bits", "bytes of the file",
    "multiply-adds: float x float", "float x ±1", "±1 x ±1", "bits of activations",
)  # fmt: skip
TRAINED_COLUMNS = (
    "test accuracy, %", "epochs", "float epochs", "learning rate", "revision", "record",
)  # fmt: skip
NOT_RUN = "not run"


class Other(NamedTuple):
    """A network that has no row among the systems of equal bits.

    Attributes:
        system: its name in the table.
        fields: fields of the config that differ from those of the base.
        base: a file in configs/; "" takes the config of the MCN of equal bits.
        method: as `mcn_jax.reports.runs.method` names it; needed if there is a record.
        record: its runs, as in `Row`; empty if not run.
    """

    system: str
    fields: Mapping[str, Any] = {}
    base: str = ""
    method: str = ""
    record: str = ""


def _with_layers(*names: str) -> Other:
    """A row of layers that store and compute the same."""
    return Other(", ".join(names), {"model.conv": names[0], "binarize.start_epoch": 0})


# Networks with the channels of the MCN of equal bits.
EQUAL_CHANNELS = (
    Other("MCN", method="MCN", record=f"{SWEEP}/mcn_seed?"),
    _with_layers("binaryconnect", "mcdonnell", "dorefa"),
    _with_layers("bwn", "bwn_exact", "bwn_paper", "bwn_released"),
    _with_layers("irnet", "recu"),
    _with_layers("bnn"),
    _with_layers("xnor", "xnor_without_k"),
    _with_layers("lbc"),
    _with_layers("filter_map_sign"),
    _with_layers("filter_map"),
    _with_layers("phc"),
    _with_layers("conv"),
)

# Networks of other authors, and those of the MCN paper and its book.
OWN_NETWORKS = (
    Other("MCN, 34 layers", base="cifar10"),
    Other(
        "MCN, 20 layers",
        base="cifar10_20_16_16_32_64",
        method="MCN",
        record="cifar10_20_200_epochs_mcn",
    ),
    Other("McDonnell, 20 layers", base="mcdonnell_cifar10"),
    Other("BinaryConnect", base="binaryconnect_cifar10"),
    Other("BNN", base="bnn_cifar10"),
    Other("XNOR-Net", base="xnor_cifar10"),
    Other("IR-Net, ResNet-20", base="irnet_cifar10"),
    Other("LBCNN", base="lbcnn"),
    Other("NIN, BN", base="nin"),
    Other("Maxout, BN", base="maxout"),
    Other("ResNet-101", base="resnet101"),
    Other("ResNet-110", base="resnet110"),
    Other("FilterMap, ResNet-18", base="filter_map_resnet18"),
    Other(
        "the same, one bit per element",
        {"model.conv": "filter_map_sign", "model.pointwise": "mcdonnell"},
        base="filter_map_resnet18",
    ),
    Other("FilterMap, ResNet-34", base="filter_map_resnet34"),
    Other("FilterMap, ResNet-50", base="filter_map_resnet50"),
    Other("FilterMap, DenseNet-121", base="filter_map_densenet121"),
    Other("PHC, n = 2, ResNet-18", base="phc_resnet18_n2"),
    Other("PHC, n = 3, ResNet-18", base="phc_resnet18_n3"),
    Other("PHC, n = 4, ResNet-18", base="phc_resnet18_n4"),
    Other("DiffStride, ResNet-18", base="diffstride"),
)

MNIST = "mnist_networks"
# Networks of other authors at a smaller size: (system, config, runs, printed accuracy).
MNIST_NETWORKS = (
    ("BinaryConnect", "convnet_mnist_cpu", "convnet_seed?", "98.99"),
    ("LBCNN", "lbcnn_mnist_cpu", "lbcnn_seed?", "99.51"),
    ("Maxout", "maxout_mnist_cpu", "maxout_seed?", "99.55"),
)

DIGITS = "digits_layers"
RATES = ("0.1", "0.03")  # learning rates that were tried on validation images, in this order


def equal_bits_sizes_table() -> str:
    """What the systems of equal filter bits store and compute."""
    rows = []
    patterns = {system: f"{SWEEP}/{name}_seed?" for name, system in SYSTEMS.items()}
    patterns[CPU_SYSTEMS["mcn_hadamard"]] = f"{CPU_SWEEP}/mcn_hadamard_seed?"
    for system, pattern in patterns.items():
        rows.append((system, *_size_cells(sizes(recorded_network(pattern)))))
    return markdown(("system", *SIZE_COLUMNS), rows)


def equal_bits_table() -> str:
    """The accuracies of the systems of equal filter bits, with the trials of learning rates."""
    rows = [
        (system, _trials_cell(name), *_trained_cells(f"{SWEEP}/{name}_seed?"))
        for name, system in SYSTEMS.items()
    ]
    return markdown(("system", "validation accuracy, % (learning rate)", *TRAINED_COLUMNS), rows)


def _trials_cell(name: str) -> str:
    """The validation accuracy of each trial of a system: those on a GPU, and any on a CPU."""
    found = []
    for sweep in (SWEEP, CPU_SWEEP):
        pattern = f"{sweep}/{name}_trial?"
        if sweep == CPU_SWEEP and not has_run(pattern):
            continue
        for trial in stored_runs(pattern):
            assert trial.result is not None
            accuracy = 100 * trial.result["final_test_accuracy"]
            rate = config_of(f"{sweep}/{trial.workdir.name}").optimizer.learning_rate
            found.append(f"{accuracy:.2f} ({rate:g}{', CPU' if sweep == CPU_SWEEP else ''})")
    return ", ".join(found)


def equal_bits_cpu_table() -> str:
    """The accuracies of the systems of equal filter bits that were trained on a CPU."""
    rows = [
        (system, *_trained_cells(f"{CPU_SWEEP}/{name}_seed?"))
        for name, system in CPU_SYSTEMS.items()
    ]
    return markdown(("system", *TRAINED_COLUMNS), rows)


def new_statistics_table() -> str:
    """The accuracies of the same runs with running averages and with new statistics."""
    rows = []
    for name, system in CPU_SYSTEMS.items():
        pattern = f"{NEW_STATISTICS}/{name}_seed?"
        if not has_run(pattern):
            continue
        runs = stored_runs(pattern)
        names = [run.workdir.name for run in runs]
        sources = [config_record(f"{NEW_STATISTICS}/{run}")["init_from"] for run in names]
        before = mean_accuracy([source["test_accuracy"] for source in sources])
        after = mean_accuracy([run.result["final_test_accuracy"] for run in runs])
        link = f"[{NEW_STATISTICS}.jsonl](../results/{NEW_STATISTICS}.jsonl) {', '.join(names)}"
        rows.append((system, before, after, link))
    return markdown(("system", "running averages, %", "new statistics, %", "record"), rows)


def _trained_cells(pattern: str) -> tuple[str, ...]:
    """The cells of `TRAINED_COLUMNS`."""
    found, config = cells_of(pattern), config_of(pattern)
    start = config.binarize.start_epoch
    floats = found.epochs if not quantizes(config) else str(start)
    rate = f"{config.optimizer.learning_rate:g}"
    return found.accuracy, found.epochs, floats, rate, found.revisions, found.links


def equal_channels_table() -> str:
    """Networks of equal channels, most of which were not run."""
    return _others_table("system", EQUAL_CHANNELS)


def own_networks_table() -> str:
    """The networks that other systems were published with, at their published sizes."""
    return _others_table("network", OWN_NETWORKS)


def mnist_table() -> str:
    """Small forms of the networks of other authors on MNIST."""
    rows = []
    for system, config, runs, printed in MNIST_NETWORKS:
        pattern = f"{MNIST}/{runs}"
        found, size = cells_of(pattern), sizes(recorded_network(pattern))
        stored = size.filter_bits + size.scale_bits + size.other_bits
        link = f"{system} ([config](../configs/{config}.py))"
        rows.append(
            (link, f"{size.filter_bits:,}", f"{stored:,}", printed, found.accuracy, found.epochs,
             f"{found.hardware}; {found.revisions}", found.links)
        )  # fmt: skip
    return markdown(
        ("small network", "filter bits", "all stored bits", "printed for the large network, %",
         "test accuracy, %", "epochs", "hardware; revision", "record"),
        rows,
    )  # fmt: skip


def _others_table(title: str, others: tuple[Other, ...]) -> str:
    rows = []
    for other in others:
        network = recorded_network(other.record) if other.record else planned_network(other)
        link = f" ([config](../configs/{other.base}.py))" if other.base else ""
        accuracy = NOT_RUN
        if other.record:
            found = cells(Row("", other.method, record=other.record), root="../")
            accuracy = f"{found.accuracy}, {found.epochs} epochs: {found.links}"
        rows.append((f"{other.system}{link}", *_size_cells(sizes(network)), accuracy))
    return markdown((title, *SIZE_COLUMNS, "test accuracy, %"), rows)


def digits_table() -> str:
    """Every kind of layer on digits; a kind without records has a row, too."""
    return markdown(
        ("layer", "channels", "filter bits", *(f"validation at {rate}, %" for rate in RATES),
         "learning rate", "test accuracy, %", "revision", "record"),
        [_digits_row(kind) for kind in LAYERS],
    )  # fmt: skip


def _digits_row(kind: str) -> tuple[str, ...]:
    pattern = f"{DIGITS}/{kind}_seed?"
    if not has_run(pattern):
        return (f"`{kind}`", *5 * ("",), NOT_RUN, "", "")
    config, found = config_of(pattern), cells_of(pattern)
    trials = [validated(kind, rate) for rate in RATES]
    return (
        f"`{kind}`",
        "-".join(str(width * config.model.planes) for width in config.model.widths),
        found.filter_bits,
        *(f"{100 * accuracy:.2f}" for accuracy in trials),
        f"{config.optimizer.learning_rate:g}",
        found.accuracy,
        found.revisions,
        found.links,
    )


def validated(kind: str, rate: str) -> float:
    """The accuracy of a layer on the validation images of digits, at one learning rate."""
    [run] = stored_runs(f"{DIGITS}/{kind}_validation_{rate}")
    assert run.result is not None
    return float(run.result["final_test_accuracy"])


def cells_of(pattern: str) -> Cells:
    """The cells of a run, or of several that differ in their seed."""
    return cells(Row("", method(stored_runs(pattern)[0].setting), record=pattern), root="../")


def config_of(pattern: str) -> Config:
    """The config of a run, or of the first of several."""
    return from_saved_config(_first_record(pattern)["config"])


def _first_record(pattern: str) -> dict[str, Any]:
    """The config.json of a run, or of the first of several."""
    sweep, is_sweep, _ = pattern.partition("/")
    name = stored_runs(pattern)[0].workdir.name
    return config_record(f"{sweep}/{name}" if is_sweep else name)


def recorded_network(pattern: str) -> Trained:
    """The network of a run, or of the first of several."""
    return network_of_record(_first_record(pattern), stored_runs(pattern)[0].records)


def planned_network(other: Other) -> Trained:
    """A network that was not run, on the data of the MCN of equal bits."""
    base = EQUAL_CHANNELS[0].record
    if other.base:
        path = RESULTS.parent / "configs" / f"{other.base}.py"
        config = from_config_dict(load_config_file(path))
    else:
        config = config_of(base)
    return network_not_run(with_fields(config, other.fields), _first_record(base)["data"])


def _size_cells(size: Sizes) -> tuple[str, ...]:
    stored = size.filter_bits + size.scale_bits + size.other_bits
    adds = size.multiply_adds
    numbers = (size.filter_bits, size.scale_bits, size.other_bits, stored, size.file_bytes)
    return (
        size.channels,
        *(f"{number:,}" for number in numbers),
        *map(in_millions, adds),
        str(size.activation_bits),
    )

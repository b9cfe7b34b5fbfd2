"""The stages of the accelerator queue, in order, and the time that each takes on an H100."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

STEPS_PER_EPOCH = 390  # CIFAR, batch size 128
# Besides its steps, an epoch evaluates the network and saves a checkpoint. Measured on an H100 at
# 16-16-32-64 maps.
EPOCH_SECONDS = 0.23
MOST_EPOCHS = 200  # as in the paper
FEWEST_EPOCHS = 3  # one with float filters, and two with binary filters
PLANNED_SHARE = 0.95  # of the budget that a plan fills
EXPORT_SECONDS = 15.0  # to write the model file of a run whose checkpoint cannot be returned

BFLOAT16 = {"dtype": "bfloat16", "optimizer.schedule": "cosine"}
U_MCN = {"binarize.enabled": False}
WRN = {"model.conv": "conv"}
WRN_HALF = {"model.conv": "conv", "model.planes": 2}
# For rehearsals: the network and the data become tiny, the commands stay the same.
TINY = {
    "model.widths": (1, 1, 1, 2),
    "model.depth": 8,
    "model.dense_features": 8,
    "data.train_split": "train[:640]",
    "data.test_split": "test[:200]",
    "batch_size": 64,
    "steps_per_dispatch": 5,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One training run of a stage.

    Attributes:
        name: name of its work directory.
        config: name of a file in configs/.
        fields: fields that differ from the config.
        step_seconds: time of one step on an H100 in bfloat16.
        start_seconds: time from the start of the process to the end of the last compilation.
        is_large: whether its checkpoint is too large to be returned.
        tiny: fields of a rehearsal that differ from `TINY`.
    """

    name: str
    config: str
    fields: Mapping[str, Any]
    step_seconds: float
    start_seconds: float
    is_large: bool = False
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def epoch_seconds(self) -> float:
        """Time of one epoch on an H100."""
        return STEPS_PER_EPOCH * self.step_seconds + EPOCH_SECONDS

    def all_fields(self, epochs: int, *, rehearse: bool) -> dict[str, Any]:
        """Returns the fields that differ from the config in a run of this number of epochs."""
        tiny = {**TINY, **self.tiny} if rehearse else {}
        return {**schedule_fields(epochs), **self.fields, **tiny}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One command of benchmarks/gpu.py.

    Attributes:
        name: name of its record.
        arguments: arguments, without those about time and output.
        tiny: arguments of a rehearsal.
        suffix: ending of its record; "" for a directory.
        needs: a package that it needs besides those of all stages.
    """

    name: str
    arguments: tuple[str, ...]
    tiny: tuple[str, ...]
    suffix: str = ".json"
    needs: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        summary: description in one line.
        budget: default time in seconds.
        data: the data set that it needs; empty if none.
        epochs: number of epochs of all runs; 0 for as many as fit into the budget. A stage with a
            fixed number may take several calls.
        measurements: run side by side; they take turns on the device.
        trainings: groups of runs. The runs of a group share the device, the groups follow each
            other. All have the same number of epochs.
    """

    summary: str
    budget: float
    data: str = ""
    epochs: int = 0
    measurements: tuple[Measurement, ...] = ()
    trainings: tuple[tuple[Training, ...], ...] = ()

    @property
    def parts(self) -> list[Training | Measurement]:
        """All runs and measurements, in order."""
        return [one for group in (self.measurements, *self.trainings) for one in group]


def group_seconds(group: Sequence[Training], epochs: Sequence[int]) -> float:
    """Returns the time that the runs of a group should take on an H100.

    Runs that share the device are assumed to start together, and then to take as long as one after
    the other.

    Args:
        group: the runs.
        epochs: number of epochs of each run.
    """
    start = max(run.start_seconds for run in group)
    training = sum(n * run.epoch_seconds for run, n in zip(group, epochs, strict=True))
    return start + training + EXPORT_SECONDS * sum(run.is_large for run in group)


def seconds(stage: Stage, epochs: int) -> float:
    """Returns the time that all runs of a stage should take on an H100."""
    return sum(group_seconds(group, [epochs] * len(group)) for group in stage.trainings)


def fitted_epochs(stage: Stage, budget: float) -> int:
    """Returns the number of epochs with which all runs of a stage fit into a budget.

    It is 0 for a stage without runs, and if not even one epoch fits.
    """
    if not stage.trainings:
        return 0
    start, epoch = seconds(stage, 0), seconds(stage, 1) - seconds(stage, 0)
    return max(0, min(MOST_EPOCHS, int((PLANNED_SHARE * budget - start) / epoch)))


def schedule_fields(epochs: int) -> dict[str, Any]:
    """Returns the fields that fit a schedule to a number of epochs.

    As in the paper, the first twentieth of the epochs trains float filters.
    """
    return {"num_epochs": epochs, "binarize.start_epoch": max(1, round(epochs / 20))}


def _run(
    name: str,
    config: str,
    fields: Mapping[str, Any],
    ms: float,
    start: float,
    *,
    is_large: bool = False,
    tiny: Mapping[str, Any] | None = None,
) -> Training:
    fields = BFLOAT16 | dict(fields)
    return Training(
        name=name, config=config, fields=fields, step_seconds=ms / 1000, start_seconds=start,
        is_large=is_large, tiny=tiny or {},
    )  # fmt: skip


def _equal_bits(names: Sequence[str], **fields: Any) -> tuple[Training, ...]:
    """Returns runs of systems at equal bits that share the device, in float32 as on CPUs."""
    common = {"dtype": "float32", "model.head": "linear", **fields}
    return tuple(
        _run(name, "cifar10_cpu", common | EQUAL_BITS[name.partition("_")[0]], 3.80, 44)
        for name in names
    )


def _resnet(
    name: str, config: str, fields: Mapping[str, Any], ms: float, widths: tuple[int, ...]
) -> Training:
    """Returns a run of a ResNet-18; `widths` are those of a rehearsal."""
    tiny = {"model.widths": widths, "model.blocks": (1, 1, 1, 1)}
    return _run(name, config, fields, ms, 60, is_large=True, tiny=tiny)


def _steps(name: str, dtype: str, widths: str, steps: int, *others: str) -> Measurement:
    arguments = ("steps", f"--dtype={dtype}", f"--widths={widths}", f"--steps={steps}", *others)
    tiny = ("--widths=1,1,1,2", "--depth=8", "--batch_size=4", "--steps=2", "--repeats=5")
    return Measurement(name=name, arguments=arguments, tiny=tiny)


ONE_BIT = {"model.planes": 2, "binarize.start_epoch": 0}
# Systems of 67,000 filter bits each, or of as many float32 weights: {name: fields}.
EQUAL_BITS: Mapping[str, Mapping[str, Any]] = {
    "mcn": {"binarize.start_epoch": 2},
    "umcn": U_MCN,
    "wrn": WRN_HALF,
    **{
        kind: {"model.conv": kind, **ONE_BIT}
        for kind in ("binaryconnect", "bwn", "dorefa", "mcdonnell", "irnet")
    },
}
RATES = {"0.1": 0.1, "0.03": 0.03}
VALIDATION = {"data.train_split": "train[:90%]", "data.test_split": "train[90%:]"}
STRIDES_323 = {"model.strides": (1, 3, 2, 3)}

SMALL = {"model.widths": (8, 8, 16, 32)}
NARROW, WIDE = "16,16,32,64", "64,64,128,256"
# Where a time has no comment, it was measured on an H100: see results/benchmarks/h100 and the runs
# cifar10_20_70_epochs_*. A start is 10 s for the process, its imports and its data, and the
# compilations.
STAGES = {
    "bench": Stage(
        summary="training steps, single layers, the same WRN in PyTorch, and the card's best rates",
        budget=240,
        # The most important first. Layers are measured until the time is over.
        measurements=(
            _steps("step_bfloat16", "bfloat16", NARROW, 30),
            Measurement(name="machine", arguments=("machine",), tiny=("--repeats=2",)),
            Measurement(
                name="pytorch",
                arguments=("pytorch", "--dtype=bfloat16", f"--widths={NARROW}"),
                tiny=("--widths=1,1,1,2", "--batch_size=4", "--steps=2", "--repeats=5"),
                needs="torch",
            ),
            _steps("step_bfloat16_wide", "bfloat16", WIDE, 10, "--networks=MCN;WRN;U-MCN"),
            Measurement(
                name="layers",
                arguments=(
                    "layers", "--dtypes=bfloat16,float32", "--forms=direct,factored,pallas",
                ),
                tiny=("--work=1e6", "--largest_batch=4", "--calls=1", "--repeats=2"),
                suffix="",
            ),
        ),
    ),
    "c10-20": Stage(
        summary="CIFAR-10, 20 layers, 16-16-32-64 maps: MCN, then U-MCN",
        budget=300,
        data="cifar10",
        trainings=(
            (_run("mcn", "cifar10_20_16_16_32_64", {}, 3.80, 44),),
            (_run("umcn", "cifar10_20_16_16_32_64", U_MCN, 3.38, 16),),
        ),
    ),
    # No step of this width has been measured; the times of 16-16-32-64 maps are upper bounds.
    "c10-small": Stage(
        summary="CIFAR-10, 20 layers, 8-8-16-32 maps: MCN and its partners, three seeds together",
        budget=540,
        data="cifar10",
        trainings=tuple(
            tuple(
                _run(f"{name}_seed{seed}", "cifar10_20_16_16_32_64",
                     SMALL | fields | {"seed": seed}, ms, start)
                for seed in range(3)
            )
            for name, fields, ms, start in (
                ("mcn", {}, 3.80, 44), ("umcn", U_MCN, 3.38, 16),
                ("wrn_of_its_weights", WRN_HALF, 3.16, 16), ("wrn_of_its_channels", WRN, 3.16, 16),
            )
        ),
    ),
    # Of 34 layers, nothing has been measured: the time of 20 layers times the number of blocks.
    "c10-34": Stage(
        summary="CIFAR-10, the paper's network: 34 layers, 64-64-128-256 maps",
        budget=540,
        data="cifar10",
        trainings=((_run("mcn", "cifar10", {}, 17.00 * 15 / 9, 70, is_large=True),),),
    ),
    "c100-34": Stage(
        summary="CIFAR-100, the paper's network: 34 layers, 64-64-128-256 maps",
        budget=540,
        data="cifar100",
        trainings=((_run("mcn", "cifar100", {}, 17.00 * 15 / 9, 70, is_large=True),),),
    ),
    # Between the measured widths, the time is interpolated by multiply-adds.
    "c10-20-wide": Stage(
        summary="CIFAR-10, 20 layers: the book's three wider networks",
        budget=540,
        data="cifar10",
        trainings=(
            (_run("mcn_16_32_64_128", "cifar10_20_16_32_64_128", {}, 6.8, 50),),
            (_run("mcn_32_64_128_256", "cifar10_20_32_64_128_256", {}, 15.0, 50, is_large=True),),
            (_run("mcn_64_64_128_256", "cifar10_20_64_64_128_256", {}, 17.0, 50, is_large=True),),
        ),
    ),
    # No step of this width has been measured; the time of the MCN of 16-16-32-64 maps is an upper
    # bound for all.
    "c10-trials": Stage(
        summary="CIFAR-10, 20 layers, 67,000 bits: two learning rates for each system, on a"
        " validation part of the training images",
        budget=540,
        data="cifar10",
        epochs=10,
        trainings=tuple(
            tuple(
                run
                for rate, value in RATES.items()
                for run in _equal_bits(
                    [f"{name}_rate_{rate}"], **VALIDATION, **{"optimizer.learning_rate": value}
                )
            )
            for name in EQUAL_BITS
        ),
    ),
    "c10-equal-bits": Stage(
        summary="CIFAR-10, 20 layers, 67,000 bits: each system, three seeds together",
        budget=540,
        data="cifar10",
        epochs=30,
        trainings=tuple(
            tuple(
                run for seed in range(3) for run in _equal_bits([f"{name}_seed{seed}"], seed=seed)
            )
            for name in EQUAL_BITS
        ),
    ),
    # Nothing has been measured: the time of the WRN of 64-64-128-256 maps times the multiply-adds
    # of the network over those of this WRN, 643 million.
    "c10-resnet18": Stage(
        summary="CIFAR-10, ResNet-18: ordinary, filter maps, and PHC",
        budget=540,
        data="cifar10",
        trainings=(tuple(
            _resnet(name, config, fields, ms, widths)
            for name, config, fields, ms, widths in (
                ("ordinary", "filter_map_resnet18", WRN, 14.7, (16,) * 5),
                ("filter_map_mean", "filter_map_resnet18", {}, 14.7, (16,) * 5),
                ("filter_map_sum", "filter_map_resnet18", {"model.filter_map_gradient": "sum"},
                 14.7, (16,) * 5),
                ("phc_n2", "phc_resnet18_n2", {}, 13.4, (12,) * 5),
                ("phc_n3", "phc_resnet18_n3", {}, 13.4, (12,) * 5),
                ("phc_n4", "phc_resnet18_n4", {}, 13.4, (12,) * 5),
            )
        ),),
    ),
    # Likewise; an epoch of 25,000 mixed images has half of the steps.
    "c10-diffstride": Stage(
        summary="CIFAR-10, ResNet-18: strided, spectral and learned strides, from (2,2,2) and"
        " (3,2,3)",
        budget=540,
        data="cifar10",
        trainings=(tuple(
            _resnet(f"{pooling}_{start}", "diffstride", fields | {"model.pooling": pooling}, ms,
                    (2,) * 5)
            for start, fields, times in (
                ("222", {}, (7.3, 9.7, 56.0)), ("323", STRIDES_323, (4.3, 5.2, 39.0)),
            )
            for pooling, ms in zip(("strided", "spectral", "diffstride"), times, strict=True)
        ),),
    ),
}  # fmt: skip

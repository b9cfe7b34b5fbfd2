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
    """

    name: str
    config: str
    fields: Mapping[str, Any]
    step_seconds: float
    start_seconds: float
    is_large: bool = False

    @property
    def epoch_seconds(self) -> float:
        """Time of one epoch on an H100."""
        return STEPS_PER_EPOCH * self.step_seconds + EPOCH_SECONDS


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
        measurements: run side by side; they take turns on the device.
        trainings: groups of runs. The runs of a group share the device, the groups follow each
            other. All have the same number of epochs.
    """

    summary: str
    budget: float
    data: str = ""
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
) -> Training:
    fields = BFLOAT16 | dict(fields)
    return Training(
        name=name, config=config, fields=fields, step_seconds=ms / 1000, start_seconds=start,
        is_large=is_large,
    )  # fmt: skip


def _steps(name: str, dtype: str, widths: str, steps: int, *others: str) -> Measurement:
    arguments = ("steps", f"--dtype={dtype}", f"--widths={widths}", f"--steps={steps}", *others)
    tiny = ("--widths=1,1,1,2", "--depth=8", "--batch_size=4", "--steps=2", "--repeats=5")
    return Measurement(name=name, arguments=arguments, tiny=tiny)


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
}  # fmt: skip

"""The stages of the accelerator queue, in order, and the time that each takes on an H100."""

import dataclasses
from collections.abc import Mapping
from typing import Any

STEPS_PER_EPOCH = 390  # CIFAR, batch size 128
# Besides its steps, an epoch evaluates the network and saves a checkpoint. Measured on an H100 at
# 16-16-32-64 maps.
EPOCH_SECONDS = 0.23
MOST_EPOCHS = 200  # as in the paper
FEWEST_EPOCHS = 3
SHARE = 0.95  # of the budget that a plan fills

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
    """

    name: str
    config: str
    fields: Mapping[str, Any]
    step_seconds: float
    start_seconds: float

    def seconds(self, epochs: int) -> float:
        """Returns the time that the run should take on an H100."""
        return self.start_seconds + epochs * self.epoch_seconds

    @property
    def epoch_seconds(self) -> float:
        """Time of one epoch on an H100."""
        return STEPS_PER_EPOCH * self.step_seconds + EPOCH_SECONDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One command of benchmarks/gpu.py.

    Attributes:
        name: name of its record, a file or a directory.
        arguments: arguments, without those about time and output.
        tiny: arguments of a rehearsal.
    """

    name: str
    arguments: tuple[str, ...]
    tiny: tuple[str, ...]


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


def seconds(stage: Stage, epochs: int) -> float:
    """Returns the time that the runs of a stage should take on an H100.

    Runs that share the device are assumed to take as long as one after the other, except that they
    start together.
    """
    total = 0.0
    for group in stage.trainings:
        total += max(run.start_seconds for run in group)
        total += sum(epochs * run.epoch_seconds for run in group)
    return total


def fitted_epochs(stage: Stage, budget: float) -> int:
    """Returns the number of epochs with which all runs of a stage fit into a budget.

    It is 0 for a stage without runs.
    """
    if not stage.trainings:
        return 0
    start, epoch = seconds(stage, 0), seconds(stage, 1) - seconds(stage, 0)
    return max(FEWEST_EPOCHS, min(MOST_EPOCHS, int((SHARE * budget - start) / epoch)))


def schedule_fields(epochs: int) -> dict[str, Any]:
    """Returns the fields that fit a schedule to a number of epochs.

    As in the paper, the first twentieth of the epochs trains float filters.
    """
    return {"num_epochs": epochs, "binarize.start_epoch": max(1, round(epochs / 20))}


def _c10(name: str, config: str, fields: Mapping[str, Any], ms: float, start: float) -> Training:
    fields = BFLOAT16 | dict(fields)
    return Training(
        name=name, config=config, fields=fields, step_seconds=ms / 1000, start_seconds=start
    )


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
            ),
            _steps("step_bfloat16_wide", "bfloat16", WIDE, 10, "--networks=MCN;WRN;U-MCN"),
            Measurement(
                name="layers",
                arguments=(
                    "layers", "--dtypes=bfloat16,float32", "--forms=direct,factored,pallas",
                ),
                tiny=("--work=1e6", "--largest_batch=4", "--calls=1", "--repeats=2"),
            ),
        ),
    ),
    "c10-20": Stage(
        summary="CIFAR-10, 20 layers, 16-16-32-64 maps: MCN, then U-MCN",
        budget=300,
        data="cifar10",
        trainings=(
            (_c10("mcn", "cifar10_20_16_16_32_64", {}, 3.80, 44),),
            (_c10("umcn", "cifar10_20_16_16_32_64", U_MCN, 3.38, 16),),
        ),
    ),
    # No step of this width has been measured; the times of 16-16-32-64 maps are upper bounds.
    "c10-small": Stage(
        summary="CIFAR-10, 20 layers, 8-8-16-32 maps: MCN and its partners, three seeds together",
        budget=540,
        data="cifar10",
        trainings=tuple(
            tuple(
                _c10(f"{name}_seed{seed}", "cifar10_20_16_16_32_64",
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
        trainings=((_c10("mcn", "cifar10", {}, 17.00 * 15 / 9, 70),),),
    ),
    "c100-34": Stage(
        summary="CIFAR-100, the paper's network: 34 layers, 64-64-128-256 maps",
        budget=540,
        data="cifar100",
        trainings=((_c10("mcn", "cifar100", {}, 17.00 * 15 / 9, 70),),),
    ),
    # Between the measured widths, the time is interpolated by multiply-adds.
    "c10-20-wide": Stage(
        summary="CIFAR-10, 20 layers: the book's three wider networks",
        budget=540,
        data="cifar10",
        trainings=(
            (_c10("mcn_16_32_64_128", "cifar10_20_16_32_64_128", {}, 6.8, 50),),
            (_c10("mcn_32_64_128_256", "cifar10_20_32_64_128_256", {}, 15.0, 50),),
            (_c10("mcn_64_64_128_256", "cifar10_20_64_64_128_256", {}, 17.0, 50),),
        ),
    ),
}  # fmt: skip

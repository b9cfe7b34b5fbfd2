"""What a stage of the accelerator queue is, and the time that it takes on an H100."""

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
        epochs: number of epochs; 0 takes that of the plan.
        choices: {name of a trial: fields that it tries}. The run starts when all trials have ended,
            and takes the fields of the most accurate one, the first of equals.
        teacher: name of the run that it is distilled from. It starts when that one has ended.
    """

    name: str
    config: str
    fields: Mapping[str, Any]
    step_seconds: float
    start_seconds: float
    is_large: bool = False
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 0
    choices: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    teacher: str = ""

    @property
    def epoch_seconds(self) -> float:
        """Time of one epoch on an H100."""
        return STEPS_PER_EPOCH * self.step_seconds + EPOCH_SECONDS

    def epochs_of(self, plan: int, *, rehearse: bool) -> int:
        """Returns the number of epochs of this run in a plan of so many epochs."""
        if rehearse and self.epochs:
            return min(self.epochs, FEWEST_EPOCHS)
        return self.epochs or plan

    def all_fields(self, plan: int, *, rehearse: bool) -> dict[str, Any]:
        """Returns the fields that differ from the config in a plan of so many epochs."""
        tiny = {**TINY, **self.tiny} if rehearse else {}
        epochs = self.epochs_of(plan, rehearse=rehearse)
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
        measurements: run side by side; they take turns on the device.
        trainings: groups of runs. The runs of a group share the device, the groups follow each
            other. Runs without epochs of their own have as many as fit into the budget.
        at_once: number of runs of a group that train at the same time; 0 for all.
    """

    summary: str
    budget: float
    data: str = ""
    measurements: tuple[Measurement, ...] = ()
    trainings: tuple[tuple[Training, ...], ...] = ()
    at_once: int = 0

    @property
    def fits_budget(self) -> bool:
        """Whether the number of epochs is fitted to the budget."""
        return any(not run.epochs for run in self.runs)

    @property
    def runs(self) -> list[Training]:
        """All runs, in order."""
        return [run for group in self.trainings for run in group]

    @property
    def parts(self) -> list[Training | Measurement]:
        """All runs and measurements, in order."""
        return [*self.measurements, *self.runs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage keeps when it is resumed.

    Attributes:
        stage: name of the stage.
        epochs: epochs of the runs that have none of their own.
        rehearse: whether networks and data are tiny.
    """

    stage: str
    epochs: int
    rehearse: bool


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
    """Returns the time that all runs of a stage should take on an H100.

    Args:
        stage: the stage.
        epochs: number of epochs of runs that have none of their own.
    """
    return sum(
        group_seconds(group, [run.epochs or epochs for run in group]) for group in stage.trainings
    )


def fitted_epochs(stage: Stage, budget: float) -> int:
    """Returns the number of epochs with which all runs of a stage fit into a budget.

    It is 0 for a stage without runs or whose runs have epochs of their own, and if not even one
    epoch fits.
    """
    if not stage.fits_budget:
        return 0
    start, epoch = seconds(stage, 0), seconds(stage, 1) - seconds(stage, 0)
    return max(0, min(MOST_EPOCHS, int((PLANNED_SHARE * budget - start) / epoch)))


def schedule_fields(epochs: int) -> dict[str, Any]:
    """Returns the fields that fit a schedule to a number of epochs.

    As in the paper, the first twentieth of the epochs trains float filters; a single epoch is
    binary.
    """
    start = min(max(1, round(epochs / 20)), epochs - 1)
    return {"num_epochs": epochs, "binarize.start_epoch": start}

"""Runs as their work directories tell of them, grouped into settings that several seeds repeat."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcn_jax.config import RESUMABLE_CHANGES, flatten, from_config_dict
from mcn_jax.errors import InputError
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import MODELS
from mcn_jax.workdirs.files import of_kind, read_json, read_metrics, read_result

# What makes no setting of its own: seeds are repetitions, the others do not change a result.
IGNORED = ("seed", *RESUMABLE_CHANGES)
# Of these, whether they are set: where the files lie is not part of a setting.
PLACES = ("init_from", "data.wnids_file")
# What the columns method, data and network tell.
ALWAYS_SHOWN = (
    "data.name", "model.name", "model.widths", "model.depth", "model.conv", "binarize.enabled",
)  # fmt: skip
SHORT_NAMES = {
    "loss.theta": "theta", "loss.center_loss_weight": "lambda", "binarize.num_centers": "centers",
}  # fmt: skip
EPOCH_FIELDS = (
    "epoch", "binarized", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    "wall_seconds",
)  # fmt: skip
RESULT_FIELDS = (
    "final_test_accuracy", "best_test_accuracy", "filter_bits", "float32_filter_bits",
    "wall_seconds",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a work directory tells of its run.

    config: {"loss.theta": 1e-4, ...}, every field.
    records: of metrics.jsonl, at least one epoch's among them.
    result: of result.json; None of a run that has not ended.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None

    @property
    def epochs_done(self) -> int:
        """The number of whole epochs."""
        return int(of_kind(self.records, "epoch")[-1]["epoch"]) + 1

    @functools.cached_property
    def setting(self) -> dict[str, Any]:
        """What runs must share to be repetitions of each other: the config without the seed."""
        kept = {name: value for name, value in self.config.items() if name not in IGNORED}
        return kept | {name: bool(kept[name]) for name in PLACES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one setting, by seed; at least one."""

    runs: tuple[Run, ...]

    @property
    def setting(self) -> dict[str, Any]:
        """What its runs share."""
        return self.runs[0].setting

    @property
    def finished(self) -> list[Run]:
        """The runs that have ended."""
        return [run for run in self.runs if run.result is not None]

    @property
    def running(self) -> list[Run]:
        """The runs that have not ended."""
        return [run for run in self.runs if run.result is None]

    def results(self, name: str) -> list[Any]:
        """A value of result.json of each run that has ended, such as "final_test_accuracy"."""
        return [run.result[name] for run in self.runs if run.result is not None]


def read_run(workdir: str | pathlib.Path) -> Run:
    """Reads a work directory or a record of one, of this version or of an older one.

    Raises:
        InputError: if it is none, if a file of it is damaged, or if it has no whole epoch yet.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise InputError(
            f"{workdir} is not a directory; name work directories, such as runs/digits"
        )
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} has no config.json; name work directories, such as runs/digits"
        )
    record = read_json(path)
    try:
        config = flatten(from_config_dict(record["config"]))
        if config["data.root"]:  # a folder's data are told by their digest, not by their name
            config["data.full_name"] = record["data"]["full_name"]
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} is damaged ({error}); leave {workdir} out") from error
    path = workdir / "metrics.jsonl"
    records = read_metrics(path)
    for number, line in enumerate(records, start=1):
        _check_fields(line, ("kind", "step"), f"{path}, line {number},")
        if line["kind"] == "epoch":
            _check_fields(line, EPOCH_FIELDS, f"{path}, line {number},")
    health = of_kind(records, "health")
    if any(line.keys() != health[0].keys() for line in health):
        raise InputError(f"{path} is damaged: not all of its health records have the same layers")
    if not of_kind(records, "epoch"):
        raise InputError(f"{workdir} has no whole epoch yet; wait for it, or leave it out")
    result = read_result(workdir)
    if result is not None:
        _check_fields(result, RESULT_FIELDS, f"{workdir / 'result.json'}")
    return Run(workdir=workdir, config=config, records=records, result=result)


def _check_fields(record: Any, names: Iterable[str], place: str) -> None:
    """Checks that a record has these fields, all but "kind" numbers."""
    for name in names:
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, str if name == "kind" else int | float):
            raise InputError(
                f"{place} is damaged: {name!r} is {'absent' if value is None else repr(value)};"
                " mend it, or leave the run out"
            )


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Puts runs together that differ in their seed only.

    Groups of one method, data set and network stand together, by theta, lambda and centers; else in
    the order given.

    Raises:
        InputError: if two are the same work directory, or have the same setting and seed.
    """
    by_place: dict[pathlib.Path, Run] = {}
    by_setting: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        first = by_place.setdefault(run.workdir.resolve(), run)
        if first is not run:
            raise InputError(f"{run.workdir} is {first.workdir}, given twice; leave one out")
        by_setting.setdefault(tuple(sorted(run.setting.items())), []).append(run)
    groups = []
    for members in by_setting.values():
        members.sort(key=lambda run: run.config["seed"])
        for run, following in itertools.pairwise(members):
            if run.config["seed"] == following.config["seed"]:
                raise InputError(
                    f"{run.workdir} and {following.workdir} have the same config and"
                    f" seed={run.config['seed']}; leave one out"
                )
        groups.append(Group(runs=tuple(members)))
    kinds = list(dict.fromkeys(_shown(group.setting) for group in groups))
    return sorted(
        groups,
        key=lambda group: (
            kinds.index(_shown(group.setting)),
            *(group.setting[name] for name in SHORT_NAMES),
        ),
    )


def method(setting: Mapping[str, Any]) -> str:
    """ "MCN", "U-MCN"; of ordinary convolutions "WRN" or "CNN"; or the name of another layer."""
    family, architecture = LAYERS.get(setting["model.conv"]), MODELS.get(setting["model.name"])
    if family is not None and family.methods is not None:
        return family.methods[0 if setting["binarize.enabled"] else 1]
    if family is not None and architecture is not None and not family.quantizes:
        return architecture.title
    return str(setting["model.conv"])


def network(setting: Mapping[str, Any]) -> str:
    """Such as "simple_cnn 5-10-20-40" or "wide_resnet 20 layers 16-16-32-64"."""
    layers = f" {setting['model.depth']} layers" if setting["model.name"] == "wide_resnet" else ""
    return f"{setting['model.name']}{layers} {text(setting['model.widths'])}"


def _shown(setting: Mapping[str, Any]) -> tuple[str, str, str]:
    return method(setting), str(setting["data.name"]), network(setting)


def differing_fields(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that tell settings apart, besides what method, data and network tell."""
    names = list(dict.fromkeys(name for setting in settings for name in setting))
    fields = [name for name in names if len({setting.get(name) for setting in settings}) > 1]
    by_shown: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for setting in settings:
        by_shown.setdefault(_shown(setting), []).append(setting)
    return [
        name
        for name in fields
        if name not in ALWAYS_SHOWN
        or any(len({s.get(name) for s in alike}) > 1 for alike in by_shown.values())
    ]


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each setting in a legend, no longer than tells it from the others: its method,
    data set and network where these differ, and fields that differ among those with one name."""
    names = [[method(setting)] for setting in settings]
    for describe in (lambda setting: str(setting["data.name"]), network):
        if len({describe(setting) for setting in settings}) > 1:
            for name, setting in zip(names, settings, strict=True):
                name.append(describe(setting))
    bases = [", ".join(name) for name in names]
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for base, setting in zip(bases, settings, strict=True):
        alike.setdefault(base, []).append(setting)
    return [
        ", ".join((base, *_told_apart(setting, alike[base])))
        for base, setting in zip(bases, settings, strict=True)
    ]


def _told_apart(setting: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> list[str]:
    """In words, the fields of a setting that differ among settings."""
    fields = differing_fields(alike)
    short = [name.rpartition(".")[2] for name in fields]
    words = []
    for field, last in zip(fields, short, strict=True):
        value = setting.get(field)
        if field == "loss.center_loss_weight":
            words.append(f"center loss, lambda {value:g}" if value else "no center loss")
        elif field == "init_from":
            words.append("fine-tuned" if value else "from scratch")
        else:
            name = SHORT_NAMES.get(field, last if short.count(last) == 1 else field)
            words.append(f"{name} {text(value)}")
    return words


def text(value: Any) -> str:
    """A value of a config as a table shows it."""
    if isinstance(value, bool) or value is None or value == "":
        return {True: "yes", False: "no"}.get(value, "-")
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def sweep(groups: Iterable[Group], field: str) -> list[dict[str, Any]]:
    """The points of a figure over one field, a record for each run that has ended.

    Args:
        groups: of runs.
        field: such as "loss.theta".

    Returns:
        Records with "series", "value" and "accuracy" (0 to 1). Within a series all else is equal;
        a series of a single value is left out.
    """
    series: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.finished:
            others = {name: value for name, value in group.setting.items() if name != field}
            series.setdefault(tuple(sorted(others.items())), []).append(group)
    swept = [members for members in series.values() if len(members) > 1]
    firsts = [dict(members[0].setting) | {field: None} for members in swept]
    return [
        {"series": name, "value": group.setting[field], "accuracy": accuracy}
        for name, members in zip(labels(firsts), swept, strict=True)
        for group in members
        for accuracy in group.results("final_test_accuracy")
    ]

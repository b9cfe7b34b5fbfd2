"""Reads runs from their work directories, and groups runs that repeat a setting."""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcn_jax.config import OLDER_RUNS, RESUMABLE_CHANGES, Config, flatten, from_saved_config
from mcn_jax.data.facts import stores_files
from mcn_jax.errors import InputError
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import MODELS
from mcn_jax.reports.health_plots import NEWER_MEASURES
from mcn_jax.workdirs.files import of_kind, read_json, read_metrics, read_result

# Fields that do not define a setting: seeds repeat it, the others do not change results.
IGNORED = ("seed", *RESUMABLE_CHANGES)
# Paths: a setting contains whether they are set. It contains the paths themselves only where runs
# of one seed differ in them, as students of different teachers do.
PLACES = ("init_from", "loss.teacher", "data.wnids_file")
# Fields that the columns method, data and network show.
ALWAYS_SHOWN = (
    "data.name", "model.name", "model.widths", "model.depth", "model.blocks", "model.conv",
    "model.plane_signs", "binarize.enabled",
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
    """The content of a run's work directory.

    Attributes:
        workdir: path of the work directory.
        config: every field, as {"loss.theta": 1e-4, ...}.
        records: lines of metrics.jsonl, with at least one of an epoch.
        result: content of result.json; None if the run has not finished.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None

    @property
    def epochs_done(self) -> int:
        """The number of complete epochs."""
        return int(of_kind(self.records, "epoch")[-1]["epoch"]) + 1

    @functools.cached_property
    def setting(self) -> dict[str, Any]:
        """The fields that repetitions of a run share: the config without the seed."""
        kept = {name: value for name, value in self.config.items() if name not in IGNORED}
        kinds = {kept[f"model.{name}"] for name in ("conv", "stem_conv", "pointwise")}
        if not any(LAYERS[kind].advance for kind in kinds & LAYERS.keys()):
            kept["binarize.estimator"] = ""  # which only such layers read
        return kept | {name: bool(kept[name]) for name in PLACES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one setting, sorted by seed; at least one.

    Attributes:
        runs: the runs.
        places: the fields in `PLACES` whose path is part of the setting.
    """

    runs: tuple[Run, ...]
    places: tuple[str, ...] = ()

    @property
    def setting(self) -> dict[str, Any]:
        """The fields that all runs of the group share."""
        run = self.runs[0]
        return run.setting | {name: run.config[name] or False for name in self.places}

    @property
    def finished(self) -> list[Run]:
        """The runs that have finished."""
        return [run for run in self.runs if run.result is not None]

    @property
    def running(self) -> list[Run]:
        """The runs that have not finished."""
        return [run for run in self.runs if run.result is None]

    def results(self, name: str) -> list[Any]:
        """Returns a value of result.json, such as "final_test_accuracy", of each finished run."""
        return [run.result[name] for run in self.runs if run.result is not None]


def read_run(workdir: str | pathlib.Path) -> Run:
    """Reads a work directory, or a copy of its records, of this version or of an older one.

    Raises:
        InputError: if it is not a work directory, a file is damaged, or no epoch is complete yet.
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
    metrics = read_metrics(workdir / "metrics.jsonl")
    return _make_run(workdir, read_json(path), metrics, read_result(workdir))


def read_runs(path: str | pathlib.Path) -> list[Run]:
    """Reads a work directory, or a sweep file of many runs.

    Args:
        path: a work directory, or a .jsonl file with one line per run:
            {"name": ..., "config": of config.json, "result": of result.json, "metrics": [...]}.

    Returns:
        One run, or one per line; the workdir of a line's run is path / name.

    Raises:
        InputError: as `read_run`, or if the file has no lines, a line is not a run, or two lines
            have the same name.
    """
    path = pathlib.Path(path)
    if path.suffix != ".jsonl" or not path.is_file():
        return [read_run(path)]
    runs: dict[str, Run] = {}
    content = path.read_text(errors="backslashreplace")
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
            name, metrics = str(record["name"]), list(record["metrics"])
            config, result = record["config"], record["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}, is not a run ({error!r})") from error
        if name in runs:
            raise InputError(f"{path}, line {number}: an earlier line has the name {name!r}, too")
        runs[name] = _make_run(path / name, config, metrics, result)
    if not runs:
        raise InputError(f"{path} has no runs; wait for one, or leave it out")
    return list(runs.values())


def _make_run(
    workdir: pathlib.Path,
    record: Any,
    metrics: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
) -> Run:
    """Checks the contents of config.json, metrics.jsonl and result.json, and returns the run."""
    path = workdir / "config.json"
    try:
        config = flatten(from_saved_config(record["config"]))
        if not stores_files(config["data.name"]):  # then older and newer runs are alike
            defaults = flatten(Config())
            config |= {name: defaults[name] for name in OLDER_RUNS}
        if config["data.root"]:  # the digest identifies a folder's data, the name does not
            config["data.full_name"] = record["data"]["full_name"]
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} is damaged ({error}); leave {workdir} out") from error
    path = workdir / "metrics.jsonl"
    for number, line in enumerate(metrics, start=1):
        _check_fields(line, ("kind", "step"), f"{path}, line {number},")
        if line["kind"] == "epoch":
            _check_fields(line, EPOCH_FIELDS, f"{path}, line {number},")
    health = of_kind(metrics, "health")
    if len({_measures(line) for line in health}) > 1:
        raise InputError(f"{path} is damaged: not all of its health records have the same layers")
    if not of_kind(metrics, "epoch"):
        raise InputError(f"{workdir} has no complete epoch yet; wait for one, or leave it out")
    if result is not None:
        _check_fields(result, RESULT_FIELDS, f"{workdir / 'result.json'}")
    return Run(workdir=workdir, config=config, records=metrics, result=result)


def _measures(record: Mapping[str, Any]) -> frozenset[str]:
    """Returns the names in a health record that records of all versions have."""
    return frozenset(name for name in record if name.rpartition("/")[2] not in NEWER_MEASURES)


def _check_fields(record: Any, names: Iterable[str], place: str) -> None:
    """Checks that a record has these fields, and that all of them except "kind" are numbers."""
    for name in names:
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, str if name == "kind" else int | float):
            raise InputError(
                f"{place} is damaged: {name!r} is {'absent' if value is None else repr(value)};"
                " mend it, or leave the run out"
            )


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups runs that differ only in their seed, or also in the paths of `PLACES`.

    If runs of one seed differ in these paths, there is a group for each path. Groups with the same
    method, data set and network stand together, sorted by theta, lambda and centers. Otherwise the
    order of the runs is kept.

    Raises:
        InputError: if two runs are the same work directory, or have the same setting and seed.
    """
    by_workdir: dict[pathlib.Path, Run] = {}
    by_setting: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        first = by_workdir.setdefault(run.workdir.resolve(), run)
        if first is not run:
            raise InputError(f"{run.workdir} is the same as {first.workdir}; leave one out")
        by_setting.setdefault(tuple(sorted(run.setting.items())), []).append(run)
    telling = _telling_places(by_setting.values())
    groups = []
    for members in by_setting.values():
        parts = {(): members}
        if len({run.config["seed"] for run in members}) < len(members):
            parts = {}
            for run in members:
                parts.setdefault(tuple(run.config[name] for name in telling), []).append(run)
        for part in parts.values():
            part.sort(key=lambda run: run.config["seed"])
            for run, following in itertools.pairwise(part):
                if run.config["seed"] == following.config["seed"]:
                    raise InputError(
                        f"{run.workdir} and {following.workdir} have the same config and"
                        f" seed={run.config['seed']}; leave one out"
                    )
            shared = [name for name in telling if len({run.config[name] for run in part}) == 1]
            groups.append(Group(runs=tuple(part), places=tuple(shared)))
    kinds = list(dict.fromkeys(_shown(group.setting) for group in groups))
    return sorted(
        groups,
        key=lambda group: (
            kinds.index(_shown(group.setting)),
            *(group.setting[name] for name in SHORT_NAMES),
        ),
    )


def _telling_places(members_of_settings: Iterable[Sequence[Run]]) -> list[str]:
    """Returns the fields in `PLACES` that tell runs of one setting and seed apart."""
    pairs = [
        (run.config, other.config)
        for members in members_of_settings
        for run, other in itertools.combinations(members, 2)
        if run.config["seed"] == other.config["seed"]
    ]
    return [name for name in PLACES if any(one[name] != two[name] for one, two in pairs)]


def method(setting: Mapping[str, Any]) -> str:
    """Returns the name of a method: "MCN", "U-MCN", or the name of another layer.

    A pattern of planes follows, as in "MCN, hadamard". For networks of ordinary convolutions it is
    "WRN" or "CNN".
    """
    family, architecture = LAYERS.get(setting["model.conv"]), MODELS.get(setting["model.name"])
    if family is not None and family.methods is not None:
        options = (setting.get(f"model.{option}") for option in family.options_if_set)
        name = family.methods[0 if setting["binarize.enabled"] else 1]
        return ", ".join([name, *(str(option) for option in options if option)])
    if family is not None and architecture is not None and not family.quantizes:
        return architecture.title
    return str(setting["model.conv"])


def network(setting: Mapping[str, Any]) -> str:
    """Returns a name such as "simple_cnn 5-10-20-40" or "wide_resnet 20 layers 16-16-32-64"."""
    architecture = MODELS.get(setting["model.name"])
    shown = architecture.shown if architecture is not None else {}
    depths = [f"{text(setting[f'model.{field}'])} {unit}" for field, unit in shown.items()]
    return " ".join([str(setting["model.name"]), *depths, text(setting["model.widths"])])


def _shown(setting: Mapping[str, Any]) -> tuple[str, str, str]:
    return method(setting), str(setting["data.name"]), network(setting)


def differing_fields(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the fields that differ, except those that method, data and network show."""
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
    """Returns a name for each setting in a legend, as short as the settings allow.

    A name has the method, then the data set and the network if they differ. Settings that still
    have the same name also get the fields in which they differ.
    """
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
    """Returns text for the fields in which settings of the same name differ."""
    fields = differing_fields(alike)
    short = [name.rpartition(".")[2] for name in fields]
    words = []
    for field, last in zip(fields, short, strict=True):
        value = setting.get(field)
        if field == "loss.center_loss_weight":
            words.append(f"center loss, lambda {value:g}" if value else "no center loss")
        elif field == "init_from":
            words.append(f"fine-tuned{_from(value)}" if value else "from scratch")
        elif field == "loss.teacher":
            words.append(f"distilled{_from(value)}" if value else "without a teacher")
        else:
            name = SHORT_NAMES.get(field, last if short.count(last) == 1 else field)
            words.append(f"{name} {text(value)}")
    return words


def _from(place: Any) -> str:
    """Returns " from PATH" for a path, and "" for True."""
    return f" from {place}" if isinstance(place, str) else ""


def text(value: Any) -> str:
    """Returns a config value as the text of a table cell."""
    if isinstance(value, bool) or value is None or value == "":
        return {True: "yes", False: "no"}.get(value, "-")
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def sweep(groups: Iterable[Group], field: str) -> list[dict[str, Any]]:
    """Returns the points of a figure over one field, one record per finished run.

    Args:
        groups: of runs.
        field: such as "loss.theta".

    Returns:
        Records with "series", "value" and "accuracy" (0 to 1). Runs of a series differ only in this
        field and the seed. A series with a single value is left out.
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

"""Reads and writes a work directory's config.json, metrics.jsonl and result.json."""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from absl import logging

from mcn_jax import parallel
from mcn_jax.config import (
    RESUMABLE_CHANGES,
    Config,
    flatten,
    from_saved_config,
    older_fields,
    with_fields,
)
from mcn_jax.data.facts import stores_files, why_other
from mcn_jax.errors import InputError
from mcn_jax.ops import native

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
    "pillow", "tensorflow-datasets", "array-record", "grain",
)  # fmt: skip
PICTURES = ("curves.png", "health.png", "strides.png")  # drawn when a run has ended
Record = TypeVar("Record", bound=Mapping[str, Any])


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole, so a reader sees either the old text or the new text.

    The file is UTF-8. Names of files that are not UTF-8 are written with escapes.
    """
    write_bytes_atomically(path, text.encode(errors="backslashreplace"))


def write_bytes_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes bytes like `write_atomically`, and leaves nothing behind if writing fails."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def as_begun(workdir: pathlib.Path, config: Config) -> Config:
    """Returns the config of a run that resumes in a work directory, which may be new.

    A run of an older version lacks some fields. They take the values of that version unless this
    run sets them, so the same command resumes the run with the same images.
    """
    path = workdir / "config.json"
    saved = read_json(path).get("config") if path.is_file() else None
    if not isinstance(saved, dict):
        return config  # check_workdir reports what is wrong
    given, defaults = flatten(config), flatten(Config())
    fields = {n: v for n, v in older_fields(saved).items() if given[n] == defaults[n]}
    if fields and stores_files(config.data.name):
        logging.warning(
            "resuming an older run as it began, with %s",
            ", ".join(f"config.{name}={value}" for name, value in fields.items()),
        )
    return with_fields(config, fields)


def check_workdir(
    workdir: pathlib.Path,
    config: Config,
    data: dict[str, Any],
    earlier_name: str | None = None,
    may_change: Iterable[str] = (),
) -> Config | None:
    """Checks that a work directory is new or belongs to the same run; writes nothing.

    Args:
        workdir: the work directory, which may not exist yet.
        config: config of the run that is about to start or resume.
        data: description of its data set.
        earlier_name: the full name that an earlier version gave to the same data, if it differs.
        may_change: fields that may differ, besides those in `RESUMABLE_CHANGES`.

    Returns:
        The config of the run that wrote the directory; None if it is new.

    Raises:
        InputError: if a field differs from the run that wrote the directory, or a file is damaged
            or missing. The error names the field or the file.
    """
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a directory")
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"--workdir={workdir.absolute()} is not UTF-8, which checkpoints need; use another one"
        ) from error
    if not path.exists():
        left = ["checkpoints"] if any((workdir / "checkpoints").glob("*")) else []
        left += ["a result.json"] if (workdir / "result.json").exists() else []
        if left:
            raise InputError(
                f"{workdir} has {' and '.join(left)} and no config.json that describes their run;"
                " restore config.json, or use another --workdir"
            )
        return None
    record = read_json(path)
    try:
        before = from_saved_config(record["config"])
        data_before = {name: record["data"][name] for name in data}
        now = environment()
        # Earlier versions have no native kernel.
        environment_before = {name: ({"native_kernel": None} | record)[name] for name in now}
        environment_before["versions"] = dict(record["versions"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not fit this version ({error}); use another --workdir"
        ) from error
    fields_before = flatten(before)
    for name, value in flatten(config).items():
        was = fields_before[name]
        if name == "loss.teacher" and was and value:
            continue  # the run compares the weights, which may have been moved
        if name not in (*RESUMABLE_CHANGES, *may_change) and was != value:
            raise InputError(
                f"{workdir} was written with config.{name}={was!r}, this run has {value!r};"
                " use another --workdir, or the same config to resume"
            )
    for name, value in data.items():
        before_too = earlier_name if name == "full_name" and earlier_name else value
        if data_before[name] not in (value, before_too):
            why = why_other(data_before["full_name"]) if name == "full_name" else ""
            raise InputError(
                f"{workdir} was written with other data: {name} was {data_before[name]!r} and is"
                f" now {value!r}{why}; use another --workdir, or the same data to resume"
            )
    # A run that has ended is not resumed, unless it gets more epochs.
    if read_result(workdir) is None or before.num_epochs != config.num_epochs:
        _tell_changes(workdir, environment_before, now)
    return before


def _tell_changes(workdir: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warns of each package and each property of the machine that changed since a run began.

    Packages that the run did not record are left out.
    """
    pairs = [(name, before["versions"].get(name, v), v) for name, v in now["versions"].items()]
    pairs += [
        (name, before[name], now[name])
        for name in ("backend", "devices", "cpu_count", "native_kernel")
    ]
    for name, was, value in pairs:
        if was != value:
            logging.warning(
                "resuming %s with %s %s instead of %s: the result may differ in the last bits",
                workdir, name, value, was,
            )  # fmt: skip


def write_config(
    workdir: pathlib.Path,
    config: Config,
    data: dict[str, Any],
    source: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
) -> None:
    """Creates a work directory with its config.json.

    Args:
        workdir: the work directory, which may not exist yet.
        config: the run's config.
        data: description of its data set.
        source: description of the run whose filters it starts from; None for random filters.
        teacher: description of the run that it is distilled from; None without a teacher.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    record = {
        "config": dataclasses.asdict(config),
        "data": data,
        "init_from": source,
        "teacher": teacher,
        **environment(),
    }
    write_atomically(workdir / "config.json", json.dumps(record, indent=2) + "\n")


def reopen(workdir: pathlib.Path, num_epochs: int) -> None:
    """Gives an existing run another number of epochs, and removes what says that it has ended.

    result.json is removed before config.json changes. So a kill in between leaves a run that
    either number of epochs resumes.
    """
    for name in (*PICTURES, "result.json"):
        (workdir / name).unlink(missing_ok=True)
    record = read_json(workdir / "config.json")
    record["config"]["num_epochs"] = num_epochs
    write_atomically(workdir / "config.json", json.dumps(record, indent=2) + "\n")


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a directory, which is created if absent.

    The kernel holds the lock, so it ends with the process, however the process ends.

    Raises:
        InputError: if another process holds the lock, or the directory cannot be written. The error
            names the process or the reason.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        opened = (workdir / "lock").open("a+")
    except OSError as error:
        raise InputError(
            f"--workdir={workdir} cannot be written ({error.strerror}); make it writable, or use"
            " another --workdir"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"{workdir} is in use by {file.read().strip() or 'another process'}; wait until"
                " it ends, or use another --workdir"
            ) from error
        except OSError as error:  # the file system has no locks
            logging.warning("%s is not protected from a second process: %s", workdir, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        InputError: if it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); repair it, or use another work directory"
        ) from error
    return content


def environment() -> dict[str, Any]:
    """Returns what a run that repeats bit for bit must have in common with the first one."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "git_revision": git_revision(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "cpu_count": parallel.host_cores(),
        "native_kernel": _native_kernel(),
    }


def _native_kernel() -> str | None:
    """Returns the instruction set of the native kernel; None without the kernel."""
    is_there = jax.default_backend() == "cpu" and native.why_unavailable() is None
    return native.instruction_set() if is_there else None


def _version(package: str) -> str | None:
    """Returns the version of a package; None if it is absent, as TFDS is on some machines."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Returns the source tree's git revision, with "-dirty" if its files have changed.

    Changed records under results/ do not count. The environment variable MCN_JAX_REVISION, if it is
    set, names the revision of a copied tree. Otherwise it is None without a git repository. A
    warning says why git fails in a repository.

    Git refuses repositories of other users, because their settings can run programs. This project's
    own repository is accepted, as its code is already running.
    """
    if named := os.environ.get("MCN_JAX_REVISION"):
        return named
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)results/*.json*")
    except (OSError, subprocess.CalledProcessError) as error:
        if (root / ".git").exists():
            reason = str(getattr(error, "stderr", "")).strip() or str(error)
            logging.warning(
                "the git revision of %s is not recorded (%s); set MCN_JAX_REVISION to record it",
                root, reason.splitlines()[0],
            )  # fmt: skip
        return None
    return revision + ("-dirty" if changes else "")


def read_metrics(path: pathlib.Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Reads the records of a metrics.jsonl, up to `last_step` if it is given.

    An incomplete last line, which a kill may leave, is skipped.

    Raises:
        InputError: if a line is not a record. The error names the line.
    """
    records = []
    # Bytes that are not text become escapes that JSON does not know, so they are reported below.
    content = path.read_text(errors="backslashreplace") if path.exists() else ""
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError("it holds no JSON object")
            is_later = last_step is not None and record["step"] > last_step
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise InputError(
                f"{path}, line {number}, is damaged ({reason}); repair it, or use another work"
                " directory"
            ) from error
        if is_later:
            break
        records.append(record)
    return records


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """Returns the records of one kind, such as "epoch"."""
    return [record for record in records if record.get("kind") == kind]


def cut_metrics(path: pathlib.Path, last_step: int) -> list[dict[str, Any]]:
    """Removes the records after `last_step` from a metrics.jsonl, and returns the rest."""
    records = read_metrics(path, last_step)
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads the result.json of a run; None if the run has not ended."""
    path = workdir / "result.json"
    return read_json(path) if path.exists() else None

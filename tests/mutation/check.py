"""Checks that the tests notice the faults in faults.toml: `python tests/mutation/check.py`.

Makes one line at a time wrong in a copy of the tree. For every fault pytest runs the test files
that ought to notice it, until the first failure. A fault that no test notices survives. A test file
that fails, or is skipped, without a fault does not count.

Exit code: 0 if every fault is noticed, 1 if one survives, 2 if the check cannot be made.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import queue
import re
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from copies import WHOLE_SUITE_SECONDS, CheckError, Copy, Outcome, git, write_copy

FAULTS = pathlib.Path(__file__).with_name("faults.toml")
# A test may hang on a fault. It has this time, and this many times what it takes without a fault.
PATIENCE_SECONDS, PATIENCE_TIMES = 180, 6
ALL_TESTS = ("-m", "")  # slow ones, too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A wrong line; faults.toml explains the fields."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    slow: bool = False
    subtle: bool = False


def load_faults(names: Sequence[str]) -> dict[str, Fault]:
    """The faults of these names, or all."""
    try:
        faults = {
            name: Fault(**fields | {"tests": tuple(fields["tests"])})
            for name, fields in tomllib.loads(FAULTS.read_text()).items()
        }
    except (TypeError, KeyError, tomllib.TOMLDecodeError) as error:
        raise CheckError(f"{FAULTS} is not a list of faults: {error}") from error
    for name in names:
        if name not in faults:
            raise CheckError(f"{FAULTS} has no fault {name!r}")
    return {name: faults[name] for name in names} if names else faults


class Check:
    """The check of faults in one or several copies of a tree."""

    def __init__(self, copies: Sequence[Copy]):
        self._copies: queue.Queue[Copy] = queue.Queue()
        for copy in copies:
            self._copies.put(copy)
        self._without_fault: dict[tuple[str, bool], concurrent.futures.Future[Outcome]] = {}
        self._lock = threading.Lock()

    def by_named_files(self, name: str, fault: Fault) -> dict[str, Any]:
        """Whether the test files that a fault names notice it."""
        with self._copy() as copy:
            usable = {}
            for file in filter(copy.has, fault.tests):
                outcome = self._sound(copy, file, fault.slow)
                if outcome.state == "passed":
                    usable[file] = outcome.seconds
            if not usable:
                reason = f"none of {', '.join(fault.tests)} passes without a fault"
                return _record(fault, Outcome(state="skipped", reason=reason, seconds=0.0), "")
            limit = PATIENCE_SECONDS + PATIENCE_TIMES * sum(usable.values())
            options = ALL_TESTS if fault.slow else ()
            with _seeded(copy, name, fault):
                outcome = copy.pytest(*usable, *options, limit=limit)
        return _record(fault, outcome, "named files")

    def by_whole_suite(self, name: str, fault: Fault) -> dict[str, Any]:
        """Whether any other fast test notices it."""
        ignored, seconds = set(fault.tests), 0.0
        with self._copy() as copy:
            while True:
                options = [f"--ignore={file}" for file in sorted(ignored)]
                with _seeded(copy, name, fault):
                    outcome = copy.pytest("tests", *options, limit=WHOLE_SUITE_SECONDS)
                seconds = round(seconds + outcome.seconds, 1)
                file = outcome.failed.partition("::")[0]
                if not copy.has(file) or self._sound(copy, file, False).state == "passed":
                    outcome = dataclasses.replace(outcome, seconds=seconds)
                    return _record(fault, outcome, "whole suite")
                ignored.add(file)

    @contextlib.contextmanager
    def _copy(self) -> Iterator[Copy]:
        copy = self._copies.get()
        try:
            yield copy
        finally:
            self._copies.put(copy)

    def _sound(self, copy: Copy, file: str, slow: bool) -> Outcome:
        """How a test file does without a fault, found out once."""
        with self._lock:
            is_known = (file, slow) in self._without_fault
            future = self._without_fault.setdefault((file, slow), concurrent.futures.Future())
        if not is_known:
            try:
                options = ALL_TESTS if slow else ()
                outcome = copy.pytest(file, *options, limit=WHOLE_SUITE_SECONDS)
            except BaseException as error:
                future.set_exception(error)
                raise
            if outcome.state != "passed":
                print(f"without a fault: {file} {outcome.state} {outcome.reason}", flush=True)
            future.set_result(outcome)
        return future.result()


@contextlib.contextmanager
def _seeded(copy: Copy, name: str, fault: Fault) -> Iterator[None]:
    try:
        with copy.changed(fault.file, fault.old, fault.new):
            yield
    except CheckError as error:
        raise CheckError(f"fault {name}: {error}") from error


def _record(fault: Fault, outcome: Outcome, by: str) -> dict[str, Any]:
    """What is written of a fault."""
    return {
        **dataclasses.asdict(fault),
        "caught_by": by if outcome.state == "failed" else None,
        "first_failing_test": outcome.failed or None,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
    }


def _line(name: str, record: dict[str, Any]) -> str:
    said = f"{record['first_failing_test'] or 'SURVIVES'}: {record['reason']}"
    return f"{record['seconds']:7.1f} s  {name:44} {said}"


def survivors(result: dict[str, Any]) -> list[str]:
    """The names of the faults that nothing noticed."""
    return [name for name, record in result["faults"].items() if not record["caught_by"]]


def machine() -> dict[str, str]:
    """Where the check is made."""
    info = pathlib.Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return {
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "cpu": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
    }


def check_all(options: argparse.Namespace, directory: pathlib.Path) -> dict[str, Any]:
    """Checks the faults that are asked for, in copies below a directory.

    Returns:
        "revision" with "-dirty" where the working tree has changes, "python", "jax", "cpu" and
        "faults", a record each. It is also written to --out after every fault.
    """
    revision = options.revision and git("rev-parse", f"{options.revision}^{{commit}}").strip()
    is_dirty = not revision and bool(git("status", "--porcelain"))
    described = (revision or git("rev-parse", "HEAD").strip()) + ("-dirty" if is_dirty else "")
    faults = load_faults(options.faults)
    result: dict[str, Any] = {"revision": described, **machine(), "faults": {}}
    copies = []
    for number in range(options.jobs):
        write_copy(revision, directory / f"copy_{number}")
        copies.append(Copy(directory / f"copy_{number}", directory / "jax_cache"))
    check = Check(copies)

    def run(stage: Callable[[str, Fault], dict[str, Any]], names: Sequence[str]) -> None:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = {pool.submit(stage, name, faults[name]): name for name in names}
            try:
                for future in concurrent.futures.as_completed(futures):
                    name = futures[future]
                    result["faults"][name] = future.result()
                    print(_line(name, result["faults"][name]), flush=True)
                    if options.out:
                        options.out.write_text(json.dumps(result, indent=2) + "\n")
            finally:
                pool.shutdown(cancel_futures=True)

    run(check.by_named_files, list(faults))
    if options.whole:
        run(check.by_whole_suite, survivors(result))
    return result


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--revision", metavar="REV", help="check this revision instead of the working tree")
    add("--faults", nargs="+", default=[], metavar="NAME", help="check these faults only")
    add("--whole", action="store_true", help="try the whole fast suite on those that survive")
    add("--jobs", type=int, default=1, metavar="N", help="faults at once, each in its own copy")
    add("--out", type=pathlib.Path, metavar="FILE", help="a JSON file that gets the results")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        if options.jobs < 1:
            raise CheckError(f"--jobs={options.jobs} must be at least 1")
        with tempfile.TemporaryDirectory(prefix="mutation_") as directory:
            result = check_all(options, pathlib.Path(directory).resolve())
    except (CheckError, OSError) as error:
        print(f"check: error: {error}", file=sys.stderr)
        return 2
    left, faults = survivors(result), len(result["faults"])
    print(f"\n{faults - len(left)} of {faults} faults are noticed at {result['revision']}")
    for name in left:
        print(f"  {name} survives {result['faults'][name]['reason']}".rstrip())
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

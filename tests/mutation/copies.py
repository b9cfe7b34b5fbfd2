"""Copies of the tree, a fault in one, and pytest there."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence

REPOSITORY = pathlib.Path(__file__).parents[2]
PLUGINS = pathlib.Path(__file__).parent
WHOLE_SUITE_SECONDS = 3600
PASSED, WRONG_USAGE, NO_TESTS = 0, 4, 5  # exit codes of pytest


class CheckError(Exception):
    """The check cannot be made; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of pytest.

    state: "passed", "failed", or "skipped" where no test was run.
    failed: the first test or file that failed, or "".
    reason: of the failure, one line.
    """

    state: str
    failed: str = ""
    reason: str = ""
    seconds: float


def git(*arguments: str) -> str:
    """What git prints about the repository."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"git {arguments[0]}: {(done.stderr.strip() or 'failed').splitlines()[0]}")
    return done.stdout


def write_copy(revision: str | None, directory: pathlib.Path) -> None:
    """Copies a revision; None copies the working tree without what git ignores."""
    directory.mkdir()
    if revision is not None:
        tar = directory.with_suffix(".tar")
        git("archive", f"--output={tar}", revision)
        with tarfile.open(tar) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
            archive.extractall(directory)
        tar.unlink()
        return
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        source, target = REPOSITORY / name, directory / name
        if source.is_file():  # git lists deleted files, too
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


class Copy:
    """A copy of the tree whose package is the one that its tests import."""

    def __init__(self, directory: pathlib.Path, cache: pathlib.Path):
        """Args:
        directory: from `write_copy`.
        cache: directory of compiled programs, which copies may share.
        """
        self.directory = directory
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(directory), str(PLUGINS))),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "COLUMNS": "200",
        }
        command = ["-c", "import mcn_jax; print(mcn_jax.__file__)"]
        imported = self._python(command, WHOLE_SUITE_SECONDS)[1].strip()
        if not pathlib.Path(imported).is_relative_to(directory):
            raise CheckError(f"Python imports mcn_jax from {imported}, not from {directory}")
        # git does not have the native kernel, without which its tests are skipped.
        if self.has("mcn_jax/ops/native_build.py"):
            build = "import pathlib; from mcn_jax.ops import native_build;"
            build += " native_build.build(pathlib.Path('mcn_jax/ops') / native_build.LIBRARY)"
            code, output = self._python(["-c", build], WHOLE_SUITE_SECONDS)
            if code:
                last = (output.strip().splitlines() or [f"exit code {code}"])[-1]
                raise CheckError(f"the native kernel was not built: {last}")

    def has(self, file: str) -> bool:
        """Whether the tree has a file of this path."""
        return (self.directory / file).is_file()

    @contextlib.contextmanager
    def changed(self, file: str, old: str, new: str) -> Iterator[None]:
        """Has new text in place of the old one, for as long as the block lasts."""
        path = self.directory / file
        text = path.read_text() if self.has(file) else ""
        if (found := text.count(old)) != 1:
            raise CheckError(f"{file} has {old!r} {found} times instead of once")
        try:
            _write_source(path, text.replace(old, new))
            yield
        finally:
            _write_source(path, text)

    def pytest(self, *arguments: str, limit: float) -> Outcome:
        """Runs tests up to the first failure, or for `limit` seconds, which is a failure."""
        base = self.directory.with_name(f"{self.directory.name}_pytest")
        options = (
            "-x", "-q", "-rfE", "--tb=no", f"--basetemp={base}",
            "-p", "no:cacheprovider", "-p", "unshrunk",
        )  # fmt: skip
        start = time.monotonic()
        code, output = self._python(["-m", "pytest", *options, *arguments], limit)
        seconds = round(time.monotonic() - start, 1)
        if code in (PASSED, NO_TESTS):
            passed = re.search(r"\b\d+ passed", output)
            return Outcome(state="passed" if passed else "skipped", seconds=seconds)
        if code in (-signal.SIGKILL, -signal.SIGTERM):  # for want of memory, or by somebody
            return Outcome(state="skipped", reason="pytest was killed", seconds=seconds)
        if code == WRONG_USAGE:
            last = (output.strip().splitlines() or ["nothing"])[-1]
            raise CheckError(f"pytest {' '.join(arguments)}: {last}")
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", output, re.MULTILINE)
        ends = "does not end" if code is None else f"ends with code {code}"
        failed, reason = found.groups() if found else (arguments[0], ends)
        return Outcome(state="failed", failed=failed, reason=reason or "", seconds=seconds)

    def _python(self, arguments: Sequence[str], limit: float) -> tuple[int | None, str]:
        """Exit code, None beyond the limit, and output of Python in the copy."""
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=self.directory, env=self._environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            with contextlib.suppress(ProcessLookupError):  # processes that the tests left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _write_source(path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    # Python knows bytecode by size and time in whole seconds, which two texts may share.
    pathlib.Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

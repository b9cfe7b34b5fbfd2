"""Trains and evaluates: `python -m mcn_jax.main --config=configs/digits.py`.

The same command resumes an interrupted run. Any field of the config can be set on the command
line, such as --config.loss.theta=1e-3; mcn_jax/config.py lists all fields.
"""

import os
import pathlib
import re
import sys
import traceback
from typing import NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from mcn_jax import parallel
from mcn_jax.command_line import error_line
from mcn_jax.config import Config, check_field, from_config_dict, load_config_file
from mcn_jax.errors import InputError, first_line
from mcn_jax.memory import memory_fault
from mcn_jax.paths import user_path
from mcn_jax.reports.run_pictures import draw_run
from mcn_jax.terminal import log_libraries, run_command
from mcn_jax.training import hosts, metrics
from mcn_jax.training.checks import validate
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.training.stopping import EXIT_CODE, Stopped


class _ConfigFiles(flags.ArgumentParser):
    """Loads the file of --config; its path may contain colons, and errors are one line."""

    def parse(self, path: str) -> ml_collections.ConfigDict:
        return load_config_file(user_path(path)).lock()


_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file in configs/. Set its fields by --config.FIELD=VALUE."
)
flags.FLAGS["config"].parser = _ConfigFiles()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for the run's files; default: runs/NAME for configs/NAME.py."
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Write traces of a few training steps to WORKDIR/profile."
)


_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0 in a run of several processes."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_SEVERAL = flags.DEFINE_bool(
    "several_hosts", False, "Find the other processes through the cluster, as on TPU pods."
)
_PROCESS = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def _check_arguments(arguments: list[str]) -> None:
    """Raises InputError for mistakes that absl and ml_collections report badly or not at all."""
    seen = set()
    for argument in arguments:
        if flag := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            check_field(flag[1])
            if flag[1] in seen:  # ml_collections would join the values of a tuple
                raise InputError(f"--config.{flag[1]} is given twice")
            seen.add(flag[1])


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        _check_arguments(argv[1:])
        return flags.FLAGS(argv)
    except InputError as error:
        sys.exit(error_line("main", error))
    except flags.Error as error:
        cause = error.__context__
        message = str(cause if isinstance(cause, InputError) else error)
        sys.exit(error_line("main", " ".join(message.split("\n"))))


def _load_config() -> tuple[Config, pathlib.Path]:
    """Returns the config of this run and its work directory."""
    if _CONFIG.value is None:
        raise InputError("no config given; pass one, such as --config=configs/digits.py")
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    config = from_config_dict(_CONFIG.value)
    return config, user_path(_WORKDIR.value or f"runs/{name}")


def _fail(message: str) -> NoReturn:
    print(error_line("main", message), file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(1)  # an ordinary exit and the other processes would wait for each other
    sys.exit(1)


def _draw(workdir: pathlib.Path) -> None:
    try:
        draw_run(workdir)
    except Exception as error:  # whatever it is, the run has its result
        logging.warning(
            "the pictures of %s are not drawn: %s; the same command draws them",
            workdir, first_line(error),
        )  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs one training; if it does not finish, exits with one line and a non-zero code."""
    try:
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]!r}; flags begin with --")
        config, workdir = _load_config()
        log_libraries(workdir / "libraries.log")
        validate(config, is_new=not (workdir / "config.json").exists())
        hosts.initialize(
            _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, detect=_SEVERAL.value
        )
        jax.config.update("jax_enable_x64", "float64" in (config.dtype, config.param_dtype))
        result = train_and_evaluate(config, workdir, profile=_PROFILE.value)
        if parallel.is_primary():
            metrics.print_result(result, workdir)
            _draw(workdir)
    except Stopped as stopped:
        print(f"mcn_jax.main: {stopped}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except (InputError, FloatingPointError, OSError) as error:
        _fail(str(error))
    except SystemExit:
        raise
    except BaseException as error:
        if fault := memory_fault(error):
            _fail(
                f"{fault}; free some and run the same command again, which resumes, or start a run"
                f" with a config.batch_size below {config.batch_size}"
            )
        if not jax.distributed.is_initialized():
            if isinstance(error, Exception) and (fault := parallel.device_fault(error)):
                _fail(fault)
            raise
        if parallel.peer_is_lost(error):
            _fail(
                f"process {jax.process_index()} ends because a step failed, as happens when"
                f" another process is lost ({first_line(error)}); the same commands resume from the"
                " last checkpoint"
            )
        traceback.print_exc()
        _fail(f"process {jax.process_index()} ends with the {type(error).__name__} above")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    run_command("main", lambda: app.run(main, flags_parser=_parse_flags), reader_matters=False)

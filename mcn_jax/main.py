"""Trains and evaluates: `python -m mcn_jax.main --config=configs/digits.py`.

The same command resumes a run that was interrupted. Any field of the config can be set on the
command line, such as --config.loss.theta=1e-3; mcn_jax/config.py lists them all.
"""

import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from mcn_jax import metrics
from mcn_jax.config import Config, check_field, from_config_dict, validate
from mcn_jax.errors import InputError
from mcn_jax.train import train_and_evaluate

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file in configs/. Its fields are set by --config.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run's files go; default: runs/ and the name of the config file."
)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        for argument in argv[1:]:
            name, _, value = argument.partition("=")
            if name.startswith("--config."):
                check_field(name.removeprefix("--config."))
            elif name == "--config" and value and not pathlib.Path(value).is_file():
                raise InputError(f"config file {value} does not exist; pass one of configs/*.py")
        return flags.FLAGS(argv)
    except (InputError, flags.Error) as error:
        sys.exit(f"mcn_jax: error: {error}")
    except AttributeError as error:
        # What a locked ConfigDict answers to a file that sets a field there is not.
        sys.exit(f"mcn_jax: error: config file: {' '.join(str(error).split())}")


def _load_config() -> tuple[Config, pathlib.Path]:
    """The config of this run and its work directory."""
    if _CONFIG.value is None:
        raise InputError("no config given; pass one, such as --config=configs/digits.py")
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    config = from_config_dict(_CONFIG.value)
    return config, pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / name)


def main(argv: list[str]) -> None:
    """Runs one training; returns normally or exits with one line and a non-zero code."""
    try:
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]!r}; flags begin with --")
        config, workdir = _load_config()
        validate(config)
        jax.config.update("jax_enable_x64", "float64" in (config.dtype, config.param_dtype))
        result = train_and_evaluate(config, workdir)
    except (InputError, FloatingPointError) as error:
        sys.exit(f"mcn_jax: error: {error}")
    metrics.print_result(result, workdir)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=_parse_flags)

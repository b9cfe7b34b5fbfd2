"""Checks whether an existing run can get another number of epochs: `--config.num_epochs=N`."""

import pathlib
import shlex

from mcn_jax.config import Config, LossConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import convolution_kinds
from mcn_jax.training.optim import OPEN_ENDED
from mcn_jax.training.phases import quantizes
from mcn_jax.workdirs.checkpoint import saved_steps
from mcn_jax.workdirs.files import read_result
from mcn_jax.workdirs.trained import saved_epochs


def check_num_epochs(
    workdir: pathlib.Path, before: Config, config: Config, steps_per_epoch: int
) -> None:
    """Checks that a run can continue to another number of epochs; writes nothing.

    It can if its learning rates and layers do not depend on that number, and its network does not
    change after the last epoch. It then ends with the same
    bits as a run that had the new number from the start.

    Args:
        workdir: work directory of the run, which may have ended.
        before: config that the run has had so far.
        config: the same config with another `num_epochs`.
        steps_per_epoch: training steps per epoch.

    Raises:
        InputError: if the schedule or the layers depend on `num_epochs`, the network changes after
            the last epoch, the run has already
            trained more epochs, or an ended run lacks its last epoch. The error names the remedy.
    """
    changed = (
        f"{workdir} was written with config.num_epochs={before.num_epochs}, this run has"
        f" {config.num_epochs}"
    )
    schedule = config.optimizer.schedule
    more = config.num_epochs - before.num_epochs
    if schedule not in OPEN_ENDED and more < 0:
        raise InputError(f"{changed}; use another --workdir, or the same config to resume")
    if schedule not in OPEN_ENDED:
        binary_at_once = " --config.binarize.start_epoch=0" if quantizes(config) else ""
        raise InputError(
            f"{changed}, which would change the rates of its"
            f" config.optimizer.schedule={schedule!r}; when it has ended, start another run from"
            f" its filters: --workdir=OTHER --config.init_from={shlex.quote(str(workdir))}"
            f" --config.num_epochs={more}{binary_at_once}; or train again in another --workdir with"
            f" --config.optimizer.schedule={' or '.join(OPEN_ENDED)}, which can be continued"
        )
    if config.loss.theta_schedule != LossConfig.theta_schedule and quantizes(config):
        raise InputError(
            f"{changed}, which would change the weights of its"
            f" config.loss.theta_schedule={config.loss.theta_schedule!r}; train again in another"
            " --workdir"
        )
    for field, value in (
        ("optimizer.average_epochs", before.optimizer.average_epochs),
        ("batch_norm_steps", before.batch_norm_steps),
    ):
        if value:
            raise InputError(
                f"{changed}, but with config.{field}={value} its network has other weights or"
                " statistics after the last epoch; train again in another --workdir"
            )
    for field, name in convolution_kinds(config.model).items():
        family = LAYERS[name]
        if family.advance is not None and family.advances(config) and quantizes(config):
            raise InputError(
                f"{changed}, which would change the layers of config.model.{field}={name!r}: they"
                " depend on the share of the training that is done; train again in another"
                " --workdir"
            )
    last_step = max(saved_steps(workdir / "checkpoints"), default=0)
    begun = -(-last_step // steps_per_epoch)
    if config.num_epochs < begun:
        raise InputError(
            f"{changed}, but its last checkpoint lies in epoch {begun}; use"
            f" --config.num_epochs={begun} or more, or another --workdir"
        )
    has_ended = read_result(workdir) is not None
    if has_ended and before.num_epochs * steps_per_epoch not in saved_epochs(workdir):
        raise InputError(
            f"{changed}, but the checkpoint of its last epoch or its record in metrics.jsonl is"
            f" gone; restore both to continue, or use another --workdir"
        )

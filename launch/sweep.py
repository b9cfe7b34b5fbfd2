"""Sweeps over fields of a config with Ray Tune: grids, random search and ASHA.

    python launch/sweep.py --config=configs/figure5_cpu.py --out=runs/figure5 \\
        --grid loss.theta=0,1e-5,1e-4,1e-3,1e-2 --seeds=0,1,2 -- --config.data.archive_dir=DIR

Every trial is a separate process, `python -m mcn_jax.main` with the work directory OUT/NAME. Flags
after `--` are passed to all trials. A trial that is killed resumes from its checkpoint. A trial
that reports an error is not restarted; the same sweep command tries it again. The same command also
resumes an interrupted sweep; --asha then compares only the remaining trials.

At the end OUT holds sweep.csv and the report of all runs with its figures. The command of the best
setting is printed: the setting with the highest accuracy in the last epoch, averaged over seeds.
This accuracy is on the test split, unless --config.data.test_split names another split.

A second stage tunes another field, such as lambda after theta. Each of its trials starts from the
checkpoint of the first stage's best setting with the same seed:

    ... --then_config=configs/figure5_lambda_cpu.py \\
        --then_grid loss.center_loss_weight=1e-4,1e-3,1e-2,1e-1
"""

import argparse
import csv
import glob
import itertools
import json
import os
import pathlib
import pickletools
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the whole sweep, not only one stage
try:
    import ray
    from ray import tune
except ModuleNotFoundError as error:
    sys.exit(
        f"sweep: error: a sweep needs the package {error.name}; run python -m pip install -r"
        " launch/requirements.txt"
    )
from search_space import settings
from trial import METRIC, RESTARTS, NoRestart, Training, describe

from mcn_jax import report
from mcn_jax.command_line import os_error_text
from mcn_jax.config import load_config_file
from mcn_jax.errors import InputError
from mcn_jax.escapes import printable
from mcn_jax.paths import user_path
from mcn_jax.training.stopping import EXIT_CODE
from mcn_jax.workdirs.files import write_atomically


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, help="a file in configs/")
    add(
        "--out",
        required=True,
        help="a new directory, or the directory of a sweep to resume",
    )
    add(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=A,B,...",
        help="try every value, combined with every value of the other grids",
    )
    add(
        "--random",
        action="append",
        default=[],
        metavar="FIELD=LOW:HIGH",
        help="draw values: log-uniform, or uniform if LOW is 0",
    )
    add("--samples", type=int, default=1, help="number of draws of --random")
    add("--seeds", default="0", help="seeds of every setting, such as 0,1,2")
    add(
        "--asha",
        action="store_true",
        help="stop trials early if they fall behind others",
    )
    add("--grace_epochs", type=int, default=1, help="for --asha: epochs that every trial runs")
    add("--then_config", help="the config of a second stage")
    add(
        "--then_grid",
        action="append",
        default=[],
        metavar="FIELD=A,B,...",
        help="grid of the second stage",
    )
    add("--cpus_per_trial", type=float, default=1)
    add(
        "--gpus_per_trial",
        type=float,
        help="default: 1 if Ray finds a GPU, else 0; a trial sees only its own GPUs",
    )
    add(
        "--ray_address",
        help="address of a running Ray cluster, or auto; its machines need this checkout at the"
        " same path; default: run on this machine",
    )
    add("flags", nargs="*", help="flags of all trials, after --")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or resumes a sweep; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        _check(options)
        return _sweep(options)
    except InputError as error:
        print(f"sweep: error: {printable(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"sweep: error: {printable(os_error_text(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sweep: stopped; the same command resumes", file=sys.stderr)
        return EXIT_CODE


def _check(options: argparse.Namespace) -> None:
    for name in ("out", "config", "then_config"):
        if getattr(options, name) is not None:
            setattr(options, name, user_path(getattr(options, name)).absolute())
    if glob.escape(str(options.out)) != str(options.out):
        raise InputError(
            f"--out={options.out} has a character that Ray Tune takes for a pattern; use a path"
            " without * ? ["
        )
    for path in filter(None, (options.config, options.then_config)):
        load_config_file(path)
    if bool(options.then_config) != bool(options.then_grid):
        raise InputError("--then_config and --then_grid belong together; give both or neither")
    seeds = options.seeds.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise InputError(f"--seeds={options.seeds} is not of the form 0,1,2, each once")
    if options.asha and len(seeds) > 1:
        raise InputError(
            "--asha compares single trials, so --seeds must name one seed; run the best setting"
            " with the other seeds afterwards"
        )
    if options.grace_epochs < 1:
        raise InputError(f"--grace_epochs={options.grace_epochs} must be at least 1")
    settings(options.grid, options.random, options.samples)
    settings(options.then_grid, [], 1)


def _sweep(options: argparse.Namespace) -> int:
    out = options.out
    record = {"arguments": {k: v for k, v in vars(options).items() if k != "ray_address"}}
    sweep_file = out / "sweep.json"
    written = json.dumps(record, indent=2, default=str) + "\n"
    if sweep_file.exists() and sweep_file.read_text() != written:
        raise InputError(f"{out} holds another sweep, see {sweep_file}; use another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(sweep_file, written)
    try:
        # Without an address Ray would join any cluster that it finds.
        ray.init(options.ray_address or "local", include_dashboard=False, log_to_driver=False)
    except ConnectionError as error:
        raise InputError(
            f"--ray_address={options.ray_address}: {error}; without it, the sweep runs on this"
            " machine"
        ) from error
    options.gpus_per_trial = gpus_per_trial(options.gpus_per_trial, ray.cluster_resources())
    seeds = [int(seed) for seed in options.seeds.split(",")]
    common = {"out": str(out), "flags": options.flags, "cwd": os.getcwd()}
    first = common | {"stage": "", "config": str(options.config), "starts": {}}
    points = settings(options.grid, options.random, options.samples)
    trials = _stage("first", first, points, seeds, options)
    write_csv(out / "sweep.csv", trials)
    stages = [trials]
    if options.then_config:
        best = best_setting(trials)
        starts = {str(t["seed"]): t["workdir"] for t in trials if t["setting"] == best}
        then_file = out / "then.json"
        written = json.dumps({"setting": best, "starts": starts}, indent=2) + "\n"
        if then_file.exists() and then_file.read_text() != written:
            raise InputError(
                f"the best of the first stage is now {best}, but the second stage began from the"
                f" setting in {then_file}; remove {out}/then* and {out}/ray/then to start it again"
            )
        write_atomically(then_file, written)
        second = common | {
            "stage": "then_", "config": str(options.then_config), "starts": starts,
        }  # fmt: skip
        points = settings(options.then_grid, [], 1)
        stages.append(_stage("then", second, points, seeds, options))
    ray.shutdown()
    everything = [trial for stage in stages for trial in stage]
    write_csv(out / "sweep.csv", everything)
    ended = [trial["workdir"] for trial in everything if trial["accuracy"] is not None]
    if ended:
        report.main([*ended, "--out", str(out / "report")])
    for number, trials in enumerate(stages, start=1):
        best = best_setting(trials)
        chosen = next(trial for trial in trials if trial["setting"] == best)
        stage = f" of stage {number}" if len(stages) > 1 else ""
        print(f"best{stage}: {best or 'the config as it is'}\n  {shlex.join(chosen['command'])}")
    lost = [trial["workdir"] for trial in everything if trial["state"] == "failed"]
    for workdir in lost:
        print(
            f"sweep: error: {workdir} failed; see {workdir}.log; the same command tries it again",
            file=sys.stderr,
        )
    return 1 if lost else 0


def gpus_per_trial(asked: float | None, resources: Mapping[str, float]) -> float:
    """Returns --gpus_per_trial, or by default one GPU if the cluster has any."""
    if asked is None:
        return 1 if resources.get("GPU") else 0
    return asked


def _stage(
    name: str,
    common: dict[str, Any],
    points: list[dict[str, str]],
    seeds: list[int],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Runs all trials of a stage to their end; returns what is known about each."""
    storage = options.out / "ray"
    space = common | {"fields": tune.grid_search(points), "seed": tune.grid_search(seeds)}
    resources = {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial}
    trainable = tune.with_resources(Training, resources)
    if restorable(storage / name):
        tuner = tune.Tuner.restore(
            str(storage / name), trainable, param_space=space, restart_errored=True
        )
    else:
        if (storage / name).exists():
            asides = (storage / f"{name}_damaged_{number}" for number in itertools.count(1))
            aside = next(path for path in asides if not path.exists())
            (storage / name).rename(aside)
            print(
                f"sweep: Ray Tune's record in {storage / name} is incomplete and was renamed to"
                f" {aside.name}; the trials resume from their work directories",
                file=sys.stderr,
            )
        scheduler = None
        if options.asha:
            # Trials end by themselves, so max_t must never stop them.
            scheduler = tune.schedulers.ASHAScheduler(
                time_attr="epoch", grace_period=options.grace_epochs,
                max_t=10**9, stop_last_trials=False,
            )  # fmt: skip
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(metric=METRIC, mode="max", scheduler=scheduler),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                callbacks=[NoRestart()],
                verbose=1,
            ),
        )
    trials = [describe(result.config, failed=result.error is not None) for result in tuner.fit()]
    return sorted(trials, key=lambda trial: (points.index(trial["fields"]), trial["seed"]))


def restorable(directory: pathlib.Path) -> bool:
    """Returns whether Tune's last record of its trials is complete.

    It is not if Tune's driver was killed while writing it.
    """
    name = max((path.name for path in directory.glob("experiment_state-*.json")), default="")
    try:
        json.loads((directory / name).read_text())
        # A pickle file with the same time stamp holds the points that have no trial yet.
        points = name.replace("experiment_state", "basic-variant-state")
        for _ in pickletools.genops((directory / points).read_bytes()):
            pass
    except (OSError, ValueError):
        return False
    return True


def best_setting(trials: list[dict[str, Any]]) -> str:
    """Returns the setting with the highest mean accuracy over its seeds.

    Only settings whose seeds have all ended count.

    Raises:
        InputError: if there is no such setting.
    """
    means = {}
    ordered = sorted(trials, key=lambda trial: trial["setting"])
    for setting, its in itertools.groupby(ordered, key=lambda trial: trial["setting"]):
        accuracies = [trial["accuracy"] for trial in its]
        if None not in accuracies:
            means[setting] = statistics.fmean(accuracies)
    if not means:
        raise InputError(
            "no setting has ended with all its seeds; see the logs of the trials; the same command"
            " tries failed trials again"
        )
    return max(means, key=lambda setting: means[setting])


def write_csv(path: pathlib.Path, trials: list[dict[str, Any]]) -> None:
    """Writes one row per trial: its fields, seed, state, accuracy and work directory."""
    names = list(dict.fromkeys(name for trial in trials for name in trial["fields"]))
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "seed", "state", "final_test_accuracy", "workdir"])
        for trial in trials:
            cells = [trial["fields"].get(name, "") for name in names]
            writer.writerow(
                [*cells, trial["seed"], trial["state"], trial["accuracy"], trial["workdir"]]
            )
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())

"""The records of finished runs and measurements, and the README's tables made from them.

    python results/records.py add WORKDIR NAME   copies a run's records to results/NAME; --bare
                                                 without figures
    python results/records.py table              prints the table of results
    python results/records.py write              puts this and the benchmarks' into README.md

A copied config.json has the default data directories and the bare name of the run that it started
from: where these lay is no part of a result.
"""

import argparse
import json
import pathlib
import shutil
import statistics

from mcn_jax import figures, runs
from mcn_jax.config import DataConfig
from mcn_jax.runs import group_runs, read_run
from mcn_jax.workdir import read_metrics

RESULTS = pathlib.Path(__file__).parent
README = RESULTS.parent / "README.md"

# (data and network, method, accuracy in the paper, names under results/)
ROWS = (
    ("digits, 5-10-20-40 maps", "MCN", "", tuple(f"digits_mcn_seed{s}" for s in range(3))),
    ("", "U-MCN", "", tuple(f"digits_umcn_seed{s}" for s in range(3))),
    ("", "CNN", "", tuple(f"digits_cnn_seed{s}" for s in range(3))),
    ("MNIST, 5-10-20-40 maps, shifts", "MCN", "", ("mnist_cpu_mcn",)),
    ("", "U-MCN", "", ("mnist_cpu_umcn",)),
    ("MNIST at 28x28, 5 epochs", "MCN", "", ("mnist_28_mcn",)),
    ("MNIST, 20-40-80-160 maps", "MCN", "99.52", ()),
    ("CIFAR-10, 20 layers, 4-4-8-16 maps, 12 epochs", "MCN", "", ("cifar10_cpu_mcn",)),
    ("", "U-MCN", "", ("cifar10_cpu_umcn",)),
    ("", "WRN", "", ("cifar10_cpu_wrn",)),
    ("CIFAR-100, 20 layers, 4-4-8-16 maps, 8 epochs", "MCN", "", ("cifar100_cpu_mcn",)),
    ("", "U-MCN", "", ("cifar100_cpu_umcn",)),
    ("CIFAR-10, 20 layers, 16-16-32-64 maps", "MCN", "92.08 (book)", ()),
    ("", "U-MCN", "93.69 (book)", ()),
    ("CIFAR-10, 34 layers, 64-64-128-256 maps", "MCN", "95.39", ()),
    ("", "U-MCN", "95.75", ()),
)


def add(workdir: pathlib.Path, name: str, *, draws: bool) -> None:
    """Copies the records of one finished run, and draws its curves and its filters' health unless
    `draws` is False."""
    if not (workdir / "result.json").exists():
        raise SystemExit(f"{workdir} has no result.json: its run has not ended")
    target = RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.jsonl", "result.json"):
        shutil.copy(workdir / file, target / file)
    record = json.loads((workdir / "config.json").read_text())
    default = DataConfig()
    places = {name: getattr(default, name) for name in ("archive_dir", "data_dir", "root")}
    record["config"]["data"] |= places
    if record.get("init_from"):
        source = pathlib.Path(record["init_from"]["workdir"]).name
        record["config"]["init_from"] = record["init_from"]["workdir"] = source
    (target / "config.json").write_text(json.dumps(record, indent=2) + "\n")
    if not draws:
        return
    records = read_metrics(target / "metrics.jsonl")
    figures.save(figures.curves(records), target / "curves", formats=("png",))
    if figures.of_kind(records, "health"):
        figures.save(figures.health(records), target / "health", formats=("png",))


def read(name: str, file: str) -> dict:
    """One of the JSON files of a record."""
    return json.loads((RESULTS / name / file).read_text())


def short_revision(revision: str | None) -> str:
    """Seven digits, and the mark of a changed tree where there is one."""
    if revision is None:
        return "no revision"
    return revision[:7] + ("-dirty" if revision.endswith("-dirty") else "")


def row(data: str, method: str, paper: str, names: tuple[str, ...]) -> str:
    """One line of the table."""
    if not names:
        return f"| {data} | {method} | {paper} | not run | | | | | | |"
    try:
        [group] = group_runs(read_run(RESULTS / name) for name in names)
    except ValueError as error:
        # Seeds of one cell share everything else.
        raise SystemExit(f"{', '.join(names)} are not seeds of one config: {error}") from error
    if runs.method(group.setting) != method:  # the method is what its column says
        raise SystemExit(f"results/{names[0]} is a {runs.method(group.setting)}, not a {method}")
    records = [read(name, "config.json") for name in names]
    accuracies = [100 * accuracy for accuracy in group.results("final_test_accuracy")]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    ours = f"{statistics.mean(accuracies):.2f}{spread} (n = {len(accuracies)})"
    bits, float_bits = (group.results(n)[0] for n in ("filter_bits", "float32_filter_bits"))
    seconds = statistics.mean(group.results("wall_seconds"))
    revisions = sorted({short_revision(record["git_revision"]) for record in records})
    logs = " ".join(f"[{i}](results/{name})" for i, name in enumerate(names))
    epochs = group.setting["num_epochs"]
    cores = records[0]["cpu_count"]
    hardware = f"{cores} CPU core{'s' if cores > 1 else ''}"
    return (
        f"| {data} | {method} | {paper} | {ours} | {bits:,} | {float_bits // bits}x | {epochs}"
        f" | {seconds:,.0f} s | {hardware}; {', '.join(revisions)} | {logs} |"
    )


def table() -> str:
    """The README's table in Markdown."""
    return "\n".join(
        [
            "| data and network | method | paper, % | test accuracy, % | filter bits | smaller than"
            " float32 | epochs | time a run | hardware; revision | records |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(row(*values) for values in ROWS),
        ]
    )


def input_table() -> str:
    """What benchmarks/input.py measured, in Markdown."""
    record = read("benchmarks", "input.json")
    resident, streamed = record["resident"], record["streamed"]
    seconds, rates = resident["median_seconds"], streamed["median_images_per_second"]
    return "\n".join(
        [
            f"`benchmarks/input.py` on {record['cpu_count']} CPU cores"
            f" ([record](results/benchmarks/input.json), revision"
            f" {short_revision(record['git_revision'])}):",
            "",
            "| a | b | a / b | target |",
            "|---|---|---|---|",
            f"| resident: input function, {1000 * seconds['input function']:.1f} ms"
            f" | training step of `{resident['config']}`, batch {resident['batch_size']}:"
            f" {seconds['training step']:.1f} s | {resident['ratio']:.5f}"
            f" | {resident['target']} |",
            f"| streamed JPEG, {streamed['processes']} workers: {rates['streamed']:.0f} images/s"
            f" | a bare Pillow loop in as many processes: {rates['bare loop']:.0f} images/s"
            f" | {streamed['ratio']:.2f} | {streamed['target']} |",
        ]
    )


def faults_table() -> str:
    """What benchmarks/faults.py counted, in Markdown."""
    record = read("benchmarks", "faults.json")
    rows = [
        f"| {run['signal']} | {run['kills']} | {run['left_a_checkpoint_half_written']}"
        f" | {run['resumed_inside_an_epoch']}"
        f" | {'yes' if run['same_state'] and run['same_records'] else 'no'} |"
        for run in record["runs"]
    ]
    seconds = [f"{lost['seconds']:.1f}" for lost in record["two_processes"]]
    return "\n".join(
        [
            f"`benchmarks/faults.py` on {record['cpu_count']} CPU cores"
            f" ([record](results/benchmarks/faults.json), revision"
            f" {short_revision(record['git_revision'])}): a run on digits, killed and started"
            " again",
            "",
            "| signal | times | a checkpoint was half written | it stood inside an epoch"
            " | same state and records as the unbroken run |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Of two processes one was killed, {len(seconds)} times: the other ended"
            f" {', '.join(seconds)} seconds later.",
        ]
    )


TABLES = {"results": table, "input": input_table, "faults": faults_table}


def readme_with_tables(text: str) -> str:
    """The README with its tables replaced by the current ones."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: made by results/records.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="copy the records of a finished run")
    adding.add_argument("workdir", type=pathlib.Path)
    adding.add_argument("name")
    adding.add_argument("--bare", action="store_true", help="no figures, for a run of a sweep")
    commands.add_parser("table", help="print the table")
    commands.add_parser("write", help="put the tables into README.md")
    arguments = parser.parse_args()
    if arguments.command == "add":
        add(arguments.workdir, arguments.name, draws=not arguments.bare)
    elif arguments.command == "table":
        print(table())
    else:
        README.write_text(readme_with_tables(README.read_text()))

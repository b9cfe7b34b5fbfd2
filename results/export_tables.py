"""The tables of exported networks in Markdown, made from the records under results/exports/."""

import statistics
from collections.abc import Mapping
from typing import Any

from benchmark_tables import MACHINE
from record_files import RESULTS, read_benchmark

from mcn_jax.workdirs.files import read_json

FILES = ("model.safetensors", "model.onnx", "model.c")
PAGE = "model.html"
HEADS = {"dense": "the paper's head of {dense_features}", "linear": "one dense layer"}


def _network(record: Mapping[str, Any]) -> str:
    """The data, the depth and the width of an exported network, as benchmarks name it."""
    network, data = record["network"], record["provenance"]["data"]["name"]
    title = {
        "digits": "digits", "mnist": "MNIST at 28x28",
        "cifar10": f"CIFAR-10, {network.get('depth')} layers",
    }[data]  # fmt: skip
    return f"{title}, {'-'.join(map(str, network['widths']))} maps"


def exports_table() -> str:
    """The bytes and accuracies of some networks that were exported, with and without --small."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for path in sorted((RESULTS / "exports").glob("*.json")):
        record = read_json(path)
        network = record["network"]
        title = f"{_network(record)}, {HEADS[network['head']].format(**network)}"
        option = "" if record["savings"] else "`--small`"
        title += f", {record['provenance']['epoch']} epochs"
        rows.setdefault((title, option), []).append(record)
    lines = []
    for (title, option), seeds in rows.items():
        file, graph = seeds[0]["model.safetensors"], seeds[0]["model.onnx"]
        tested = [name for name in ("checkpoint", *FILES) if name in seeds[0]]
        accuracies = {
            name: f"{statistics.mean(100 * record[name]['accuracy'] for record in seeds):.2f}"
            for name in tested
        }
        differences = {
            name: f"{max(record[name]['difference'] for record in seeds):.0e}"
            for name in tested[1:]
        }
        cells = [
            title, option, str(len(seeds)), f"{file['bytes']:,}", f"{graph['bytes']:,}",
            *(accuracies.get(name, "") for name in ("checkpoint", *FILES)),
            *(differences.get(name, "") for name in (FILES[0], FILES[-1])),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "| network | option | seeds | `model.safetensors` | `model.onnx`"
            " | accuracy of checkpoint, % | of `model.safetensors` | of `model.onnx` | of `model.c`"
            " | largest difference of a logit, `model.safetensors` | `model.c` |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def deployed_table() -> str:
    """The bytes of all files of networks that were exported with --small --c --web."""
    boards = {
        network["network"]: network for network in read_benchmark(MACHINE, "cortex_m4")["networks"]
    }
    timed = {
        network["network"]: network["median_seconds"]["C"]
        for network in read_benchmark(MACHINE, "c_inference")["networks"]
    }
    lines = []
    for path in sorted((RESULTS / "exports").glob("*_small.json")):
        record = read_json(path)
        if PAGE not in record or record["network"]["head"] != "linear":  # the head of the boards
            continue
        name = _network(record)
        board = boards[name]["sizes"]["--small"]["-Os"]
        files = [record[file]["bytes"] for file in (*FILES[:2], PAGE)]
        sizes = [f"{size:,}" for size in (*files, board["flash"], board["ram"])]
        time = f"{1e3 * timed[name]:.2f} ms" if name in timed else ""
        lines.append(f"| {name} | {' | '.join(sizes)} | {time} |")
    return "\n".join(
        [
            "| network | `model.safetensors` | `model.onnx` | `model.html` | `model.c`: flash | RAM"
            " | time per image |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )

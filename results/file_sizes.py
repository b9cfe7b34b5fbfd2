"""The bytes of whole model files, which follow from the networks and not from their weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from network_sizes import network_not_run
from record_files import config_record

from mcn_jax.config import from_saved_config, with_fields
from mcn_jax.data.facts import DATASETS
from mcn_jax.deploy.model_file import Model, described, parts, plan_of_trained, serialized
from mcn_jax.deploy.recoding import recoded
from mcn_jax.layers.formats import FLOAT32, SMALLEST, Formats
from mcn_jax.models.plan import specs

PARTS = ("filters", "M-filters", "centers", "batch norm", "dense layers")


class Network(NamedTuple):
    """A network of the table.

    Attributes:
        title: of its row.
        record: a run with its config and its data.
        fields: {field of the config: value} that differ from those of the record.
    """

    title: str
    record: str
    fields: Mapping[str, Any]


CIFAR10, DIGITS, LINEAR = "equal_bits/mcn_seed0", "digits/one_process", {"model.head": "linear"}
PAPERS_HEAD = {"model.head": "dense", "model.dense_features": 256}
WIDTHS = ((4, 4, 8, 16), (8, 8, 16, 32), (16, 16, 32, 64))
NETWORKS = (
    *(
        Network(
            f"CIFAR-10, 20 layers, {'-'.join(map(str, widths))} maps, one dense layer",
            CIFAR10,
            LINEAR | {"model.widths": widths},
        )
        for widths in WIDTHS
    ),
    Network("MNIST at 28x28, 5-10-20-40 maps, one dense layer", "mnist_28/mcn_seed0", {}),
    Network("digits, 5-10-20-40 maps, one dense layer", DIGITS, LINEAR),
    Network("digits, 5-10-20-40 maps, the paper's head of 256", DIGITS, PAPERS_HEAD),
)


def model_without_weights(network: Network, *, quantized: bool, formats: Formats) -> Model:
    """The content of a network's model file, with zeros for weights."""
    record = config_record(network.record)
    config = with_fields(from_saved_config(record["config"]), network.fields)
    trained = network_not_run(config, record["data"])
    trained = dataclasses.replace(trained, epoch=trained.epoch | {"binarized": quantized})
    tensors = specs(plan_of_trained(trained), config, quantized)
    zeros = {name: np.zeros(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    shape = DATASETS[config.data.name].image_shape
    return recoded(described(trained, shape, zeros), formats)


def file_bytes(network: Network, *, quantized: bool, formats: Formats) -> dict[str, int]:
    """The bytes of each part of a network's model file; "header" is last."""
    model = model_without_weights(network, quantized=quantized, formats=formats)
    sizes = {part: size for part, (size, _) in parts(model).items()}
    return sizes | {"header": len(serialized(model)) - sum(sizes.values())}


def file_sizes_table() -> str:
    """The bytes of files with float32 filters, with binary filters, and of --small."""
    lines = []
    for network in NETWORKS:
        float32 = sum(file_bytes(network, quantized=False, formats=FLOAT32).values())
        binary = sum(file_bytes(network, quantized=True, formats=FLOAT32).values())
        small = file_bytes(network, quantized=True, formats=SMALLEST)
        total = sum(small.values())
        sizes = " | ".join(f"{small[part]:,}" for part in (*PARTS, "header"))
        lines.append(
            f"| {network.title} | {float32:,} | {binary:,} ({float32 / binary:.1f}x)"
            f" | {total:,} ({float32 / total:.1f}x) | {sizes} |"
        )
    return "\n".join(
        [
            "| network | float32 filters | binary filters | `--small` | its filters | M-filters"
            " | centers | batch norm | dense | header |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )

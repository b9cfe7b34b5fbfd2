"""What networks store and compute, from their plans and from the files that they would have."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from mcn_jax.config import Config, from_saved_config
from mcn_jax.data.facts import DATASETS
from mcn_jax.deploy.model_file import described, plan_of_trained, serialized
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.family import FILTERS, PlannedLayer
from mcn_jax.layers.lbc import LBC
from mcn_jax.layers.mcconv import MCCONV
from mcn_jax.layers.spectral_pooling import DIFFSTRIDE, SPECTRAL
from mcn_jax.models.plan import Plan, plan_of, sized, specs
from mcn_jax.training.phases import quantizes
from mcn_jax.workdirs.files import of_kind
from mcn_jax.workdirs.trained import Trained

# Parts of a file that filters need besides their weights.
SCALES = ("M-filters", "centers", "scales", "anchors", "biases")


class MultiplyAdds(NamedTuple):
    """Multiply-adds of one image, by the values that are multiplied.

    Attributes:
        floats: float by float.
        float_by_sign: float by +1 or -1.
        signs: +1 or -1 by +1 or -1.
    """

    floats: int = 0
    float_by_sign: int = 0
    signs: int = 0


class Sizes(NamedTuple):
    """What a network stores and computes.

    Attributes:
        channels: of the convolutions, such as "8-8-16-32".
        filter_bits: bits of the filters of all convolutions.
        scale_bits: bits of M, centers, scales, exponents, anchors and biases of convolutions.
        other_bits: bits of batch norm and dense layers.
        file_bytes: bytes of model.safetensors, with its header.
        multiply_adds: of one image.
        activation_bits: bits of the inputs of all convolutions but the first.
    """

    channels: str
    filter_bits: int
    scale_bits: int
    other_bits: int
    file_bytes: int
    multiply_adds: MultiplyAdds
    activation_bits: int


def network_of_record(record: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Trained:
    """The trained network of a record, without variables, and with the last sizes of its images.

    Args:
        record: content of config.json.
        metrics: lines of metrics.jsonl.
    """
    config, data = from_saved_config(record["config"]), record["data"]
    plan = plan_of(config, len(data["class_names"]), tuple(data["image_shape"]))
    for learned in of_kind(metrics, "strides")[-1:]:
        strides = {
            (*layer.path, "strides"): [learned[f"{layer.name}/y"], learned[f"{layer.name}/x"]]
            for layer in plan
            if layer.family is DIFFSTRIDE
        }
        config = sized(config, plan, traverse_util.unflatten_dict(strides))
    return _network(
        config,
        data,
        record["git_revision"],
        of_kind(metrics, "epoch")[-1],
    )


def network_not_run(config: Config, data: Mapping[str, Any]) -> Trained:
    """The network that a run would train, without variables, accuracy and revision.

    Args:
        config: of the run.
        data: description of its data set, from the config.json of another run.
    """
    epoch = {
        "epoch": config.num_epochs - 1,
        "step": config.num_epochs * (data["train_examples"] // config.batch_size),
        "binarized": quantizes(config),
        "test_accuracy": None,
    }
    return _network(config, data, None, epoch)


def _network(
    config: Config, data: Mapping[str, Any], revision: str | None, epoch: Mapping[str, Any]
) -> Trained:
    return Trained(
        workdir=pathlib.Path(),
        config=config,
        data=dict(data),
        git_revision=revision,
        epoch=dict(epoch),
        file_bytes=0,
        variables={},
    )


def sizes(network: Trained) -> Sizes:
    """The sizes of a network, from `network_of_record` or `network_not_run`."""
    config, plan = network.config, plan_of_trained(network)
    tensors = specs(plan, config, network.binary)
    bits: dict[str, int] = {}
    for tensor in tensors.values():
        bits[tensor.part] = bits.get(tensor.part, 0) + tensor.bits
    scales = sum(bits.get(part, 0) for part in SCALES)
    # The size of a file does not depend on the values in it.
    zeros = {name: np.zeros(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    shape = DATASETS[config.data.name].image_shape
    takes_signs = network.binary and any(layer.family.takes_signs for layer in plan[1:])
    return Sizes(
        channels="-".join(str(width * config.model.planes) for width in config.model.widths),
        filter_bits=bits[FILTERS],
        scale_bits=scales,
        other_bits=sum(bits.values()) - bits[FILTERS] - scales,
        file_bytes=len(serialized(described(network, shape, zeros))),
        multiply_adds=multiply_adds(plan, config, network.binary),
        activation_bits=1 if takes_signs else 32,
    )


def multiply_adds(plan: Plan, config: Config, quantized: bool) -> MultiplyAdds:
    """The multiply-adds of all convolutions, dense layers and spectral poolings of a network.

    An MCconv shares its products between planes, except with a pattern that also orders planes.
    Filter maps are counted in their direct form. With two centers, a weight counts as a sign: it is
    one up to a factor and an offset, and both factor out of the sum.
    """
    convolutions = [layer for layer in plan if layer.family.filters is not None]
    counts = [
        _of_convolution(layer, config, quantized, first=layer is convolutions[0])
        for layer in convolutions
    ]
    others = sum(_weights(layer, "kernel") for layer in plan if layer.family is DENSE)
    for layer in plan:
        if layer.family in (SPECTRAL, DIFFSTRIDE):
            others += layer.family.multiply_adds(layer)["direct"]
    sums = (sum(count) for count in zip(*counts, MultiplyAdds(floats=others), strict=True))
    return MultiplyAdds(*sums)


def _of_convolution(
    layer: PlannedLayer, config: Config, quantized: bool, *, first: bool
) -> MultiplyAdds:
    family, counts = layer.family, layer.family.multiply_adds(layer)
    direct = counts.get("direct", counts.get("dense", 0))
    has_signs = quantized and family.quantizes
    if "binarize.num_centers" in family.options:
        has_signs = has_signs and config.binarize.num_centers == 2
    if family is MCCONV and "factored" in counts:
        products = direct // config.model.planes
        mix = counts["factored"] - products
        if has_signs:
            return MultiplyAdds(floats=mix, float_by_sign=products)
        return MultiplyAdds(floats=mix + products)
    if family is LBC:
        learned = layer.out_pixels * _weights(layer, "kernel")
        return MultiplyAdds(floats=learned, float_by_sign=direct - learned)
    if not has_signs or family is MCCONV:
        return MultiplyAdds(floats=direct)
    if family.takes_signs and not first:
        return MultiplyAdds(signs=direct)
    return MultiplyAdds(float_by_sign=direct)


def _weights(layer: PlannedLayer, leaf: str) -> int:
    return int(np.prod(layer.params[leaf], dtype=object))

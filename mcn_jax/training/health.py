"""Measures the health of quantized layers, once per epoch.

A binary network can stall or collapse while its loss looks normal. Bits may stop flipping, nearly
all weights may sit at one center, an M-filter may have shrunk to zero, or the planes of a map may
respond alike.
"""

from collections.abc import Mapping
from typing import Any

from mcn_jax.layers.family import Share
from mcn_jax.models.plan import Plan


def network_health(
    before: Mapping[str, Any],
    params: Mapping[str, Any],
    collections: Mapping[str, Any],
    plan: Plan,
) -> tuple[dict[str, float], dict[str, float]]:
    """Measures the layers over one epoch with quantized weights; see `Family.health`.

    Args:
        before: `Progress.filters_before`.
        params: the current parameters.
        collections: all other collections of the model.
        plan: plan of the network.

    Returns:
        Two dictionaries. {"path/of/layer/flip_ratio": ...} has the measures of every layer, in
        network order. {"flip_ratio": ...} has the measures that can be pooled over all layers.
    """
    by_layer: dict[str, float] = {}
    pooled: dict[str, Share] = {}
    for layer in plan:
        family = layer.family
        if family.health is None:
            continue
        p_before = layer.params_in(before, family.compared)
        p, s = layer.params_in(params), layer.state_in(collections)
        for name, measure in family.health(p_before, p, s, layer).items():
            if isinstance(measure, Share):
                others = pooled.get(name)
                pooled[name] = measure if others is None else others.plus(measure)
                measure = measure.value
            by_layer[f"{layer.name}/{name}"] = float(measure)
    return by_layer, {name: share.value for name, share in pooled.items()}

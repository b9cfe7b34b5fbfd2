"""The layer families: those that a config can choose, and those that every network may have."""

from collections.abc import Mapping
from typing import Any

from mcn_jax.layers.batch_norm import BATCH_NORM
from mcn_jax.layers.conv import CONV
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.family import Family, Group
from mcn_jax.layers.mcconv import MCCONV

LAYERS: dict[str, Family] = {"mcconv": MCCONV, "conv": CONV}  # by config.model.conv

# Checkpoints of version 0.1 hold the counters of all groups it had, used or not.
GROUPS: Mapping[str, Group] = {
    group.name: group
    for family in (MCCONV, CONV, DENSE, BATCH_NORM)
    for group in family.groups.values()
}


def family_of_kind(kind: str) -> Family:
    """The family of this kind, as tables name it."""
    return next(f for f in (*LAYERS.values(), DENSE, BATCH_NORM) if f.kind == kind)


def family_of(module: Any) -> Family | None:
    """The family that calls of a linen module belong to; None for a module without one."""
    families = (*LAYERS.values(), DENSE, BATCH_NORM)
    exact = [family for family in families if type(module) is family.module]
    found = exact or [family for family in families if isinstance(module, family.module)]
    return found[0] if found else None

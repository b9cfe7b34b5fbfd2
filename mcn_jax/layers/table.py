"""The layer families that a config can choose, and those that every network may contain."""

from collections.abc import Mapping
from typing import Any

from mcn_jax.layers.batch_norm import BATCH_NORM
from mcn_jax.layers.conv import CONV
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.family import Family, Group
from mcn_jax.layers.filter_map import FAMILIES as FILTER_MAP
from mcn_jax.layers.lbc import LBC
from mcn_jax.layers.mcconv import MCCONV
from mcn_jax.layers.one_bit import FAMILIES as ONE_BIT
from mcn_jax.layers.phc import PHC
from mcn_jax.layers.sign_conv import FAMILIES as SIGN_CONV
from mcn_jax.layers.spectral_pooling import DIFFSTRIDE, SPECTRAL

# Names for config.model.conv.
LAYERS: dict[str, Family] = {
    "mcconv": MCCONV, "conv": CONV, **ONE_BIT, **SIGN_CONV, "lbc": LBC, **FILTER_MAP,
    "phc": PHC,
}  # fmt: skip

# Families that a network may have beside those of `LAYERS`.
OTHERS = (DENSE, BATCH_NORM, SPECTRAL, DIFFSTRIDE)

# Includes groups that a network does not use, because checkpoints of version 0.1 hold the step
# counters of all of them.
GROUPS: Mapping[str, Group] = {
    group.name: group
    for family in (MCCONV, CONV, DENSE, BATCH_NORM)
    for group in family.groups.values()
}


def family_of_kind(kind: str) -> Family:
    """Returns the family of a kind, such as "convolution"."""
    return next(f for f in (*LAYERS.values(), *OTHERS) if f.kind == kind)


def family_of(module: Any) -> Family | None:
    """Returns the family of a linen module, or None if it has none."""
    families = (*LAYERS.values(), *OTHERS)
    exact = [family for family in families if type(module) is family.module]
    found = exact or [family for family in families if isinstance(module, family.module)]
    return found[0] if found else None

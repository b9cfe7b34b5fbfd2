"""The text of a header: written without fields that have their default, and read with them.

Version 2 is written. Version 1 names all fields of the network, and the shapes of its filters.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mcn_jax.config import Config, flatten
from mcn_jax.deploy.header import InputImages, Network
from mcn_jax.errors import InputError

VERSION, VERSIONS = 2, (1, 2)
# Fields of a network that are written even with their default, so a header says what it is.
NAMED = ("name", "conv", "widths", "head")
# Defaults that version 2 does not share with version 1. Those of the network are in the config.
QUANTIZED = True
IMAGES = {"image_size": 0, "center_crop": 1.0, "background": 255, "exif_orientation": True}
DATA = {"train_split": "train", "test_split": "test", "test_fraction": 0.2, "split_seed": 0}


def header_text(
    network: Network, images: InputImages, class_names: tuple[str, ...], provenance: Mapping
) -> str:
    """Returns everything in a model file except the tensors, as JSON."""
    defaults = {name.partition(".")[2]: value for name, value in flatten(Config()).items()}
    defaults |= {"quantized": QUANTIZED}
    fields = network.to_json()
    named = {name: fields.pop(name) for name in NAMED}
    described = dict(provenance)
    if isinstance(data := described.get("data"), Mapping):
        described["data"] = _without(data, DATA)
    header = {
        "version": VERSION,
        "network": named | _without(fields, defaults),
        "images": _without(dataclasses.asdict(images), IMAGES),
        "class_names": list(class_names),
        "provenance": described,
    }
    return json.dumps(header, separators=(",", ":"))


def _without(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in fields.items() if n not in defaults or v != defaults[n]}


def with_defaults(header: Any) -> dict[str, Any]:
    """Returns a header of any version, as read from JSON, with the fields that it left out.

    Fields of the network are left out further, because their defaults are those of the config.

    Raises:
        InputError: if the version is unknown.
    """
    version = header.get("version") if isinstance(header, dict) else header
    if not isinstance(header, dict) or type(version) is not int or version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise InputError(f"its version is {version!r:.100}, but this program reads only {known}")
    if version == 1:
        return header
    completed = dict(header)
    for group, defaults in (("network", {"quantized": QUANTIZED}), ("images", IMAGES)):
        if isinstance(fields := header.get(group), dict):
            completed[group] = defaults | fields
    provenance = header.get("provenance")
    if isinstance(provenance, dict) and isinstance(data := provenance.get("data"), dict):
        completed["provenance"] = provenance | {"data": DATA | data}
    return completed

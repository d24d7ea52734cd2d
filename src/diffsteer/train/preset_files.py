"""Tables of presets, by name or from a file, over those that they are like, and changes of them."""

import warnings
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError, brief
from diffsteer.io.extensions import LAB, extensions
from diffsteer.io.strict import parse_json, parse_toml, read_bytes, refused

PRESETS = files("diffsteer") / "train" / "presets"
CHANNELS = ("img_channels",)
"""Arguments of an EDM2 that its data decide."""


@cache
def texts() -> dict[str, str]:
    """Presets of this distribution and of extensions, by name."""
    folders = [PRESETS, *(files(point.load()) for point in extensions("presets").values())]
    paths = (path for folder in folders for path in folder.iterdir())
    return {p.name[:-5]: p.read_text("utf-8") for p in paths if p.name.endswith(".toml")}


def table_of(preset: str) -> dict[str, Any]:
    """Tables of a preset, over those of the one that it is like."""
    text = _text(preset)
    with refused(f"{preset} is no preset in TOML"):
        table = parse_toml(text)
    like = table.pop("like", "")
    if not isinstance(like, str) or like.endswith(".toml"):
        raise InputError(f"{preset}: like={brief(like)} is no name of a preset that ships")
    return overlaid(table_of(like), table) if like else table


def overlaid(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values of a nested table over those of another."""
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        below[key] = overlaid(below[key], value) if both else value
    return below


def leave_out(source: str, table: dict[str, Any], given: set[str]) -> None:
    """Leave out, with a warning, what a preset says of its own data, once there are others."""
    if source not in {*LAB["data"], *extensions("data")}:
        return
    network = table.get("settings", {}).get("network", {})
    names = {"data": ("split", "label", "group", "images", "seed"), "settings.network": CHANNELS}
    lost = []
    for place, group in names.items():
        values = table["data"] if place == "data" else network
        for name in group:
            if name in values and f"{place}.{name}" not in given:
                lost.append(f"{place}.{name}={values.pop(name)!r}")
    if lost:
        warnings.warn(f"{', '.join(lost)}: of {source}, and left out for other data", stacklevel=3)


def _text(preset: str) -> str:
    if preset.endswith(".toml"):
        with refused(f"{preset} cannot be read"):
            return read_bytes(Path(preset)).decode()
    if preset not in texts():
        raise InputError(
            f"{brief(preset)} is no preset: there are {', '.join(sorted(texts()))}, and a .toml "
            "file of your own will do"
        )
    return texts()[preset]


def apply(table: dict[str, Any], change: str) -> None:
    """Apply "training.images=9": the value is JSON, True or False as Python has them, or a text."""
    path, equals, text = change.partition("=")
    *tables, name = path.strip().split(".")
    if not equals or not name:
        raise InputError(f"{brief(change)} changes nothing: write training.images=1000")
    for key in tables:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputError(
                f"{brief(path)} leads through {brief(key)}, which is no table of settings"
            )
    try:
        table[name] = parse_json(text, path)
    except InputError:  # libraries that are given settings take the text "False" for true
        table[name] = {"True": True, "False": False}.get(text, text)

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
SOURCE = "emoji"
"""Of data where a preset names none."""
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
    if not like:
        return table
    below = table_of(like)
    own, made = source_of(below), overlaid(below, table)
    if source_of(made) != own:
        leave_out(own, made, table)
    return made


def source_of(table: Mapping[str, Any]) -> str:
    """Source of the data of a preset."""
    data = table.get("data", {})
    if not isinstance(data, dict):
        raise InputError(
            f"data={brief(data)} is no table of settings: the folder or file is data.source"
        )
    return str(data.get("source", SOURCE))


def overlaid(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values of a nested table over those of another."""
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        below[key] = overlaid(below[key], value) if both else value
    return below


def leave_out(source: str, table: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Leave out, with a warning, what a preset says of its own data, and `given` does not."""
    if source not in {*LAB["data"], *extensions("data")}:
        return
    network = _inner(table, "settings", "network")
    names = {"data": ("split", "label", "group", "images", "seed"), "settings.network": CHANNELS}
    lost = []
    for place, group in names.items():
        values = table["data"] if place == "data" else network
        for name in group:
            if name in values and name not in _inner(given, *place.split(".")):
                lost.append(f"{place}.{name}={values.pop(name)!r}")
    if lost:
        warnings.warn(f"{', '.join(lost)}: of {source}, and left out for other data", stacklevel=3)


def _inner(table: Any, *names: str) -> Any:
    """Table in tables, empty where one of them is none."""
    for name in names:
        table = table.get(name, {}) if isinstance(table, Mapping) else {}
    return table if isinstance(table, Mapping) else {}


def _text(preset: str) -> str:
    if preset.endswith(".toml"):
        with refused(f"{preset} cannot be read"):
            return read_bytes(Path(preset)).decode("utf-8-sig")
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

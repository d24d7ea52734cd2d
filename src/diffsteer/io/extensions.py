"""What other distributions add to diffsteer, by entry points: commands, models, data, presets."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

LAB = {
    "commands": ("demo", "toy", "refine analyse"),
    "models": (
        *("critters", "critters-eps", "critters-guide", "critters-agd"),
        *("critters-refiner", "critters-lowfreq-refiner"),
        *("pocket", "pocket-eps", "pocket-guide", "pocket-refiner"),
    ),
    "data": ("critters", "emoji"),
}
"""What diffsteer-lab adds, so that an error can say which package is missing."""


def extensions(group: str) -> dict[str, EntryPoint]:
    """All installed extensions of a group, in the order of their names."""
    return {point.name: point for point in _installed(group)}


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    """Look through all distributions that are installed, once in a process."""
    return tuple(sorted(entry_points(group=f"diffsteer.{group}"), key=lambda point: point.name))


def known(group: str) -> tuple[str, ...]:
    """Names of a group, also those that diffsteer-lab would add."""
    return tuple(dict.fromkeys((*LAB.get(group, ()), *extensions(group))))


def extension(group: str, name: str) -> Any:
    """Load an extension.

    Args:
        group: "commands", "models", "data" or "presets".
        name: Of the extension.

    Raises:
        ModuleNotFoundError: no installed distribution adds it.
    """
    points = extensions(group)
    if name in points:
        return points[name].load()
    where = "diffsteer-lab" if name in LAB.get(group, ()) else "no package that we know"
    raise ModuleNotFoundError(
        f"{name!r} belongs to {where}, which is not installed: pip install diffsteer-lab, or "
        "`pip install -e lab` in a clone"
    )

"""What other distributions add to diffsteer, by entry points: commands, models, data, presets."""

from importlib.metadata import entry_points
from typing import Any

LAB = {
    "commands": ("demo", "toy", "refine analyse"),
    "models": ("pocket", "pocket-eps", "pocket-guide", "pocket-refiner"),
    "data": ("emoji",),
}
"""What diffsteer-lab adds, so that an error can say which package is missing."""


def extensions(group: str) -> tuple[str, ...]:
    """Names of all installed extensions of a group, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=f"diffsteer.{group}")}))


def extension(group: str, name: str) -> Any:
    """Load an extension.

    Args:
        group: "commands", "models", "data" or "presets".
        name: Of the extension.

    Raises:
        ModuleNotFoundError: no installed distribution adds it.
    """
    for point in entry_points(group=f"diffsteer.{group}", name=name):
        return point.load()
    where = "diffsteer-lab" if name in LAB.get(group, ()) else "no package that we know"
    raise ModuleNotFoundError(
        f"{name!r} belongs to {where}, which is not installed: pip install diffsteer-lab, or "
        "`pip install -e lab` in a clone"
    )

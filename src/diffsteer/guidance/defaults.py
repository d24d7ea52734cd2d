"""Values to start from, for each family of models and each guidance, each with its source."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

from diffsteer.core.errors import InputError, did_you_mean


class Default(NamedTuple):
    """A guidance to start from.

    Attributes:
        guidance: Its text, as `parse` reads it.
        source: Where its values are from.
        note: What else belongs to it; empty for nothing.
    """

    guidance: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Family:
    """Models that take the same values.

    Attributes:
        name: What people call them.
        pipelines: Beginnings of the names of their pipelines in diffusers; none where a model is
            told by its weights alone.
        starts: Guidances, the plainest first.
    """

    name: str
    pipelines: tuple[str, ...]
    starts: tuple[Default, ...]


_TABLES = tomllib.loads(files(__package__).joinpath("defaults.toml").read_text("utf-8"))
FAMILIES = tuple(
    Family(name, tuple(table["pipelines"]), tuple(Default(*row) for row in table["starts"]))
    for name, table in _TABLES["families"].items()
)
EACH = {name: Default(*row) for name, row in _TABLES["each"].items()}
"""Guidances by class, for families that have no values of their own. `Sum` and `Scaled` are not
here: they are + and *, and take the values of what they hold."""
DIFFUSIONS, FLOWS = "Stable Diffusion 1.5, 2", "Stable Diffusion 3, 3.5"
"""Families whose values are those of models of no family."""


def start(name: str, family: str = "") -> Default:
    """Value to start from of one guidance: that of a family, alone or in a sum, or any family's.

    Args:
        name: Class of the guidance, or another key of EACH.
        family: Name of one of FAMILIES, or of a pipeline's class.

    Raises:
        InputError: there is no such guidance or family.
    """
    if name not in EACH:
        known = ", ".join(EACH)
        raise InputError(f"no guidance {name!r}{did_you_mean(name, EACH)}: there are {known}")
    own = defaults(family) if family else ()
    last = ((each.guidance.split(" + ")[-1], each) for each in own)
    return next((each for text, each in last if text.startswith(f"{name}(")), EACH[name])


def plainest(pipeline: str, flow: bool) -> tuple[Default, ...]:
    """Guidances to start from of any pipeline: of its family, or those that suit its schedule.

    Args:
        pipeline: Name of its class.
        flow: Whether its schedule is that of a flow.
    """
    own = defaults(pipeline) if pipeline.endswith("Pipeline") else ()
    return own or (defaults(FLOWS)[:1] if flow else defaults(DIFFUSIONS))


def defaults(family: str) -> tuple[Default, ...]:
    """Guidances to start from, the plainest first.

    Args:
        family: Name of one of FAMILIES, or of a pipeline's class; none are known of most pipelines.

    Raises:
        InputError: it is the name of neither.
    """
    for each in FAMILIES:
        if family == each.name or family.startswith(each.pipelines or ("\0",)):
            return each.starts
    if family.endswith("Pipeline"):
        return ()
    names = [each.name for each in FAMILIES]
    raise InputError(
        f"no family {family!r}{did_you_mean(family, names)}: there are {'; '.join(names)}, and "
        "the classes of pipelines"
    )

"""Models that ship with the lab, as extensions "diffsteer.models"."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from diffsteer.hf.shipped import Shipped
from diffsteer_lab.critters.grammar import ATTRIBUTES, Critter, parse_caption

_CRITTERS = Path(str(files("diffsteer_lab"))) / "assets" / "critters"
GUIDANCES = {
    "CFG": "CFG(3)",
    "CFG in an interval": "CFG(3).within(0.2, 5)",
    "CFG, rescaled": "CFG(3).rescaled(0.7)",
    "CFG + PAG": "CFG(2) + PAG(0.5)",
    "CFG + SAG": "CFG(3) + SAG(0.25)",
    "SAG": 'SAG(0.25, on="cond")',
    "PAG": "PAG(0.5)",
    "SEG": "SEG(1.5)",
    "Auto": "Auto(1.5)",
}
"""Weights that suit a model of 64 x 64 pixels."""
START = Critter("purple", "three-eyed", "tower", "green", "antennae", "grinning", "orange")


def words() -> dict[str, tuple[str, ...]]:
    """Words of the prompts that the model was trained on, by attribute."""
    return ATTRIBUTES


def caption(**chosen: str) -> str:
    """Prompt that names one word of each attribute."""
    return Critter(**chosen).caption


def examples(count: int) -> Iterator[tuple[Tensor, str]]:
    """Renderings as in the data that the model was trained on, and their captions."""
    from diffsteer_lab.critters.images import Critters

    data = Critters(images=count)
    for place in range(count):
        yield data[place].pixels, data.caption(place)


CRITTERS = Shipped(
    _CRITTERS / "critters",
    name="critters",
    guide="critters-guide",
    refiner="critters-refiner",
    words=words,
    compose=caption,
    start=START._asdict(),
    check=parse_caption,
    examples=examples,
    guidances=GUIDANCES,
)
CRITTERS_EPS = replace(
    CRITTERS,
    folder=_CRITTERS / "critters-eps",
    name="critters-eps",
    base=CRITTERS.folder,
    guide="",
    refiner="",
    guidances={name: text for name, text in GUIDANCES.items() if name != "Auto"},
)
CRITTERS_GUIDE = Shipped(_CRITTERS / "critters-guide", name="critters-guide")
CRITTERS_REFINER = Shipped(_CRITTERS / "critters-refiner", name="critters-refiner")
CRITTERS_LOWFREQ_REFINER = Shipped(
    _CRITTERS / "critters-lowfreq-refiner", name="critters-lowfreq-refiner"
)
CRITTERS_AGD = Shipped(_CRITTERS / "critters-agd", name="critters-agd")

"""Models that ship with the lab, as extensions "diffsteer.models"."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from diffsteer.hf.load import Shipped

_POCKET = Path(str(files("diffsteer_lab"))) / "assets" / "pocket"
GUIDANCES = {
    "CFG": "CFG(3)",
    "CFG in an interval": "CFG(3).within(0.2, 5)",
    "CFG, rescaled": "CFG(3).rescaled(0.7)",
    "CFG + PAG": 'CFG(2) + PAG(0.5, layer="up_blocks.1")',
    "CFG + SAG": "CFG(3) + SAG(0.25)",
    "SAG": 'SAG(0.25, on="cond")',
    "PAG": 'PAG(0.5, layer="up_blocks.1")',
    "SEG": 'SEG(1.5, layer="up_blocks.1")',
    "Auto": "Auto(1.5)",
}
"""Of `diffsteer demo`: weights that suit a model of 64 x 64 pixels."""


def words() -> dict[str, tuple[str, ...]]:
    """Words of the prompts that pocket was trained on."""
    from diffsteer_lab.emoji import BACKGROUNDS, STYLES, things

    return {"thing": things(), "style": STYLES, "background": tuple(BACKGROUNDS)}


def examples(count: int) -> Iterator[tuple[Tensor, str]]:
    """Images of the data that pocket was trained on, evenly chosen, and their captions."""
    from diffsteer_lab.emoji import Emoji

    data = Emoji()
    for i in range(count):
        place = i * len(data) // count
        yield data[place].pixels, data.caption(place)


POCKET = Shipped(
    _POCKET / "pocket",
    guide="pocket-guide",
    refiner="pocket-refiner",
    prompt="{thing}, {style} style, on a {background} background",
    words=words,
    examples=examples,
    guidances=GUIDANCES,
)
POCKET_EPS = Shipped(
    _POCKET / "pocket-eps",
    base=_POCKET / "pocket",
    prompt=POCKET.prompt,
    words=words,
    examples=examples,
    guidances={name: text for name, text in GUIDANCES.items() if name != "Auto"},
)
POCKET_GUIDE = Shipped(_POCKET / "pocket-guide")
POCKET_REFINER = Shipped(_POCKET / "pocket-refiner")

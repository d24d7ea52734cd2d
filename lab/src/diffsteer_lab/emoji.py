"""Emoji with captions: Noto Emoji and Twemoji on coloured backgrounds, split by what they show."""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.train.settings import Data
from diffsteer.train.stream import Sample, seeded_fraction

STYLES = ("noto", "twemoji")
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "red": (220, 40, 40),
    "blue": (40, 80, 220),
    "green": (40, 160, 70),
    "yellow": (250, 215, 50),
    "purple": (130, 50, 180),
    "grey": (128, 128, 128),
}
"""Colour names of captions, in sRGB."""

GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
)

TEST_SHARE = 0.1
PEOPLE = frozenset(f"1F{x}" for x in (466, 467, 468, 469, 474, 475, 476, "9D1", "9D2", "9D3"))
"""Boy, girl, man, woman, old man, old woman, baby, adult, child, older adult."""

JOINERS = {"200D", "FE0F", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
"""What may stand before the thing in a sequence: joiner, variation selector, hair."""

KIN = {
    f"{point:X}": f"{first:X}"
    for first, others in {
        0x1F91D: (0x1F46B, 0x1F46C, 0x1F46D),  # two people holding hands
        0x2764: (0x1F48F, 0x1F491),  # kiss, couple with heart
        0x1F64D: (0x1F64E,),  # frowning, pouting
        0x1F550: range(0x1F551, 0x1F568),  # clock faces
        0x1F311: range(0x1F312, 0x1F319),  # phases of the moon
        0x1F507: range(0x1F508, 0x1F50B),  # speakers
        0x1F50F: range(0x1F510, 0x1F514),  # locks
        0x1F4EA: range(0x1F4EB, 0x1F4EE),  # mailboxes
        0x1F4E4: (0x1F4E5,),  # trays
        0x231B: (0x23F3,),  # hourglasses
        0x2603: (0x26C4,),  # snowmen
    }.items()
    for point in others
}
"""Single code points that are drawn like another."""


def family(code: str) -> str:
    """Code point for the thing that `code` shows, "1F680" for "1F469-200D-1F680", woman astronaut.

    Emoji of one family show one thing with another sex, hair, direction, hour or phase. All that
    show nothing but people are one family.
    """
    points = [p for p in code.split("-") if p not in JOINERS and not "1F3FB" <= p <= "1F3FF"]
    thing = next((p for p in points if p not in PEOPLE), "1F9D1")
    return KIN.get(thing, thing)


def held_out(code: str) -> bool:
    """Whether an emoji is in the test split: by the hash of its family, in every style alike."""
    return seeded_fraction("test", family(code)) < TEST_SHARE


@dataclass(frozen=True)
class Emoji:
    """Emoji, 64 x 64, in two styles on eight backgrounds: "pear, noto style, on a red background".

    Noto Emoji (Apache-2.0) and Twemoji (CC-BY-4.0); `assets/emoji/NOTICE.md` has the attribution.

    Args:
        split: "train", "test" or "all". No object is in both of the first two.
        styles: Of STYLES.
        backgrounds: Of BACKGROUNDS.
        group: Of GROUPS; empty for all.
        label: Caption: all that there is to say, or as a class only the "group", "style" or
            "background".
        size: Side in pixels, 64, or less by means of 2 x 2 or 4 x 4: 32 or 16.

    Raises:
        ValueError: one of them has another name, or there is none.
    """

    split: Literal["train", "test", "all"] = "train"
    styles: tuple[str, ...] = STYLES
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    group: str = ""
    label: str = ""
    size: int = 64

    def __post_init__(self) -> None:
        given: tuple[object, ...]
        known: tuple[object, ...]
        for name, given, known in (
            ("styles", self.styles, STYLES),
            ("backgrounds", self.backgrounds, tuple(BACKGROUNDS)),
            ("split", (self.split,), ("train", "test", "all")),
            ("group", (self.group,), ("", *GROUPS)),
            ("label", (self.label,), ("", "group", "style", "background")),
            ("size", (self.size,), (64, 32, 16)),
        ):
            if not given or not set(given) <= set(known):
                wrong = ", ".join(repr(value) for value in given if value not in known) or "nothing"
                choices = ", ".join(map(repr, known))
                raise InputError(
                    f"{name} of the emoji data cannot be {wrong}: choose from {choices}"
                )

    def __len__(self) -> int:
        return len(self._entries) * len(self.styles) * len(self.backgrounds)

    def __getitem__(self, index: int) -> Sample:
        """Compose sample `index`; the background varies fastest, the emoji slowest.

        Raises:
            IndexError: there is no such sample.
        """
        entry, art, colour = self._parts(index)
        pixels = composed(_sprites(art)[entry.row], BACKGROUNDS[colour])
        if self.size < 64:
            smaller = F.avg_pool2d(pixels[None].double(), 64 // self.size)[0]
            pixels = smaller.round().to(torch.uint8)
        return Sample(pixels, self.caption(index))

    def caption(self, index: int) -> str:
        """Caption of sample `index`."""
        entry, art, colour = self._parts(index)
        classes = {"group": entry.group, "style": art, "background": colour}
        return classes.get(self.label) or f"{entry.name}, {art} style, on a {colour} background"

    def code(self, index: int) -> str:
        """Code points of sample `index`, "1F34E", with "-" between several."""
        return self._parts(index)[0].code

    @property
    def _entries(self) -> "tuple[_Entry, ...]":
        return _entries(self.split, self.group)

    def _parts(self, index: int) -> "tuple[_Entry, str, str]":
        """The emoji, the style and the background of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"no sample {index} among {len(self)}")
        rest, background = divmod(index, len(self.backgrounds))
        which, style = divmod(rest, len(self.styles))
        return self._entries[which], self.styles[style], self.backgrounds[background]


def composed(sprite: NDArray[np.uint8], background: tuple[int, int, int]) -> Tensor:
    """Lay straight-alpha `sprite`, `(H, W, 4)`, on one colour: uint8 `(3, H, W)`.

    Each value is the nearest to (alpha colour + (255 - alpha) background) / 255; 255 is odd, so
    that there are no ties.
    """
    colour, alpha = sprite[:, :, :3].astype(np.uint32), sprite[:, :, 3:].astype(np.uint32)
    mixed = alpha * colour + (255 - alpha) * np.array(background, np.uint32)
    rounded = ((mixed + 127) // 255).astype(np.uint8)
    return torch.from_numpy(rounded.transpose(2, 0, 1).copy())


class _Entry(NamedTuple):
    """An emoji: its place in the sheet, code points, name and group."""

    row: int
    code: str
    name: str
    group: str


@lru_cache(maxsize=8)
def _entries(split: str, group: str) -> tuple[_Entry, ...]:
    """The emoji of a split and a group; of all groups where it is empty."""
    text = (files("diffsteer_lab") / "assets/emoji/emoji.json").read_text("utf-8")
    every = (_Entry(i, *row) for i, row in enumerate(json.loads(text)["emoji"]))
    chosen = (e for e in every if group in ("", e.group))
    return tuple(e for e in chosen if split == "all" or held_out(e.code) == (split == "test"))


@lru_cache(maxsize=2)
def _sprites(style: str) -> NDArray[np.uint8]:
    """Cut the sheet of a style, `(N, 64, 64, 4)`, straight alpha."""
    data = (files("diffsteer_lab") / f"assets/emoji/{style}.webp").read_bytes()
    sheet = np.array(Image.open(BytesIO(data), formats=("WEBP",)).convert("RGBA"))
    height, width, _ = sheet.shape
    cells = sheet.reshape(height // 64, 64, width // 64, 64, 4).swapaxes(1, 2)
    return cells.reshape(-1, 64, 64, 4)


def source_of(data: Data) -> Emoji:
    """Open the emoji as the settings of a training run say."""
    data.require_default("images", "seed")
    return Emoji(
        data.split,  # type: ignore[arg-type]
        group=data.group,
        label=data.label,
        size=data.size or 64,
    )

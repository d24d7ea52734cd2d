"""Attributes of a critter, and captions that name them.

    a purple three-eyed tower critter with green antennae, grinning, on an orange background

A caption may leave attributes out: "a three-eyed critter on a black background" is one too.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from diffsteer.core.errors import InputError, brief

COLOURS = {
    "red": (220, 40, 40),
    "orange": (255, 140, 30),
    "yellow": (250, 215, 50),
    "green": (45, 160, 70),
    "cyan": (70, 200, 220),
    "blue": (40, 88, 220),
    "purple": (130, 50, 180),
    "pink": (255, 150, 190),
}
BACKGROUNDS = {**COLOURS, "black": (0, 0, 0), "white": (255, 255, 255)}
"""Colour names of captions, in sRGB."""

EYES = {
    "two-eyed": "round",
    "one-eyed": "mono",
    "three-eyed": "trio",
    "four-eyed": "four",
    "happy": "happy",
    "squinting": "squint",
    "angry": "angry",
    "sleepy": "sleepy",
}
SHAPES = {
    "dome": "dome",
    "block": "block",
    "tower": "tower",
    "squat": "squat",
    "bell": "bell",
    "wedge": "wedge",
    "funnel": "wedgeInv",
    "steps": "steps",
}
TOPS = {
    "horns": "horns",
    "antennae": "antennae",
    "round ears": "earsRound",
    "pointed ears": "earsPointy",
    "floppy ears": "earsDroop",
    "a bobble": "bobble",
    "a spike": "spike",
    "a sprout": "sprout",
}
MOUTHS = {
    "smiling": "smile",
    "grinning": "grin",
    "toothy": "teeth",
    "grimacing": "zigzag",
    "frowning": "frown",
    "gasping": "open",
    "licking": "tongue",
    "stern": "line",
}
"""Words of captions, and the parts that DiceBear draws for them."""


class Critter(NamedTuple):
    """Attributes by the words of captions; empty where a caption does not name one."""

    body: str = ""
    eyes: str = ""
    shape: str = ""
    accent: str = ""
    top: str = ""
    mouth: str = ""
    background: str = ""

    @property
    def held_out(self) -> bool:
        """Whether the combination is of the test split: it holds one of `HELD_OUT`."""
        return any(
            (getattr(self, a), getattr(self, b)) in pairs for (a, b), pairs in HELD_OUT.items()
        )

    @property
    def caption(self) -> str:
        """Sentence that names the attributes.

        Raises:
            ValueError: an accent without a top, whose colour it is.
        """
        if self.accent and not self.top:
            raise InputError(f"accent={self.accent} is the colour of a top: name a top too")
        *one, top = self.top.rsplit("a ", 1)
        named = " ".join(word for word in (self.body, self.eyes, self.shape, "critter") if word)
        text = _article(named)
        if self.top:
            coloured = f"{self.accent} {top}".strip()
            text += f" with {_article(coloured) if one else coloured}"
        if self.mouth:
            text += f", {self.mouth}"
        if self.background:
            text += f", on {_article(self.background)} background"
        return text


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "body": tuple(COLOURS),
    "eyes": tuple(EYES),
    "shape": tuple(SHAPES),
    "accent": tuple(COLOURS),
    "top": tuple(TOPS),
    "mouth": tuple(MOUTHS),
    "background": tuple(BACKGROUNDS),
}
"""Words of each attribute, in the order of `Critter`."""

HELD_OUT: dict[tuple[str, str], frozenset[tuple[str, str]]] = {
    ("shape", "top"): frozenset(zip(SHAPES, TOPS, strict=True)),
    ("eyes", "mouth"): frozenset(zip(EYES, MOUTHS, strict=True)),
    ("body", "background"): frozenset(zip(COLOURS, [*COLOURS][3:] + [*COLOURS][:3], strict=True)),
}
"""Pairs that only the test split has: one of eight in each of three pairs of attributes."""


def parse_caption(text: str) -> Critter:
    """Attributes that a prompt names.

    Raises:
        ValueError: it is no sentence of the grammar; the message has the vocabulary.
    """
    match = _GRAMMAR.fullmatch(" ".join(text.lower().split()).rstrip("."))
    if match is None:
        raise InputError(f"{brief(text)} is no caption of a critter: {VOCABULARY}")
    words = {name: word or "" for name, word in match.groupdict().items()}
    one = words.pop("one")
    words["top"] = words["top"] or (one and f"a {one}")
    return Critter(**words)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" and not words.startswith("one") else f"a {words}"


def _either(words: Iterable[str], name: str) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


_PLURAL = {word: part for word, part in TOPS.items() if not word.startswith("a ")}
_SINGLE = {word[2:]: part for word, part in TOPS.items() if word not in _PLURAL}
_GRAMMAR = re.compile(
    rf"(an? )?({_either(COLOURS, 'body')} )?({_either(EYES, 'eyes')} )?"
    rf"({_either(SHAPES, 'shape')} )?critter"
    rf"( with (an? )?({_either(COLOURS, 'accent')} )?"
    rf"({_either(_PLURAL, 'top')}|{_either(_SINGLE, 'one')}))?"
    rf"(,? {_either(MOUTHS, 'mouth')})?(,? on an? {_either(BACKGROUNDS, 'background')} background)?"
)
VOCABULARY = (
    '"a BODY EYES SHAPE critter with BODY TOP, MOUTH, on a BACKGROUND background", any part of '
    f"which may be left out; BODY {', '.join(COLOURS)}; EYES {', '.join(EYES)}; SHAPE "
    f"{', '.join(SHAPES)}; TOP {', '.join(TOPS)}; MOUTH {', '.join(MOUTHS)}; BACKGROUND as BODY, "
    "or black, white"
)
"""What a prompt may say."""

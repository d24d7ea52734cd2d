"""Critters with captions, rendered on demand by DiceBear and resvg: any number, by seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.hashing import bytes_hash, parts_hash, tensor_bytes
from diffsteer.train.fingerprint import Fingerprint
from diffsteer.train.settings import Data
from diffsteer.train.stream import Sample, seeded_hash
from diffsteer_lab.critters.grammar import (
    ATTRIBUTES,
    BACKGROUNDS,
    EYES,
    MOUTHS,
    SHAPES,
    TOPS,
    Critter,
)

PARTIAL = 0.2
"""Share of training captions that name only some attributes."""
JITTER = 8
"""Greatest change of a channel of a colour, in grey levels; black and white have none."""
PATTERNS = (
    *("belly", "dots", "speckles", "bar", "bars"),
    *("spot", "stripes", "dotRow", "chevron", "ring"),
)
CHEEKS = ("blush", "blushBig", "freckles")
"""Parts of DiceBear that no caption names."""
LARGER = {"eyes": 1.15, "mouth": 1.35, "top": 1.15}
"""Scale of parts, so that they can be told apart at 64 pixels."""


@dataclass(frozen=True)
class Critters:
    """Rendered critters, a function of split, seed and index alone.

    DiceBear's style "Critters" (CC0 1.0); `assets/critters/NOTICE.md`. Colour jitter, pattern,
    cheeks, place, angle and size vary and are in no caption.

    Args:
        split: "train" and "test" share no combination of shape and top, eyes and mouth, or body
            and background of those in `grammar.HELD_OUT`, one of which each test image has; "all"
            has every combination.
        images: Their number.
        seed: Other images of the same split.
        label: Attribute that is the class; empty for captions.
        size: Side in pixels.
        partial: Share of captions that name each attribute with probability 1/2.
    """

    split: Literal["train", "test", "all"] = "train"
    images: int = 20_000
    seed: int = 0
    label: str = ""
    size: int = 64
    partial: float = 0.0

    def __post_init__(self) -> None:
        for given, known in (
            (self.split, ("train", "test", "all")),
            (self.label, ("", *ATTRIBUTES)),
        ):
            if given not in known:
                raise InputError(f"{given!r} is not of the critters: choose from {known}")
        if self.images < 1 or not 16 <= self.size <= 1024 or not 0 <= self.partial <= 1:
            raise InputError(
                f"images={self.images}, size={self.size}, partial={self.partial}: give images >= "
                "1, size in 16 to 1024 pixels, partial in [0, 1]"
            )

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        """Render sample `index`.

        Raises:
            IndexError: there is no such sample.
        """
        draws, critter, caption = self._drawn(index)
        return Sample(render(_options(critter, draws), self.size), caption)

    def caption(self, index: int) -> str:
        """Caption, or class, of sample `index`."""
        return self._drawn(index)[2]

    def critter(self, index: int) -> Critter:
        """All attributes of sample `index`, whatever its caption names."""
        return self._drawn(index)[1]

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Digest of the settings and of the first images, which shows another renderer."""
        samples = [self[i] for i in range(min(16, len(self)))]
        parts = (tensor_bytes(s.pixels) for s in samples)
        pictures = parts_hash([repr(self).encode(), *parts])
        captions = bytes_hash("\n".join(s.caption for s in samples).encode())
        values: dict[str, str | int] = {"samples": len(self)}
        values |= {"captions": captions[:16], "pictures": pictures[:16]}
        return Fingerprint({(self.size, self.size): "critter 0"}, values)

    def _drawn(self, index: int) -> "tuple[_Draws, Critter, str]":
        """Draw attributes and caption; the draws go on with what no caption names."""
        if not 0 <= index < len(self):
            raise IndexError(f"no sample {index} among {len(self)}")
        draws = _Draws("critters", self.split, str(self.seed), str(index))
        critter = draws.critter()
        while self.split != "all" and critter.held_out != (self.split == "test"):
            critter = draws.critter()
        named = draws.some(critter) if draws.share() < self.partial else critter
        return draws, critter, getattr(critter, self.label) if self.label else named.caption


class _Draws:
    """Choices by words: raw bits of Philox, which never change between versions of numpy."""

    def __init__(self, *words: str) -> None:
        self.bits = np.random.Philox(seeded_hash(*words))

    def share(self) -> float:
        return float(self.bits.random_raw()) / 2**64

    def between(self, low: float, high: float) -> float:
        return round(low + (high - low) * self.share(), 3)

    def one(self, words: Sequence[str]) -> str:
        return words[int(self.share() * len(words)) % len(words)]

    def critter(self) -> Critter:
        """Attributes, of which the three colours differ."""
        while True:
            critter = Critter(*(self.one(words) for words in ATTRIBUTES.values()))
            if len({critter.body, critter.accent, critter.background}) == 3:
                return critter

    def some(self, critter: Critter) -> Critter:
        """Leave out each attribute with probability 1/2, and the colour of no top."""
        kept = Critter(*(word if self.share() < 0.5 else "" for word in critter))
        return kept if kept.top else kept._replace(accent="")

    def colour(self, name: str) -> str:
        """Colour in hex, its channels moved by up to JITTER."""
        move = 0 if name in ("black", "white") else JITTER
        moved = (round(c + self.between(-move, move)) for c in BACKGROUNDS[name])
        return "#" + "".join(f"{min(max(c, 0), 255):02x}" for c in moved)


def render(options: dict[str, Any], size: int) -> Tensor:
    """Draw one avatar of DiceBear, uint8 `(3, size, size)`."""
    style, avatar, rasterise = _renderer()
    svg = avatar(style, options).to_string()
    data = rasterise(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    pixels = np.array(Image.open(BytesIO(bytes(data)), formats=("PNG",)).convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _options(critter: Critter, draws: _Draws) -> dict[str, Any]:
    """Options of DiceBear for a critter, with what no caption names."""
    return {
        "seed": "critter",
        "bodyVariant": SHAPES[critter.shape],
        "eyesVariant": EYES[critter.eyes],
        "mouthVariant": MOUTHS[critter.mouth],
        "topVariant": TOPS[critter.top],
        "topProbability": 100,
        "bodyColor": draws.colour(critter.body),
        "accentColor": draws.colour(critter.accent),
        "backgroundColor": draws.colour(critter.background),
        "patternProbability": 100 * (draws.share() < 0.45),
        "patternVariant": draws.one(PATTERNS),
        "cheeksProbability": 100 * (draws.share() < 0.3),
        "cheeksVariant": draws.one(CHEEKS),
        "scale": draws.between(0.95, 1.0),
        "translateX": draws.between(-6, 6),
        "translateY": draws.between(2, 5),
        "rotate": draws.between(-4, 4),
    }


@cache
def _renderer() -> tuple[Any, Any, Any]:
    """DiceBear's style with larger parts, its avatar of a style, and resvg."""
    try:
        from dicebear import Avatar, Style
        from resvg_py import svg_to_bytes

        text = files("dicebear_styles").joinpath("critters.json").read_text("utf-8")
    except ModuleNotFoundError as error:
        raise InputError(
            f"critters are rendered by {error.name}, which is not installed: pip install "
            '"diffsteer-lab[critters]", or `pip install -e "lab[critters]"` in a clone'
        ) from error
    definition = json.loads(text)
    for name, scale in LARGER.items():
        definition["components"][name]["scale"] = {"min": scale, "max": scale}
    return Style(definition), Avatar, svg_to_bytes


def source_of(data: Data) -> Critters:
    """Open the critters as the settings of a training run say."""
    data.require_default("group")
    return Critters(
        data.split,  # type: ignore[arg-type]
        data.images or Critters.images,
        data.seed,
        data.label,
        data.size or 64,
        PARTIAL if data.split == "train" else 0.0,
    )

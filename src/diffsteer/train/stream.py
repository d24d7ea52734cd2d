"""Images with captions, and the endless seeded order in which training sees them.

`diffsteer.train.captioned_images` reads users' own; other sources are extensions of the group
"diffsteer.data", such as "critters" and "emoji" of diffsteer-lab.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.hashing import bytes_hash


@dataclass(frozen=True)
class Sample:
    """One image with its caption.

    Attributes:
        pixels: uint8 sRGB, `(3, H, W)`, or latents, floating point.
        caption: Empty where it was dropped.
    """

    pixels: Tensor
    caption: str


class Source(Protocol):
    """Samples by index, 0 to len - 1; cheap to pickle.

    A method `caption(index)` spares decoding an image for its caption. An attribute `fingerprint`,
    a `train.fingerprint.Fingerprint`, shows when the samples have changed.
    """

    def __len__(self) -> int:
        """Count the samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""


def caption(source: Source, index: int) -> str:
    """Caption of a sample, without decoding its image where the source allows it."""
    method = getattr(source, "caption", None)
    return str(method(index)) if method else source[index].caption


def captions(source: Source) -> list[str]:
    """Captions of all samples, in order."""
    return [caption(source, index) for index in range(len(source))]


def contents(source: Source) -> dict[str, dict[str, str | int]]:
    """Fingerprint of a source under the key "contents" of run.json; empty where there is none."""
    fingerprint = getattr(source, "fingerprint", None)
    return {"contents": fingerprint.values} if fingerprint else {}


@dataclass(frozen=True)
class Stream:
    """The images of training, number 0, 1, 2, ... without end: each sample once an epoch, shuffled.

    Number n depends on `source`, `seed` and `drop` alone, so that a run from n sees what one from 0
    would, and `world` ranks together what one would: in `DataLoader(stream,
    sampler=stream.numbers())`.

    Args:
        source: Where samples come from.
        seed: Of order and drops.
        drop: Probability of an empty caption, by which a network learns to go without (Ho and
            Salimans 2022, https://arxiv.org/abs/2207.12598); 0 is off.
        start: Number of the first image, over all ranks.
        rank: Of this process, 0 to world - 1.
        world: Number of processes.
    """

    source: Source
    seed: int = 0
    drop: float = 0.0
    start: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not len(self.source):
            raise InputError(f"{self.source} has no samples: nothing can be drawn from it")
        if not (0 <= self.drop <= 1 and self.start >= 0 and 0 <= self.rank < self.world):
            raise InputError(
                f"drop={self.drop}, start={self.start}, rank={self.rank}, world={self.world}: give "
                "0 <= drop <= 1, start >= 0 and 0 <= rank < world"
            )

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of this rank's images."""
        return count(self.start + self.rank, self.world)

    def index(self, number: int) -> int:
        """Which sample of `source` image `number` is."""
        epoch, position = divmod(number, len(self.source))
        return int(_order(self.seed, epoch, len(self.source))[position])

    def image_seed(self, number: int) -> int:
        """Seed in [0, 2^64) for all that is random about image `number`."""
        return seeded_hash("image", str(self.seed), str(number))

    def __getitem__(self, number: int) -> Sample:
        """Image `number`, its caption dropped where its seed says so."""
        sample = self.source[self.index(number)]
        if seeded_fraction("drop", str(self.image_seed(number))) < self.drop:
            return Sample(sample.pixels, "")
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in self.numbers())


def seeded_hash(*words: str) -> int:
    """A number in [0, 2^64) that depends on all of the words."""
    return int(bytes_hash(" ".join(words).encode())[:16], 16)


def seeded_fraction(*words: str) -> float:
    """A number in [0, 1) that depends on all of the words."""
    return seeded_hash(*words) / 2**64


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Shuffle 0 to size - 1 by sorting keys: Philox bits, unlike `permutation`, never change."""
    keys = np.random.Philox(seeded_hash("order", str(seed), str(epoch))).random_raw(size)
    return np.argsort(keys, kind="stable")

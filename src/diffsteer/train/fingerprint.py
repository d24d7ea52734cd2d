"""What users' images are, seen without decoding them: sizes, and digests that tell of changes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL.ContainerIO import ContainerIO

from diffsteer.core.errors import InputError
from diffsteer.io.images import size_of

PIECES = 16
PIECE = 4096
"""A file of up to their product in bytes is read whole; of a longer one, as many pieces."""


@dataclass(frozen=True)
class Place:
    """Where an image lies.

    Attributes:
        called: In messages.
        file: That holds it.
        start: Byte of the file.
        length: In bytes.
    """

    called: str
    file: Path
    start: int
    length: int


@dataclass(frozen=True)
class Contents:
    """Sizes and digests of images with captions.

    Attributes:
        sizes: Each width and height that there is, with what the first such image is called.
        said: Count of the samples, and digests of captions and of images in their order. That of
            images takes in their lengths, all of short files, and of longer ones pieces from
            start to end: enough for a compressed image, and for most changes of others. Where
            the files lie and when they were written does not matter: a copy is the same.
    """

    sizes: dict[tuple[int, int], str]
    said: dict[str, str | int]

    @classmethod
    def of(cls, places: Sequence[Place], captions: Sequence[str]) -> "Contents":
        """Look at each image.

        Raises:
            ValueError: a header says that an image cannot be read.
        """
        from tqdm import tqdm

        sizes: dict[tuple[int, int], str] = {}
        pictures = hashlib.sha256()
        for place in tqdm(places, "looking at pictures", delay=2, disable=None):
            with place.file.open("rb") as file:
                part = ContainerIO(file, place.start, place.length)
                sizes.setdefault(size_of(place.called, part), place.called)
                pictures.update(f"{place.length}:".encode())
                for piece in _pieces(part, place.length):
                    pictures.update(piece)
        said = hashlib.sha256(json.dumps(list(captions)).encode())
        digests = {"captions": said.hexdigest()[:16], "pictures": pictures.hexdigest()[:16]}
        return cls(sizes, {"samples": len(places), **digests})

    def require(self, size: tuple[int, int] | None, side: int) -> None:
        """Refuse images that make no batch, or that a network cannot take.

        Args:
            size: Height and width that each has to have; None for any, but the same.
            side: What width and height have to be multiples of.

        Raises:
            ValueError: one is of another size.
        """
        (first, called), *others = self.sizes.items()
        for found, name in self.sizes.items():
            require_size(name, found, size)
        if others:
            found, name = others[0]
            raise InputError(
                f"{name} has {found[0]} x {found[1]} pixels and {called} {first[0]} x {first[1]}: "
                "a batch needs one size; resize them"
            )
        if first[0] % side or first[1] % side:
            raise InputError(
                f"{called} has {first[0]} x {first[1]} pixels, and the autoencoder takes multiples "
                f"of {side}: resize the pictures"
            )


def require_size(name: str, found: tuple[int, int], size: tuple[int, int] | None) -> None:
    """Refuse an image of another size; `found` is width and height, `size` height and width."""
    if size is not None and found[::-1] != size:
        raise InputError(
            f"{name} has {found[0]} x {found[1]} pixels, not {size[1]} x {size[0]}: resize it"
        )


def _pieces(file: IO[bytes], length: int) -> Iterator[bytes]:
    """All of a file, or pieces of it that are spread evenly, with its end."""
    stride = max(length // PIECES, PIECE)
    for start in (*range(0, length, stride), max(0, length - PIECE)):
        file.seek(start)
        yield file.read(PIECE)

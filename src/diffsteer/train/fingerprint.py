"""Fingerprint of users' images without decoding them: sizes, and digests that show changes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL.ContainerIO import ContainerIO

from diffsteer.core.errors import InputError
from diffsteer.io.hashing import bytes_hash, parts_hash
from diffsteer.io.images import header_of

PIECES = 16
PIECE = 4096
"""A file of up to their product in bytes is read whole; of a longer one, as many pieces."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image in a file, or in a part of one, with its caption.

    Attributes:
        name: For messages.
        file: File that holds it.
        start: First byte.
        length: In bytes.
        caption: Text or class.
    """

    name: str
    file: str
    start: int
    length: int
    caption: str


@dataclass(frozen=True)
class Fingerprint:
    """Sizes and digests of images with captions.

    Attributes:
        sizes: Each width and height that occurs, with the name of the first such image.
        values: Count of the samples, and digests of captions and of images in their order. That of
            images covers their lengths, all of short files, and pieces from start to end of longer
            ones: enough for a compressed image, and for most changes of others. Neither paths nor
            times count: a copy is the same.
        grey: Whether every image has one channel.
    """

    sizes: dict[tuple[int, int], str]
    values: dict[str, str | int]
    grey: bool = False

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Fingerprint":
        """Read the header of each image."""
        sizes: dict[tuple[int, int], str] = {}
        modes: set[str] = set()
        images = parts_hash(_pieces_of(entries, sizes, modes))
        captions = bytes_hash(json.dumps([entry.caption for entry in entries]).encode())
        digests = {"captions": captions[:16], "pictures": images[:16]}
        return cls(sizes, {"samples": len(entries), **digests}, modes <= {"1", "L"})

    def require(self, size: tuple[int, int] | None, multiple: int) -> None:
        """Refuse images that make no batch: of `size` if given, all alike, sides of a multiple."""
        (first, name), *others = self.sizes.items()
        for (width, height), other in self.sizes.items():
            require_size(other, (width, height), size)
        if others:
            (width, height), other = others[0]
            raise InputError(
                f"{other} has {width} x {height} pixels and {name} {first[0]} x {first[1]}: "
                "a batch needs one size; resize them"
            )
        if first[0] % multiple or first[1] % multiple:
            raise InputError(
                f"{name} has {first[0]} x {first[1]} pixels, and the autoencoder takes multiples "
                f"of {multiple}: resize the images"
            )

    def require_side(self, setting: str, side: int) -> None:
        """Refuse images that are not squares of a network's side, which a setting says."""
        for (width, height), name in self.sizes.items():
            if (width, height) != (side, side):
                other = f", or --set {setting}={width}" if width == height else ""
                raise InputError(
                    f"{name} has {width} x {height} pixels, and the network takes {side} x {side}: "
                    f"resize the images{other}"
                )


def require_size(name: str, shape: tuple[int, int], size: tuple[int, int] | None) -> None:
    """Refuse an image whose (width, height) is not `size`, (height, width)."""
    if size is not None and shape[::-1] != size:
        other = f", or --set data.size={shape[0]}" if shape[0] == shape[1] else ""
        raise InputError(
            f"{name} has {shape[0]} x {shape[1]} pixels, not {size[1]} x {size[0]}: "
            f"resize it{other}"
        )


def _pieces_of(
    entries: Sequence[Entry], sizes: dict[tuple[int, int], str], modes: set[str]
) -> Iterator[bytes]:
    """Yield what is hashed of each image, and put its size into `sizes`, its mode into `modes`."""
    from tqdm import tqdm

    for entry in tqdm(entries, "looking at images", delay=2, disable=None):
        with Path(entry.file).open("rb") as file:
            part = ContainerIO(file, entry.start, entry.length)
            size, mode = header_of(entry.name, part)
            modes.add(mode)
            sizes.setdefault(size, entry.name)
            yield f"{entry.length}:".encode()
            yield from _pieces(part, entry.length)


def _pieces(file: IO[bytes], length: int) -> Iterator[bytes]:
    """Read a short file whole, or evenly spread pieces of a long one with its end."""
    stride = max(length // PIECES, PIECE)
    for start in (*range(0, length, stride), max(0, length - PIECE)):
        file.seek(start)
        yield file.read(PIECE)

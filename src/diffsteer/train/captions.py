"""Captions in text and JSON files, and the images that they belong to."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffsteer.core.errors import InputError
from diffsteer.io.images import MAX_BYTES, decode
from diffsteer.train.fingerprint import Entry, Fingerprint, require_size
from diffsteer.train.stream import Sample

MAX_CAPTION = 2**20
"""Bytes of one caption file."""


@dataclass(frozen=True)
class CaptionedImages:
    """Images with captions on disk, read in any order without unpacking.

    Attributes:
        entries: The images, in the order of the source.
        size: Height and width that each image must have; None allows all.
    """

    entries: tuple[Entry, ...]
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def caption(self, index: int) -> str:
        """Caption of an image, which is not read."""
        return self.entries[index].caption

    def __getitem__(self, index: int) -> Sample:
        """Decode one image."""
        entry = self.entries[index]
        require_length(entry.name, entry.length, MAX_BYTES)
        with Path(entry.file).open("rb") as file:
            file.seek(entry.start)
            pixels = decode(entry.name, file.read(entry.length), upright=True).pixels
        require_size(entry.name, (pixels.shape[2], pixels.shape[1]), self.size)
        return Sample(pixels, entry.caption)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Sizes and digests of the images, whose headers are read once."""
        return Fingerprint.of(self.entries)


def require_length(name: str, length: int, limit: int) -> None:
    """Refuse a file that is too long to be read."""
    if length > limit:
        raise InputError(f"{name} has {length} bytes, the limit is {limit}")


def caption_of_text(name: str, data: bytes) -> str:
    """Caption of UTF-8 text, on one line."""
    try:
        caption = " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 text: {error}") from error
    if not caption:
        raise InputError(f"{name} is empty: write what the image shows")
    return caption


def caption_of_json(name: str, table: dict[str, object]) -> str:
    """Caption of a JSON object, under "text" or "caption"."""
    caption = table.get("text", table.get("caption"))
    if not isinstance(caption, str):
        raise InputError(f'{name} has no caption: give it "text" or "caption", a string')
    return caption_of_text(name, caption.encode())

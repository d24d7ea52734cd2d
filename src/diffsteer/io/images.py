"""Reads folders and zip files of images as uint8 RGB, and says what it refuses or converts.

| what is found | what happens |
|---|---|
| 8-bit RGB | as it is |
| grey, 1-bit | copied to three channels |
| palette | looked up |
| transparency | laid on white |
| 16-bit, float, CMYK, animation, over 64 megapixels, broken, cut | refused, naming the file |
| a file of another kind | refused, but for notes (json, txt, csv, ...) and hidden files |

An EXIF orientation is not applied to what is measured, as in other tools; for training it is.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.strict import MAX_PIXELS, open_zip, read_bytes, refused, unpacked

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
NOTES = frozenset({".json", ".jsonl", ".txt", ".csv", ".tsv", ".md", ".html", ".npz", ".yaml"})
MAX_BYTES = 2**28
"""Limit of the file of one image."""
TAIL = 2**12
"""Bytes in which an image file has its end, but for what programs have put behind it."""


class PictureError(InputError):
    """An image that cannot be measured; the message names the file."""


@dataclass(frozen=True)
class Picture:
    """One decoded image.

    Attributes:
        name: Path inside of the folder or zip file.
        pixels: uint8, `(3, H, W)`.
        found: What the file holds, as Pillow calls it: RGB, L, P, RGBA, ...
    """

    name: str
    pixels: Tensor
    found: str


@dataclass(frozen=True)
class Pictures:
    """All images of a folder, with its subfolders, or of a zip file, in the order of names.

    Attributes:
        path: The folder or zip file.
        names: Of the images, inside of it.
        notes: Of the other files.
    """

    path: Path
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def at(cls, path: Path) -> "Pictures":
        """List the images without decoding them."""
        names = listed(path)
        suffixes = {name: PurePosixPath(name).suffix.lower() for name in names}
        strange = [n for n in names if suffixes[n] not in SUFFIXES | NOTES]
        if strange:
            raise PictureError(
                f"{path} holds {len(strange)} files that are neither images nor notes, as "
                f"{strange[0]}: convert or remove them, so that nothing is left out unseen"
            )
        chosen = tuple(n for n in names if suffixes[n] in SUFFIXES)
        if not chosen:
            raise PictureError(f"{path} holds no image: give PNG, JPEG, WebP or BMP files")
        twice = [a for a, b in pairwise(chosen) if a == b]
        if twice:
            raise PictureError(
                f"{path} holds {twice[0]} twice, and only the last can be read: pack it anew"
            )
        return cls(path, chosen, tuple(n for n in names if suffixes[n] in NOTES))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Picture]:
        """Decode one image after the other; raises PictureError at the first bad one."""
        for name, data in _contents(self.path, self.names):
            yield decode(name, data)

    def texts(self, key: str) -> Iterator[tuple[str, str | None]]:
        """Yield each name and what its file says under a key, as a PNG can; decodes no pixels."""
        for name, data in _contents(self.path, self.names):
            yield name, text_of(name, data, key)

    def batches(self, size: int) -> Iterator[list[Picture]]:
        """Yield up to `size` images of equal height and width, in order."""
        for _, alike in groupby(self, key=lambda picture: picture.pixels.shape):
            while batch := list(islice(alike, size)):
                yield batch


def listed(path: Path) -> list[str]:
    """Names of all files of a folder or zip file that are not hidden, sorted."""
    return sorted(n for n in _listing(path) if not _hidden(n))


def stacked(batch: list[Picture]) -> Tensor:
    """Pixels of images of equal size, uint8 `(N, 3, H, W)`."""
    return torch.stack([picture.pixels for picture in batch])


def decode(name: str, data: bytes, upright: bool = False) -> Picture:
    """Decode one file to RGB by the rules of this module.

    Args:
        name: For messages.
        data: The file.
        upright: Turn and mirror it as its EXIF orientation says; damaged EXIF says nothing.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: cut images would count")
    with _opened(name, io.BytesIO(data)) as image:
        image.load()
        if upright and _orientation(image) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        found, rgb = image.mode, _rgb(image)
    return Picture(name, torch.from_numpy(np.array(rgb)).permute(2, 0, 1), found)


def header_of(name: str, file: IO[bytes]) -> tuple[tuple[int, int], str]:
    """Width and height of an image as `decode` makes it upright, and its mode, from its header.

    One that lacks its end is decoded, which raises a PictureError where it is cut short.
    """
    with _opened(name, file) as image:
        # EXIF may follow the pixels of a PNG, and looking for it decodes them: only where it counts
        turned = image.width != image.height and _orientation(image) >= 5
        size = (image.height, image.width) if turned else (image.width, image.height)
        if not _ends(file, image.format):
            image.load()
        return size, image.mode


def _ends(file: IO[bytes], kind: str | None) -> bool:
    """Whether a PNG or JPEG file ends as one, or is of another kind; keeps the place in it."""
    place = file.tell()
    file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL))
    ended = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind or "", b"") in file.read()
    file.seek(place)
    return ended


def text_of(name: str, data: bytes, key: str) -> str | None:
    """Text of an image under a key; decodes no pixels, so that animations and others have some."""
    with _readable(name), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        text = image.info.get(key)
    return text if isinstance(text, str) else None


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Make one error that names the image of whatever Pillow raises for it."""
    try:
        yield
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is no readable image: give PNG, JPEG, WebP or BMP") from error
    except Exception as error:
        raise PictureError(f"{name} is broken or cut short: {error}") from error


@contextmanager
def _opened(name: str, file: IO[bytes]) -> Iterator[ImageFile.ImageFile]:
    """Open an image that is not refused; what fails meanwhile names it."""
    head = file.read(25)
    file.seek(0)
    with _readable(name), Image.open(file, formats=FORMATS) as image:
        _refuse(name, image, head)
        yield image


def _refuse(name: str, image: ImageFile.ImageFile, head: bytes) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(
            f"{name} has {image.width} x {image.height} pixels, over the limit of {MAX_PIXELS}: "
            "resize it"
        )
    deep_png = image.format == "PNG" and head[24] > 8  # bit depth in the IHDR chunk
    if deep_png or image.mode.startswith(("I", "F")):
        raise PictureError(f"{name} has more than 8 bits a channel: save it with 8")
    if getattr(image, "n_frames", 1) > 1:
        raise PictureError(f"{name} is an animation: save the frames that should count")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise PictureError(f"{name} has colours {image.mode}: save it as RGB")


def _orientation(image: Image.Image) -> int:
    """How an image is to be turned, 1 to 8, by EXIF; 1 is upright, and where nothing is said."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF says nothing; damage to the pixels is met when they are loaded
        return 1
    return value if value in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.mode and "transparency" not in image.info:
        return image.convert("RGB")
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _listing(path: Path) -> list[str]:
    if path.is_dir():
        return list(_files(path))
    if not path.exists():
        raise FileNotFoundError(f"no folder or zip file {path}")
    hint = ": give a folder or a zip file of images"
    damaged = refused(f"{path} is neither a folder nor a zip file", hint, error=PictureError)
    with damaged, open_zip(path) as archive:
        return [info.filename for info in archive.infolist() if not info.is_dir()]


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir():
            yield name
        elif path.is_symlink() and not _hidden(name):
            raise PictureError(
                f"{folder} holds a link to a folder, {name}, and links are not followed: put the "
                "folder itself there, so that nothing is left out unseen"
            )


def _contents(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for name in names:
            with refused(f"{name} cannot be read", error=PictureError):
                data = read_bytes(path / name, MAX_BYTES)
            yield name, data
        return
    with open_zip(path) as archive:
        for name in names:
            member = archive.getinfo(name)
            if member.file_size > MAX_BYTES:
                raise PictureError(
                    f"{name} has {member.file_size} bytes, over the limit of {MAX_BYTES}: save it "
                    "anew"
                )
            with refused(f"{name} in {path} cannot be unpacked", error=PictureError):
                data = bytes(unpacked(archive, member))
            yield name, data

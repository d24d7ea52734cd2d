"""Reads users' own images with captions: a folder, or webdataset tar shards.

| where | the caption of `cat.png` |
|---|---|
| folder with `metadata.jsonl` | its line `{"file_name": "cat.png", "text": "a cat"}` |
| other folder | `cat.txt` beside it |
| tar shard | member `cat.txt`, or else member `cat.json` with `{"text": "a cat"}` |

Or it is a class, where one says so by `label`:

| where, `label` | the caption of `cats/cat.png` |
|---|---|
| folder, "folder" | `cats` |
| folder, "dataset.json" | "3", of `{"labels": [["cats/cat.png", 3], ...]}` in that file |
| tar shard, "cls" | what member `cats/cat.cls` says |

Images are decoded by the rules of `diffsteer.io.images`. Nothing is unpacked to disk. A
image without a caption is refused, and so is a caption without an image, and a folder that
holds both tar files and anything else but notes: nothing is left out unseen. JSON may say "caption"
for "text".
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from diffsteer.core.errors import InputError
from diffsteer.io.images import MAX_BYTES, NOTES, SUFFIXES, Pictures, decode, listed
from diffsteer.train.fingerprint import Contents, Place, require_size
from diffsteer.train.stream import Sample, captions

MAX_CAPTION = 2**20
"""Bytes of one caption file."""


@dataclass(frozen=True)
class Folder:
    """Pictures of a folder and its subfolders, in the order of names.

    Attributes:
        path: The folder.
        captions: Name inside of the folder, and caption.
        size: Height and width that each image must have; None allows all.
    """

    path: Path
    captions: tuple[tuple[str, str], ...]
    size: tuple[int, int] | None = None

    @classmethod
    def at(cls, path: Path, size: tuple[int, int] | None = None, label: str = "") -> "Folder":
        """List images and read captions, without decoding images.

        Args:
            path: The folder.
            size: Height and width that each image must have; None allows all.
            label: Where its class is, "folder" or "dataset.json"; empty for captions.

        Raises:
            FileNotFoundError: `path` is not there.
            ValueError: it is no folder, or an image has no caption, or a caption no image.
        """
        pictures = Pictures.at(path)
        names = pictures.names
        if not path.is_dir():
            raise InputError(f"{path} is no folder: unpack it")
        if label not in ("", "folder", "dataset.json"):
            raise InputError(f'label={label!r} of a folder: there are "folder" and "dataset.json"')
        listed = path / (label if label == "dataset.json" else "metadata.jsonl")
        if label == "folder":
            found = {name: _first(path, name) for name in names}
        elif label:
            found = _classes(listed, set(names))
        elif listed.exists():
            found = _metadata(listed, set(names))
        else:
            _require_pictures(pictures)
            found = {name: _beside(path / name) for name in names}
        if missing := [name for name in names if name not in found]:
            raise InputError(f"{listed} has no line for {missing[0]}: add it")
        return cls(path, tuple((name, found[name]) for name in names), size)

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, index: int) -> str:
        """Caption of an image, which is not read."""
        return self.captions[index][1]

    def __getitem__(self, index: int) -> Sample:
        """Decode one image.

        Raises:
            ValueError: it is broken, or of another size.
        """
        name, caption = self.captions[index]
        file = self.path / name
        return _sample(str(file), _read(file, MAX_BYTES), caption, self.size)

    @cached_property
    def contents(self) -> Contents:
        """Sizes and digests of the images, whose headers are read once."""
        files = [self.path / name for name, _ in self.captions]
        places = [Place(str(file), file, 0, file.stat().st_size) for file in files]
        return Contents.of(places, captions(self))


@dataclass(frozen=True)
class Member:
    """An image in a tar file.

    Attributes:
        shard: The tar file.
        name: Inside of it.
        start: Byte at which the image starts.
        length: In bytes.
        caption: What it shows.
    """

    shard: Path
    name: str
    start: int
    length: int
    caption: str


@dataclass(frozen=True)
class Shards:
    """Pictures of webdataset tar files, read in any order, straight from where they lie.

    Attributes:
        members: In the order of the files.
        size: Height and width that each image must have; None allows all.
    """

    members: tuple[Member, ...]
    size: tuple[int, int] | None = None

    @classmethod
    def at(cls, *paths: Path, size: tuple[int, int] | None = None, label: str = "") -> "Shards":
        """Scan the headers of tar files, and read captions.

        Args:
            *paths: The tar files.
            size: Height and width that each image must have; None allows all.
            label: "cls" for classes; empty for captions.

        Raises:
            FileNotFoundError: one is not there.
            ValueError: one is compressed or broken, leads out of itself, or misses a caption.
        """
        if label not in ("", "cls"):
            raise InputError(f'label={label!r} of tar files: there is "cls"')
        return cls(tuple(member for path in paths for member in _scan(path, label)), size)

    def __len__(self) -> int:
        return len(self.members)

    def caption(self, index: int) -> str:
        """Caption of an image, which is not read."""
        return self.members[index].caption

    def __getitem__(self, index: int) -> Sample:
        """Decode one image.

        Raises:
            ValueError: it is broken, or of another size.
        """
        member = self.members[index]
        with member.shard.open("rb") as file:
            file.seek(member.start)
            data = file.read(member.length)
        return _sample(f"{member.shard}: {member.name}", data, member.caption, self.size)

    @cached_property
    def contents(self) -> Contents:
        """Sizes and digests of the images, whose headers are read once."""
        places = [Place(f"{m.shard}: {m.name}", m.shard, m.start, m.length) for m in self.members]
        return Contents.of(places, captions(self))


def opened(path: Path, size: tuple[int, int] | None = None, label: str = "") -> "Folder | Shards":
    """Open a folder of images, one of tar files, or one tar file.

    Args:
        path: Where it is.
        size: Height and width that each image must have; None allows all.
        label: Where a class is, as in `Folder.at` and `Shards.at`; empty for captions.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: a folder holds tar files and others; or as `Folder.at` and `Shards.at`.
    """
    if not path.is_dir():
        return Shards.at(path, size=size, label=label)
    shards = sorted(p.name for p in path.glob("*.tar") if not p.name.startswith("."))
    if not shards:
        return Folder.at(path, size, label)
    allowed = NOTES - {".txt"}
    others = [n for n in listed(path) if PurePosixPath(n).suffix.lower() not in allowed]
    if strange := [name for name in others if name not in shards]:
        raise InputError(
            f"{path} holds {shards[0]}, a tar file, and {strange[0]}, which is none and would be "
            "left out: move it away, or pack it into an uncompressed tar file of this folder"
        )
    return Shards.at(*(path / name for name in shards), size=size, label=label)


def _sample(name: str, data: bytes, caption: str, size: tuple[int, int] | None) -> Sample:
    pixels = decode(name, data, upright=True).pixels
    require_size(name, (pixels.shape[2], pixels.shape[1]), size)
    return Sample(pixels, caption)


def _read(path: Path, limit: int) -> bytes:
    if (length := path.stat().st_size) > limit:
        raise InputError(f"{path} has {length} bytes, over the limit of {limit}")
    return path.read_bytes()


def _text(name: str, data: bytes) -> str:
    try:
        caption = " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 text: {error}") from error
    if not caption:
        raise InputError(f"{name} is empty: write what the image shows")
    return caption


def _record(name: str, data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{name} is a JSON {type(found).__name__}, not an object")
    return found


def _caption(name: str, record: dict[str, object]) -> str:
    found = next((record[field] for field in ("text", "caption") if field in record), None)
    if not isinstance(found, str):
        raise InputError(f'{name} has no caption: give it "text" or "caption", a string')
    return _text(name, found.encode())


def _beside(picture: Path) -> str:
    path = picture.with_suffix(".txt")
    if not path.is_file():
        raise InputError(f"{picture} has no caption: write {path.name} or metadata.jsonl")
    return _text(str(path), _read(path, MAX_CAPTION))


def _require_pictures(pictures: Pictures) -> None:
    """Refuse captions of images that are not there."""
    known = {PurePosixPath(name).with_suffix("") for name in pictures.names}
    for note in map(PurePosixPath, pictures.notes):
        if note.suffix.lower() == ".txt" and note.with_suffix("") not in known:
            raise InputError(
                f"{pictures.path} holds {note}, a caption, and no image {note.stem}: add the "
                "picture, or remove the caption"
            )


def _metadata(path: Path, pictures: set[str]) -> dict[str, str]:
    """Captions by image of a metadata.jsonl; `pictures` are those that are there."""
    found: dict[str, str] = {}
    for number, line in enumerate(_read(path, MAX_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        here = f"{path} line {number}"
        record = _record(here, line)
        name = record.get("file_name")
        if not isinstance(name, str):
            raise InputError(f'{here} has no "file_name": say which image it is about')
        picture = _inside(here, name).as_posix()
        if picture not in pictures or picture in found:
            reason = "has a line before it" if picture in found else "is no image of the folder"
            raise InputError(f"{here} is about {name}, which {reason}")
        found[picture] = _caption(here, record)
    return found


def _first(path: Path, name: str) -> str:
    """Class of a picture: the first folder on the way to it."""
    folder, slash, _ = name.partition("/")
    if not slash:
        raise InputError(f"{path / name} is in no folder that names its class: move it into one")
    return folder


def _classes(path: Path, pictures: set[str]) -> dict[str, str]:
    """Classes by image of a dataset.json, `{"labels": [["cat.png", 3], ...]}`."""
    rows = _record(str(path), _read(path, MAX_BYTES)).get("labels")
    found: dict[str, str] = {}
    for row in rows if isinstance(rows, list) else [rows]:
        match row:
            case [str(name), int(number)] if type(number) is int and number >= 0:
                picture = _inside(str(path), name).as_posix()
            case _:
                raise InputError(
                    f"{path} says {str(row)[:80]}, where [picture, number of its class] should be"
                )
        if picture not in pictures or picture in found:
            raise InputError(f"{path} is about {name}, which is no image there, or there twice")
        found[picture] = str(number)
    return found


def _inside(where: str, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where} names {name}, which leads out of it: do not trust this file")
    return path


@dataclass(frozen=True)
class _Part:
    """What a tar file holds of one sample: image, caption with its content, or something else."""

    info: tarfile.TarInfo
    key: str
    kind: str
    text: bytes


def _scan(shard: Path, label: str) -> Iterator[Member]:
    """Find the images of one tar file, each with its caption, in its order."""
    samples: dict[str, dict[str, _Part]] = {}
    for part in _parts(shard, label):
        if part.kind in samples.setdefault(part.key, {}):
            raise InputError(f"{shard} has {part.info.name} twice: rename one")
        samples[part.key][part.kind] = part
    if not any(kind in SUFFIXES for parts in samples.values() for kind in parts):
        raise InputError(f"{shard} holds no image: give PNG, JPEG, WebP or BMP members")
    for key, parts in samples.items():
        pictures = [part.info for part in parts.values() if part.kind in SUFFIXES]
        if not pictures and not any(_counts(part, label) for part in parts.values()):
            continue
        if len(pictures) != 1:
            names = ", ".join(part.info.name for part in parts.values())
            raise InputError(
                f"{shard} has {len(pictures)} images for {key}, not one, among {names}: the name "
                "of an image is that of its caption up to the first dot, then .png, .jpg, .jpeg, "
                ".webp or .bmp"
            )
        info = pictures[0]
        yield Member(shard, info.name, info.offset_data, info.size, _said(shard, key, parts, label))


def _said(shard: Path, key: str, parts: dict[str, _Part], label: str) -> str:
    if part := parts.get(".cls" if label else ".txt"):
        return _text(f"{shard}: {part.info.name}", part.text)
    if label:
        raise InputError(f"{shard} has no class for {key}: add {key}.cls")
    if part := parts.get(".json"):
        here = f"{shard}: {part.info.name}"
        return _caption(here, _record(here, part.text))
    raise InputError(f"{shard} has no caption for {key}: add {key}.txt or {key}.json")


def _told(label: str) -> set[str]:
    """Kinds of members that hold a caption, or a class."""
    return {".cls"} if label else {".txt", ".json"}


def _counts(part: _Part, label: str) -> bool:
    """Whether a member without an image would be left out: all but notes would."""
    return part.kind in _told(label) or PurePosixPath(part.info.name).suffix.lower() not in NOTES


def _parts(shard: Path, label: str) -> Iterator[_Part]:
    """Yield the members that are not hidden.

    As in webdataset, the key is the path up to the first dot of the file name; what comes after
    says what the member is. Beside an image, members of other kinds (".seg.png", and ".cls" where
    no class is asked for) are allowed and not read.
    """
    told = _told(label)
    for file, info in _members(shard):
        path = _inside(str(shard), info.name)
        base, _, kind = path.name.partition(".")
        key, kind = (path.parent / base).as_posix(), f".{kind.lower()}"
        if not base:
            continue
        if kind not in SUFFIXES | told:
            yield _Part(info, key, kind, b"")
            continue
        limit = MAX_BYTES if kind in SUFFIXES else MAX_CAPTION
        if info.size > limit:
            raise InputError(f"{shard}: {info.name} has {info.size} bytes, the limit is {limit}")
        file.seek(info.offset_data)
        yield _Part(info, key, kind, b"" if kind in SUFFIXES else file.read(info.size))


def _members(shard: Path) -> Iterator[tuple[BinaryIO, tarfile.TarInfo]]:
    """Yield the plain files of an uncompressed tar file, to its very end."""
    length = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive, shard.open("rb") as file:
            for info in archive:
                if not 0 <= info.size <= length - info.offset_data:
                    raise tarfile.ReadError(f"{info.name} has no {info.size} bytes there")
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise tarfile.ReadError(f"{info.name} is a link, a device or sparse")
                yield file, info
            file.seek(archive.offset)  # tarfile takes a damaged header for the end
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset}")
    except tarfile.TarError as error:
        raise InputError(f"{shard} is broken, cut short or compressed: {error}") from error

"""Images with captions in webdataset tar files, read where they lie."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from diffsteer.core.errors import InputError
from diffsteer.io.images import MAX_BYTES, NOTES, SUFFIXES
from diffsteer.io.strict import inner_path, open_file, parse_object, refused
from diffsteer.train.captions import (
    MAX_CAPTION,
    CaptionedImages,
    caption_of_json,
    caption_of_text,
    require_length,
)
from diffsteer.train.fingerprint import Entry


class Shards:
    """Images of webdataset tar files, in the order of the files."""

    @staticmethod
    def at(
        *paths: Path | str, size: tuple[int, int] | None = None, label: str = ""
    ) -> CaptionedImages:
        """Scan the headers of tar files, and read captions.

        Args:
            *paths: The tar files.
            size: Height and width that each image must have; None allows all.
            label: "cls" for classes, "none" for neither classes nor captions; empty for captions.
        """
        kinds = {"": (".txt", ".json"), "cls": (".cls",), "none": ()}
        if label not in kinds:
            raise InputError(f'label={label!r} of tar files: there are "cls" and "none"')
        suffixes = kinds[label]
        entries = (entry for path in paths for entry in _scan(Path(path), suffixes))
        return CaptionedImages(tuple(entries), size)


@dataclass(frozen=True)
class _Member:
    """A member of a tar file: part of sample `key`, with its text where that is a caption."""

    info: tarfile.TarInfo
    key: str
    suffix: str
    text: bytes


def _scan(shard: Path, suffixes: tuple[str, ...]) -> Iterator[Entry]:
    """Find the images of one tar file, each with the caption of the first of `suffixes`."""
    samples: dict[str, dict[str, _Member]] = {}
    for member in _members(shard, suffixes):
        if member.suffix in samples.setdefault(member.key, {}):
            raise InputError(f"{shard} has {member.info.name} twice: rename one")
        samples[member.key][member.suffix] = member
    if not any(SUFFIXES & members.keys() for members in samples.values()):
        raise InputError(f"{shard} holds no image: give PNG, JPEG, WebP or BMP members")
    for key, members in samples.items():
        images = [member.info for suffix, member in members.items() if suffix in SUFFIXES]
        if not images and all(_is_note(member, suffixes) for member in members.values()):
            continue
        if len(images) != 1:
            names = ", ".join(member.info.name for member in members.values())
            raise InputError(
                f"{shard} has {len(images)} images for {key}, not one, among {names}: the name "
                "of an image is that of its caption up to the first dot, then .png, .jpg, .jpeg, "
                ".webp or .bmp"
            )
        (info,) = images
        caption = _caption(shard, key, members, suffixes)
        yield Entry(f"{shard}: {info.name}", str(shard), info.offset_data, info.size, caption)


def _caption(shard: Path, key: str, members: dict[str, _Member], suffixes: tuple[str, ...]) -> str:
    if not suffixes:
        return ""
    member = next((members[suffix] for suffix in suffixes if suffix in members), None)
    if member is None:
        noun = "class" if suffixes == (".cls",) else "caption"
        names = " or ".join(f"{key}{suffix}" for suffix in suffixes)
        raise InputError(f"{shard} has no {noun} for {key}: add {names}")
    name = f"{shard}: {member.info.name}"
    if member.suffix == ".json":
        return caption_of_json(name, parse_object(member.text, name))
    return caption_of_text(name, member.text)


def _is_note(member: _Member, suffixes: tuple[str, ...]) -> bool:
    """Whether a member may stand without an image: a note that is no caption."""
    last = PurePosixPath(member.info.name).suffix.lower()
    return member.suffix not in suffixes and last in NOTES


def _members(shard: Path, suffixes: tuple[str, ...]) -> Iterator[_Member]:
    """Yield the members that are not hidden, with the text of captions.

    As in webdataset, the key is the path up to the first dot of the file name; what comes after
    says what the member is. Beside an image, members of other kinds (".seg.png", and ".cls" where
    no class is wanted) are allowed and not read.
    """
    for file, info in _files(shard):
        path = inner_path(str(shard), info.name)
        base, _, kind = path.name.partition(".")
        suffix = f".{kind.lower()}"
        if not base:
            continue
        text = b""
        if suffix in SUFFIXES:
            require_length(f"{shard}: {info.name}", info.size, MAX_BYTES)
        elif suffix in suffixes:
            require_length(f"{shard}: {info.name}", info.size, MAX_CAPTION)
            file.seek(info.offset_data)
            text = file.read(info.size)
        yield _Member(info, (path.parent / base).as_posix(), suffix, text)


def _files(shard: Path) -> Iterator[tuple[BinaryIO, tarfile.TarInfo]]:
    """Yield the plain files of an uncompressed tar file, to its very end."""
    reading = refused(f"{shard} is broken, cut short or compressed")
    # a map gives no more than there is, where a file takes the memory that a header asks for
    with (
        reading,
        open_file(shard) as file,
        mmap(file.fileno(), 0, access=ACCESS_READ) as mapped,
        tarfile.open(fileobj=mapped, mode="r:") as archive,
    ):
        for info in archive:
            if not 0 <= info.size <= len(mapped) - info.offset_data:
                raise InputError(f"{info.name} has no {info.size} bytes there")
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise InputError(f"{info.name} is a link, a device or sparse")
            yield file, info
        file.seek(archive.offset)  # tarfile takes a damaged header for the end
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise InputError(f"no header and no end mark at byte {archive.offset}")

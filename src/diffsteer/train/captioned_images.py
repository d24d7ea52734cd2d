"""Users' own images with captions: a folder, or webdataset tar files.

| source | caption of `cat.png` |
|---|---|
| folder with `metadata.jsonl` | its line `{"file_name": "cat.png", "text": "a cat"}` |
| folder with `metadata.csv` | its row, under the header `file_name,text` |
| other folder | `cat.txt` beside it |
| tar file | member `cat.txt`, or else member `cat.json` with `{"text": "a cat"}` |

With a `label`, the caption is a class:

| source, `label` | class of `cats/cat.png` |
|---|---|
| folder, "folder" | `cats` |
| folder, "dataset.json" | "3", of `{"labels": [["cats/cat.png", 3], ...]}` in that file |
| folder, "none" | none, and no caption |
| tar file, "cls" | content of member `cats/cat.cls` |
| tar file or arrays, "none" | none, and no caption |

Arrays (npy, npz, idx) are read by `diffsteer.train.arrays`.

Images are decoded by the rules of `diffsteer.io.images`. An image without a caption is refused, and
so are a caption without an image and a folder that mixes tar files with files other than notes:
nothing is left out silently. In JSON, "caption" serves for "text".
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path, PurePosixPath

from diffsteer.core.errors import InputError, brief
from diffsteer.io.images import MAX_BYTES, NOTES, SUFFIXES, Pictures, listed
from diffsteer.io.strict import inner_path, parse_object, read_bytes, read_object, refused
from diffsteer.train.arrays import IDX, ArrayImages, is_arrays, open_arrays
from diffsteer.train.captions import (
    MAX_CAPTION,
    CaptionedImages,
    caption_of_json,
    caption_of_text,
)
from diffsteer.train.fingerprint import Entry
from diffsteer.train.webdataset import Shards

__all__ = ["Folder", "Shards", "open_images"]

Captions = Iterable[tuple[str, str, str]]
"""Where a caption stands, for messages; path of its image inside of the folder; caption."""


class Folder:
    """Images of a folder and its subfolders, in the order of names."""

    @staticmethod
    def at(
        path: Path | str, size: tuple[int, int] | None = None, label: str = ""
    ) -> CaptionedImages:
        """List images and read captions, without decoding images.

        Args:
            path: The folder.
            size: Height and width that each image must have; None allows all.
            label: Source of classes, "folder" or "dataset.json"; "none" for neither classes nor
                captions; empty for captions.
        """
        path = Path(path)
        images = Pictures.at(path)
        if not path.is_dir():
            raise InputError(f"{path} is no folder: unpack it")
        if label not in ("", "folder", "dataset.json", "none"):
            raise InputError(
                f'label={label!r} of a folder: there are "folder", "dataset.json" and "none"'
            )
        table = path / (label if label == "dataset.json" else "metadata.jsonl")
        rows = path / "metadata.csv"
        if label == "folder":
            captions = {name: _first_folder(path, name) for name in images.names}
        elif label == "none":
            captions = dict.fromkeys(images.names, "")
        elif label:
            captions = _by_image(_dataset_json(table), set(images.names))
        elif table.exists():
            captions = _by_image(_metadata(table), set(images.names))
        elif rows.exists():
            captions = _by_image(_csv(table := rows), set(images.names))
        else:
            _require_images(images)
            captions = {name: _text_beside(path / name) for name in images.names}
        if missing := [name for name in images.names if name not in captions]:
            raise InputError(f"{table} has no line for {missing[0]}: add it")
        files = {str(path / name): captions[name] for name in images.names}
        entries = (Entry(f, f, 0, Path(f).stat().st_size, text) for f, text in files.items())
        return CaptionedImages(tuple(entries), size)


def open_images(
    path: Path, size: tuple[int, int] | None = None, label: str = ""
) -> CaptionedImages | ArrayImages:
    """Open a folder of images or of tar files, a tar file, or an array file."""
    idx = sorted(path.glob(f"train{IDX}*")) if path.is_dir() else []
    if idx or is_arrays(path):
        if label not in ("", "none"):
            raise InputError(
                f"data.label={label!r} of {path}, which has classes of its own: leave it out, or "
                "none for no classes"
            )
        arrays = open_arrays(idx[0] if idx else path, size)
        return replace(arrays, labels=None) if label else arrays
    if not path.is_dir():
        if path.suffix.lower() in {*SUFFIXES, ".zip"}:
            kind = "a zip file: unpack it, and" if path.suffix.lower() == ".zip" else "one image:"
            raise InputError(f"{path} is {kind} name the folder that holds the images")
        return Shards.at(path, size=size, label=label)
    shards = sorted(p.name for p in path.glob("*.tar") if not p.name.startswith("."))
    if not shards:
        return Folder.at(path, size, label)
    allowed = NOTES - {".txt"}
    others = [n for n in listed(path) if PurePosixPath(n).suffix.lower() not in allowed]
    if unknown := [name for name in others if name not in shards]:
        raise InputError(
            f"{path} holds {shards[0]}, a tar file, and {unknown[0]}, which is none and would be "
            "left out: move it away, or pack it into an uncompressed tar file of this folder"
        )
    return Shards.at(*(path / name for name in shards), size=size, label=label)


def _by_image(captions: Captions, images: set[str]) -> dict[str, str]:
    """Captions by image, each of which is one of `images` and has one."""
    table: dict[str, str] = {}
    for where, name, caption in captions:
        image = inner_path(where, name).as_posix()
        if image not in images or image in table:
            reason = "has a caption before it" if image in table else "is no image of the folder"
            raise InputError(f"{where} is about {name[:200]}, which {reason}")
        table[image] = caption
    return table


def _metadata(path: Path) -> Iterator[tuple[str, str, str]]:
    """Captions of a metadata.jsonl."""
    for number, line in enumerate(read_bytes(path, MAX_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        table = parse_object(line, where)
        name = table.get("file_name")
        if not isinstance(name, str):
            raise InputError(f'{where} has no "file_name": say which image it is about')
        yield where, name, caption_of_json(where, table)


def _csv(path: Path) -> Iterator[tuple[str, str, str]]:
    """Captions of a metadata.csv."""
    with refused(f"{path} cannot be read"):
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        rows = list(csv.DictReader(StringIO(text, newline=""), strict=True))
    for number, row in enumerate(rows, 2):
        where, name = f"{path} row {number}", row.get("file_name")
        if not name or None in row or None in row.values():
            raise InputError(f"{where} must have a value under each name of the header, file_name "
                             "and text")  # fmt: skip
        yield where, name, caption_of_json(where, dict(row))


def _dataset_json(path: Path) -> Iterator[tuple[str, str, str]]:
    """Classes of a dataset.json, `{"labels": [["cat.png", 3], ...]}`."""
    rows = read_object(path, MAX_BYTES).get("labels")
    for row in rows if isinstance(rows, list) else [rows]:
        match row:
            case [str(name), int(number)] if type(number) is int and number >= 0:
                yield str(path), name, str(number)
            case _:
                raise InputError(
                    f"{path} says {brief(row)}, where [image, number of its class] should be"
                )


def _first_folder(path: Path, name: str) -> str:
    folder, slash, _ = name.partition("/")
    if not slash:
        raise InputError(f"{path / name} is in no folder that names its class: move it into one")
    return folder


def _text_beside(image: Path) -> str:
    path = image.with_suffix(".txt")
    if not path.is_file():
        raise InputError(
            f"{image} has no caption: write {path.name} or metadata.jsonl; where folders are "
            "classes, --set data.label=folder, and for a model without prompts data.label=none"
        )
    return caption_of_text(str(path), read_bytes(path, MAX_CAPTION))


def _require_images(images: Pictures) -> None:
    """Refuse caption files whose image is missing."""
    stems = {PurePosixPath(name).with_suffix("") for name in images.names}
    for note in map(PurePosixPath, images.notes):
        if note.suffix.lower() == ".txt" and note.with_suffix("") not in stems:
            raise InputError(
                f"{images.path} holds {note}, a caption, and no image {note.stem}: add the "
                "image, or remove the caption"
            )

"""Headers of safetensors files: tensors by name, and metadata, without the tensors."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError, brief
from diffsteer.io.strict import MAX_TEXT, open_file, parse_object, refused


@dataclass(frozen=True)
class Entry:
    """A tensor as a header says it.

    Attributes:
        file: That holds it.
        dtype: As safetensors spells it: F32, F16, BF16, ...
        shape: Its shape.
        span: First byte and end in the data of its file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int]


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read tensors' entries and metadata of a safetensors file, of its exact size.

    Raises:
        InputError: it is not one, or bytes are missing.
    """
    with refused(f"{path} is no file of safetensors"), open_file(path) as file:
        start, size = file.read(8), os.fstat(file.fileno()).st_size
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_TEXT, size - 8):
            if start == b"version ":
                raise InputError("it is a pointer of Git LFS: fetch the file by `git lfs pull`")
            pickled = "it is a pickle, " * (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80")
            raise InputError(
                f"{pickled}its header would have {length} bytes, and the file has {size}"
            )
        table = parse_object(file.read(length), "its header")
        metadata = table.pop("__metadata__", None) or {}
        entries = {name: _entry(path, row) for name, row in table.items()}
        _require_whole(entries.values(), size - 8 - length)
        _require_readable(path)
    return entries, {str(k): str(v) for k, v in metadata.items()}


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors, whatever its name."""
    try:
        return bool(read_header(path))
    except InputError:
        return False


def _entry(path: Path, row: Any) -> Entry:
    start, end = row["data_offsets"]
    shape = tuple(row["shape"])
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise InputError(f"its header says {brief(row)}")
    return Entry(path, str(row["dtype"]), shape, (start, end))


def _require_whole(entries: Iterable[Entry], size: int) -> None:
    end = max((entry.span[1] for entry in entries), default=0)
    if end != size:
        word = "is cut off" if end > size else "has bytes that no tensor uses"
        raise InputError(f"it {word}: its tensors have {end} bytes, and {size} are there")


def _require_readable(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        file.keys()

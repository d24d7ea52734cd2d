"""Tensors of safetensors files: their headers, faults of their values, and their hash."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError, brief
from diffsteer.io.hashing import tensor_bytes
from diffsteer.io.strict import MAX_TEXT, open_file, parse_object, refused

if TYPE_CHECKING:
    from torch import Tensor

MARKS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Keys that say what a checkpoint is; tools look whether they are there."""
PLACEHOLDERS = MARKS[:2]
"""Marks without a value, the only ones that a repair writes."""
FP16_MAX = 65504.0
"""Largest number of float16."""


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


@dataclass(frozen=True)
class Scan:
    """Values of tensors, summed up.

    Attributes:
        hash: Sha256 of names, dtypes, shapes and bytes, without marks.
        not_finite: Names of tensors with NaN or infinity.
        beyond_fp16: Names of tensors with a value over 65504.
        dtypes: Number of tensors of each dtype.
    """

    hash: str
    not_finite: tuple[str, ...]
    beyond_fp16: tuple[str, ...]
    dtypes: Mapping[str, int]


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


def scan(entries: Mapping[str, Entry]) -> Scan:
    """Read every tensor once, one at a time."""
    from safetensors import safe_open

    total, dtypes = hashlib.sha256(), dict[str, int]()
    not_finite, beyond = [], []
    paths = {entry.file for entry in entries.values()}
    files: dict[Path, Any] = {path: safe_open(path, "pt") for path in paths}
    for name in sorted(entries.keys() - {*MARKS}):
        entry = entries[name]
        tensor: Tensor = files[entry.file].get_tensor(name.rpartition("::")[2])
        total.update(f"{name} {entry.dtype} {entry.shape} ".encode())
        total.update(tensor_bytes(tensor))
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + 1
        largest = _largest(tensor)
        if not math.isfinite(largest):
            not_finite.append(name)
        elif largest > FP16_MAX and entry.dtype in ("F32", "BF16"):
            beyond.append(name)
    return Scan(total.hexdigest(), tuple(not_finite), tuple(beyond), dtypes)


def _largest(tensor: "Tensor") -> float:
    """Largest absolute value; NaN or infinity where there is one."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0.0
    values = tensor.float() if tensor.element_size() < 2 else tensor
    low, high = values.aminmax()
    return max(-float(low), float(high)) if low == low else math.nan


def load(entries: Mapping[str, Entry], names: Iterable[str]) -> "dict[str, Tensor]":
    """Read some tensors."""
    from safetensors import safe_open

    tensors = {}
    for name in names:
        with safe_open(entries[name].file, "pt") as file:
            tensors[name] = file.get_tensor(name.rpartition("::")[2])
    return tensors

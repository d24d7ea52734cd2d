"""Tensors of safetensors files: faults of their values, and their hash."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.io.hashing import tensor_bytes
from diffsteer.io.safetensors_header import Entry

if TYPE_CHECKING:
    from torch import Tensor

MARKS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Keys that say what a checkpoint is; tools look whether they are there."""
PLACEHOLDERS = MARKS[:2]
"""Marks without a value, the only ones that a repair writes."""
FP16_MAX = 65504.0
"""Largest number of float16."""


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

"""Hashes of plain values, and what differs between two tables of them."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


def digest(values: Mapping[str, Any]) -> str:
    """Sha256, in hex, of plain values under names, in any order of the names."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return bytes_hash(text.encode())


def require_plain(key: object) -> None:
    """Check that a key is a table of plain values, which JSON holds."""
    try:
        if not isinstance(key, Mapping):
            raise TypeError(f"{type(key).__name__} is no table")
        json.dumps({**key})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"key must be a table of plain values, as JSON holds them ({error}): write texts and "
            "numbers of Python, such as str(path) and float(x)"
        ) from error


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what differs between two sets of plain values: "steps was 25 and is 50, ..."."""
    names = sorted(was.keys() | now.keys())
    return ", ".join(
        "{} was {} and is {}".format(name, *_short(was.get(name), now.get(name)))
        for name in names
        if was.get(name) != now.get(name)
    )


def _short(*values: Any) -> list[str]:
    """Texts of values, of long ones the part from where they differ."""
    texts = [repr(value) for value in values]
    start = len(os.path.commonprefix(texts)) - 20
    if max(map(len, texts)) > 80 and start > 0:
        texts = [f"...{text[start:]}" for text in texts]
    return [t if len(t) <= 80 else f"{t[:60]}... ({len(t)} characters)" for t in texts]


def bytes_hash(data: bytes) -> str:
    """Sha256 of bytes, in hex."""
    return parts_hash((data,))


def parts_hash(parts: "Iterable[bytes | memoryview]") -> str:
    """Sha256 of parts that are made one after the other, in hex."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """Sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(net: "nn.Module") -> str:
    """Sha256 of names, dtypes, shapes and bytes of all weights, in hex: of what was loaded."""
    return parts_hash(
        part
        for key, weight in sorted(net.state_dict().items())
        for name, value in _plain(key, weight)
        for part in (f"{name} {value.dtype} {tuple(value.shape)} ".encode(), tensor_bytes(value))
    )


def _plain(name: str, value: "Tensor") -> "list[tuple[str, Tensor]]":
    """A tensor, or those that a quantised one is made of, by name."""
    if not hasattr(value, "__tensor_flatten__"):
        return [(name, value)]
    inner, _ = value.__tensor_flatten__()
    return [part for key in inner for part in _plain(f"{name}.{key}", getattr(value, key))]


def tensor_bytes(tensor: "Tensor") -> memoryview:
    """Bytes of a tensor, row by row."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

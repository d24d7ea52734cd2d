"""Strict readers of JSON, TOML, npz, zip and safetensors files and of tables of settings.

Each takes regular files alone, checks sizes before memory is taken, and runs no code. What a
library raises for a damaged file has no bounds, so `refused` makes one InputError of whatever it
is; parsing a file for any purpose belongs in it.
"""

import io
import json
import math
import os
import stat
import tomllib
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path, PurePosixPath
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import PLAIN, Rule

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

T = TypeVar("T")

MAX_TEXT, DEEPEST = 2**25, 64
"""Bytes of a JSON, TOML or text file, and levels of tables and lists in it; ours have no ten."""
MAX_PIXELS = 2**26
"""Of an image; a decoded one takes 4 bytes a pixel, and as much again while it is converted."""
UNPACKED, RATIO = 2**28, 16
"""Bytes to which a small npz file may unpack, and multiple of its own size for a larger one."""
LONGEST = 500
"""Characters of the reason that an error gives; some libraries repeat the file in it."""
PIECE = 4096
"""Bytes that are unpacked at a time; bzip2 makes up to 10^8 of them."""


@contextmanager
def refused(
    what: str, hint: str = "", error: type[Exception] = InputError, absent: bool = False
) -> Iterator[None]:
    """Turn whatever a damaged file raises into one error, "WHAT: REASON HINT".

    Args:
        what: Says which file is not what it should be.
        hint: What to do, after the reason.
        error: Type of the error, made of its message.
        absent: Whether a file that does not exist is refused alike, instead of FileNotFoundError.
    """
    try:
        yield
    except Exception as reason:
        if isinstance(reason, FileNotFoundError) and not absent:
            raise
        text = " ".join(str(reason).split()) or type(reason).__name__
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
        raise error(f"{what}: {text}{hint}") from reason


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; reading a pipe or device might never end."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        raise InputError(f"{brief(str(path))} cannot be opened: {error}"[:LONGEST]) from error
    if not regular:
        raise InputError(f"{path} is a folder, pipe or device: give a file")
    with path.open("rb") as file:
        yield file


def read_bytes(path: Path, limit: int = MAX_TEXT) -> bytes:
    """Read a file of at most `limit` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise InputError(f"{path} has {size} bytes, over the limit of {limit}")
        return file.read(size)


def inner_path(where: str, name: str) -> PurePosixPath:
    """Path of a file inside of a folder or archive; refuses one that leads out of it."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"{where} names {name[:200]}, which leads out of its folder: "
            "do not trust this file, or if it is yours keep both in one folder"
        )
    return path


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse JSON, UTF-8 with or without a byte order mark; `where` names its source in errors."""
    with refused(f"{where} is no JSON"):
        tree = json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
        _require_plain(tree)
    return tree


def parse_object(data: bytes | str, where: str) -> dict[str, Any]:
    """Parse a JSON object; `where` names its source in errors."""
    tree = parse_json(data, where)
    if not isinstance(tree, dict):
        raise InputError(f"{where} holds a JSON {type(tree).__name__}, not an object")
    return tree


def read_object(path: Path, limit: int = MAX_TEXT) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    return parse_object(read_bytes(path, limit), str(path))


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML."""
    tree = tomllib.loads(text)
    _require_plain(tree)
    return tree


def _require_plain(tree: Any) -> None:
    """Refuse what parses but cannot be worked with: depth, vast numbers, half characters."""
    level, depth = [tree], 0
    while level:
        if depth > DEEPEST:
            raise InputError(f"tables and lists lie in each other more than {DEEPEST} levels deep")
        level = [inner for node in level for inner in _inner(node)]
        depth += 1


def _inner(node: Any) -> Collection[Any]:
    if isinstance(node, dict):
        return (*node, *node.values())
    if isinstance(node, list):
        return node
    if isinstance(node, str):
        node.encode()  # fails for one half of a surrogate pair
    if isinstance(node, int) and abs(node) >= 2**64:
        raise InputError("a whole number has more than 64 bits")
    return ()


def from_table(cls: type[T], table: Any, where: str) -> T:
    """Make a dataclass of a table, without unknown or missing names or wrong types.

    Whole numbers serve for floats, lists for tuples, and tables for dataclasses.

    Args:
        cls: The dataclass; its annotations are the types.
        table: From JSON or TOML.
        where: Names the table in errors.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where} must be a table of settings, got {brief(table)}")
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    if unknown := [name for name in table if name not in known]:
        raise InputError(
            f"{where} has no setting {brief(unknown[0])}: there are {', '.join(known)}"
        )
    needed = (n for n, f in known.items() if f.default is f.default_factory is MISSING)
    if missing := [name for name in needed if name not in table]:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    hints = get_type_hints(cls)
    try:
        return cls(**{name: typed(v, hints[name], name) for name, v in table.items()})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def typed(value: Any, hint: Any, name: str) -> Any:
    """Check a value against a type, and convert it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        if value is None and NoneType in inner:
            return None
        kinds = [kind for kind in inner if kind is not NoneType]
        return typed(value, next((k for k in kinds if k is type(value)), kinds[0]), name)
    if hint is Any or (is_dataclass(hint) and type(value) is hint):
        return value
    if is_dataclass(hint):
        return from_table(hint, value, name)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        types = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(types) != len(value):
            raise InputError(f"{name} must have {len(types)} values, got {brief(value)}")
        return tuple(typed(v, t, name) for v, t in zip(value, types, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        return {key: typed(v, inner[1], f"{name}.{key}") for key, v in value.items()}
    _require_type(value, hint, name)
    return float(value) if hint is float else value


def _require_type(value: Any, hint: Any, name: str) -> None:
    kind = get_origin(hint) or hint
    if kind is Literal:
        rule = Rule(f"one of {get_args(hint)}", lambda v: v in get_args(hint))
    else:
        noun = {tuple: "list", Mapping: "table"}.get(kind, kind.__name__)
        rule = PLAIN.get(kind, Rule(f"a {noun}", lambda v: isinstance(v, kind)))
    if not rule.holds(value):
        raise InputError(f"{name} must be {rule.expected}, got {brief(value)}")


def read_npz(path: Path, names: Collection[str] | None = None) -> "dict[str, np.ndarray]":
    """Read arrays of an npz file, each whole and of the right checksum; pickles are never read.

    Args:
        path: The file.
        names: Of the arrays to read, where they are there; None for all.
    """
    with open_zip(path) as archive:
        for member in archive.infolist():
            archive.open(member).close()  # refuses a name that changed, which would hide an array
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        chosen = {n: m for n, m in members.items() if names is None or n in names}
        size = sum(member.file_size for member in chosen.values())
        limit = max(UNPACKED, RATIO * path.stat().st_size)
        if size > limit:
            raise InputError(f"it unpacks to {size} bytes, over the limit of {limit} for its size")
        return {name: _array(unpacked(archive, member)) for name, member in chosen.items()}


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file, and check that no damage to its list hides a member."""
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        file.seek(-22 - len(archive.comment), os.SEEK_END)
        count = int.from_bytes(file.read(22)[10:12], "little")
        members = len(archive.infolist())
        if count not in (members % 2**16, 2**16 - 1):
            raise InputError(f"it lists {members} members and has {count}")
        yield archive


def unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    """Unpack a member to no more bytes than its header says, and check its checksum."""
    data = bytearray()
    with archive.open(member) as stream:
        while piece := stream.read(PIECE):
            data += piece
    return data


def _array(data: bytearray) -> "np.ndarray":
    """Array of the bytes of an npy file, in the same memory."""
    import numpy as np
    from numpy.lib import format as npy

    file = io.BytesIO(data)
    old = npy.read_magic(file) == (1, 0)
    read_header = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise InputError("it holds objects in pickles, which can run code and are never read")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise InputError(f"an array of shape {shape} does not have {len(data)} bytes")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if fortran else "C")


def read_safetensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file; it takes no more memory than it has bytes."""
    from safetensors.torch import load_file

    with refused(f"{path} is no file of safetensors"), open_file(path):
        tensors: dict[str, Tensor] = load_file(path)
    return tensors


def parse_safetensors(data: bytes, where: str) -> "dict[str, Tensor]":
    """Parse the bytes of a safetensors file; `where` names it in errors."""
    from safetensors.torch import load

    with refused(f"{where} is no file of safetensors"):
        tensors: dict[str, Tensor] = load(data)
    return tensors

"""Strict readers of JSON, npz and safetensors files, and one list of what damaged files raise.

Readers check sizes before memory is taken and never run code. Whoever reads a file for a purpose
wraps its parsing in `refused`, so that anything wrong in it is one InputError that names the file.
"""

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    MemoryError,  # a header that claims more than there is
    OverflowError,
    RecursionError,
    RuntimeError,  # an encrypted or unknown member of an archive
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SyntaxError,  # Pillow's for a broken PNG
)
"""What reading or interpreting a damaged or foreign file may raise."""
MAX_JSON = 2**28
MAX_ARRAY = 2**34
"""Limits in bytes of a JSON file and of an unpacked array of an npz."""


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
    except DAMAGE as reason:
        if isinstance(reason, FileNotFoundError) and not absent:
            raise
        raise error(f"{what}: {reason}{hint}") from reason


def read_json(path: Path) -> Any:
    """Read a JSON file of at most MAX_JSON bytes, UTF-8 with or without a byte order mark."""
    size = path.stat().st_size
    if size > MAX_JSON:
        raise InputError(f"{path} has {size} bytes, over the limit of {MAX_JSON} for JSON")
    return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse JSON; `where` names its source in errors."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


@contextmanager
def open_npz(path: Path) -> "Iterator[np.lib.npyio.NpzFile]":
    """Open an npz file whose arrays are read when asked for; pickles in it are never read."""
    import numpy as np

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > MAX_ARRAY:
                    raise InputError(
                        f"{member.filename} unpacks to {member.file_size} bytes, over the limit of "
                        f"{MAX_ARRAY}"
                    )
    arrays = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise InputError("it is one bare array")
    with arrays:
        yield arrays


def read_safetensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file; it takes no more memory than it has bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except SafetensorError as error:
        raise InputError(f"{path} is no file of safetensors: {error}") from error


def parse_safetensors(data: bytes, where: str) -> "dict[str, Tensor]":
    """Parse the bytes of a safetensors file; `where` names it in errors."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(data)
        return tensors
    except SafetensorError as error:
        raise InputError(f"{where} is no file of safetensors: {error}") from error

"""Files of ADM and IDDPM: state dicts, `.pt` or safetensors, and folders of weights and JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.model_folder import read_model
from diffsteer.io.strict import open_file, read_safetensors, refused
from diffsteer.models.adm.flags import Flags

State = dict[str, Tensor]
FORMAT = "diffsteer adm 1"


def read(path: Path) -> tuple[State, Flags | None]:
    """State dict, and the flags of a folder.

    Anything but tensors in a pickle is refused and never run.

    Raises:
        OSError: there is no such file.
        InputError: it cannot be read, or holds anything but tensors by name.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return _state(read_safetensors(path), path), None
    return read_tensors(path), None


def read_tensors(path: Path, inner: str = "") -> State:
    """Tensors by name of a file of torch.save, and nothing else.

    Args:
        path: The file.
        inner: Name under which they may stand, beside other values.

    Raises:
        OSError: there is no such file.
        InputError: it cannot be read, or holds anything but tensors by name.
    """
    with open_file(path) as file:
        try:
            _require_stored(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what a broken or hostile pickle raises knows no bounds
            reason = str(error).strip().splitlines()
            raise InputError(
                f"{path} cannot be read as tensors: {_refused(reason)}. A checkpoint of this kind "
                "holds nothing else; if it is cut short, fetch it again"
            ) from error
    if inner and isinstance(content, Mapping):
        content = content.get(inner, content)
    return _state(content, path)


def _require_stored(file: BinaryIO) -> None:
    """Refuse a zip archive that would unpack to more than it is; other files pass."""
    if file.read(4) == b"PK\x03\x04":
        budget = file.seek(0, 2)
        with ZipFile(file) as archive:
            for entry in archive.infolist():
                budget -= entry.file_size
                if entry.compress_type != ZIP_STORED or budget < 0:
                    raise InputError(
                        f"its entry {entry.filename[:100]!r} unpacks {entry.compress_size} bytes "
                        f"to {entry.file_size}, but torch.save compresses nothing: refused"
                    )
    file.seek(0)


def _refused(lines: list[str]) -> str:
    """The line of torch's report that names what was refused, else the first."""
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or ["no reason given"])[0].strip()


def _state(content: Any, path: Path) -> State:
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not tensors by name")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        inner = [n for n in others if isinstance(content[n], Mapping)]
        hint = f"; save what is under {inner[0]!r} alone" if inner else ""
        first = (
            f"{others[0]!r} is a {type(content[others[0]]).__name__}" if others else "it is empty"
        )
        raise InputError(f"{path} is no state dict of tensors by name: {first}{hint}")
    integers = [name for name, value in content.items() if not value.is_floating_point()]
    if integers:
        raise InputError(
            f"{path}: {integers[0]} is {content[integers[0]].dtype}, but weights are floats"
        )
    return {str(name): value for name, value in content.items()}


def _read_folder(path: Path) -> tuple[State, Flags]:
    with refused(f"{path} is no folder of `diffsteer convert adm`"):
        content, state = read_model(path, FORMAT)
        return state, Flags.of(content["flags"])

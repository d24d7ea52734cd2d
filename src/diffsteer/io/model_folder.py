"""Folder of a model: weights in `model.safetensors`, everything else in `config.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError, brief, did_you_mean
from diffsteer.io.atomic import atomic_folder, umask
from diffsteer.io.extensions import known
from diffsteer.io.hub import HUB_ID, require_known
from diffsteer.io.strict import read_object, read_safetensors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model_index.json"
"""Of a pipeline of diffusers."""


def ships(name: str) -> bool:
    """Whether a model that ships is meant; a folder of its name without a model holds images."""
    path = Path(name)
    return name in known("models") and not (
        path.is_file()
        or any((path / each).is_file() for each in (INDEX, CONFIG))
        or any(path.glob("*.safetensors"))
    )


def require_model(name: str | Path, files: tuple[str, ...]) -> None:
    """Check, before a library or the hub is asked, that a name can be that of a model.

    Args:
        name: Of a model that ships, a folder, or a hub id NAME/MODEL.
        files: One of which a folder has to hold.

    Raises:
        FileNotFoundError: it is none of these, or the hub does not answer.
        InputError: it is a file, or a folder without a model.
    """
    name, path = str(name), Path(name)
    if ships(name):
        return
    if path.is_dir() and not any((path / file).is_file() for file in files):
        inner = next((p.parent for file in files for p in path.glob(f"*/{file}")), None)
        hint = "one that save_pretrained or `diffsteer convert` wrote" if inner is None else inner
        raise InputError(f"{name} is a folder without {' or '.join(files)}: give {hint}")
    if path.is_file():
        raise InputError(f"{name} is a file, and models are folders")
    if path.exists():
        return
    if not HUB_ID.fullmatch(name):
        names = known("models")
        raise FileNotFoundError(
            f"no model {name!r}{did_you_mean(name, names)}: there is no such folder, a hub id is "
            f"NAME/MODEL, and those that ship are {', '.join(names)}"
        )
    require_known(name)


def write_model(
    folder: Path,
    kind: str,
    content: Mapping[str, Any],
    tensors: "Mapping[str, Tensor]",
    over: bool = False,
) -> None:
    """Write a folder, all of it or nothing.

    Args:
        folder: Its path.
        kind: Name of the format, which readers compare.
        content: Plain values for `config.json`.
        tensors: Weights by name.
        over: Whether to replace a folder that exists.

    Raises:
        FileExistsError: the folder exists and is not empty.
    """
    from safetensors.torch import save_file

    with atomic_folder(folder.absolute(), over) as part:
        save_file({name: t.contiguous() for name, t in tensors.items()}, part / WEIGHTS)
        (part / WEIGHTS).chmod(0o666 & ~umask())  # the library writes for its user alone
        text = json.dumps({"format": kind, **content}, indent=2) + "\n"
        (part / CONFIG).write_text(text, "utf-8")


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """Values of `config.json`, without the weights.

    Raises:
        InputError: it is not JSON or of another format.
        OSError: it cannot be read.
    """
    content = read_object(folder / CONFIG)
    name = content.pop("format", None)
    if name != kind:
        raise InputError(f"{folder / CONFIG} must have the format {kind!r}, got {brief(name)}")
    return content


def read_model(folder: Path, kind: str) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """Values of `config.json`, and weights by name.

    Raises:
        InputError: as `read_config`, or the weights are not safetensors.
        OSError: a file cannot be read.
    """
    return read_config(folder, kind), read_safetensors(folder / WEIGHTS)

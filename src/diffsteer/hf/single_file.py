"""Checkpoints in one file, with the configuration of their pipeline in a folder beside them."""

import re
import warnings
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.hf.signature import pipeline_class
from diffsteer.io.model_folder import INDEX
from diffsteer.io.safetensors_header import read_header

COMPONENT = re.compile(r"(\w+) = (\w+)\.from_pretrained")
"""How diffusers names the part that a file does not hold."""


def require_single_file(name: str, config: str) -> None:
    """Check, before anything is loaded, that a file and a folder can make a pipeline."""
    if Path(name).suffix != ".safetensors":
        raise InputError(
            f"{name} is a file, and models are folders, or checkpoints in one .safetensors file "
            "with --config FOLDER: give one of these; from_single_file of diffusers reads others, "
            "and its save_pretrained writes a folder"
        )
    if not read_header(Path(name))[0]:
        raise InputError(f"{name} holds no weights")
    if not config:
        raise InputError(
            f"{name} is a file, and models are folders: of a checkpoint in one file give --config "
            f"FOLDER as well, a local folder of the same kind of model with {INDEX}, the "
            "configurations, scheduler and tokenizer (weights need not be there, nothing is "
            "downloaded)"
        )
    if not pipeline_class(config):
        raise InputError(
            f"config={config} has to be a local folder with {INDEX}, which it does not have: take "
            "one that save_pretrained wrote, or download one without its weights"
        )


def load_single_file(cls: Any, path: str, config: str, dtype: Any) -> Any:
    """Load a pipeline from one file; parts that it does not hold come from the folder.

    Args:
        cls: Class of the pipeline.
        path: The file of safetensors.
        config: Folder with the configuration of each part.
        dtype: Of the weights.
    """
    if not hasattr(cls, "from_single_file"):
        raise InputError(f"{cls.__name__} does not load from one file: give a folder")
    parts: dict[str, Any] = {}
    while True:
        try:
            return cls.from_single_file(
                path, config=config, dtype=dtype, local_files_only=True, **parts
            )
        except NotImplementedError as error:  # weights that were never filled cannot be moved
            raise InputError(
                f"{path} lacks weights that {config} names: it is cut, or of another kind of model"
            ) from error
        except Exception as error:  # SingleFileComponentError, which diffusers does not export
            match = COMPONENT.search(str(error))
            if match is None or match[1] in parts:
                raise
            parts[match[1]] = _part(path, config, match[1], match[2], dtype)


def _part(path: str, config: str, name: str, kind: str, dtype: Any) -> Any:
    import diffusers
    import transformers

    cls = getattr(diffusers, kind, None) or getattr(transformers, kind)
    if not any((Path(config) / name).glob("*.safetensors")):
        raise InputError(
            f"{path} holds no {name}, and neither does {config}: put its weights there"
        )
    warnings.warn(f"{path} holds no {name}: that of {config} is taken", stacklevel=3)
    return cls.from_pretrained(Path(config) / name, dtype=dtype)

"""Checkpoints in one file, with the configuration of their pipeline in a folder beside them."""

import re
import warnings
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.hf.lora import is_low_rank
from diffsteer.hf.network import PARTS
from diffsteer.hf.signature import pipeline_class
from diffsteer.io.model_folder import INDEX
from diffsteer.io.safetensors_header import read_header
from diffsteer.io.strict import read_object

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
    weights = read_header(Path(name))[0]
    if not weights:
        raise InputError(f"{name} holds no weights")
    if is_low_rank(weights):
        raise InputError(
            f"{name} is a LoRA, which changes a model and is none: give it by --lora {name}, and "
            "as model the one that it was trained on"
        )
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
    named = {k: v for k, v in read_object(Path(config) / INDEX).items() if isinstance(v, list)}
    if len(several := [part for part in PARTS if any(named.get(part, ()))]) > 1:
        raise InputError(
            f"{config} describes a model of several networks ({', '.join(several)}), and a file "
            "holds one, which would serve as each: give a folder that save_pretrained wrote"
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
        except OSError:  # names the file of the folder that is not there
            raise
        except Exception as error:  # SingleFileComponentError, which diffusers does not export
            match = COMPONENT.search(str(error))
            if match is None or match[1] in parts:
                raise _other_kind(path, config, error) from error
            parts[match[1]] = _part(path, config, match[1], match[2], dtype)


def _other_kind(path: str, config: str, error: Exception) -> InputError:
    told = isinstance(error, ValueError | RuntimeError)  # others are the slips of a converter
    reason = " ".join(str(error).split()).partition(". ")[0][:200] if told else ""
    return InputError(
        f"{path} is not of the kind of model that {config} describes{reason and f' ({reason})'}: "
        "give the --config of its kind"
    )


def _part(path: str, config: str, name: str, kind: str, dtype: Any) -> Any:
    """A part of the folder beside what the file holds; never the network, which would be all."""
    import diffusers
    import transformers

    if name in PARTS:
        raise InputError(
            f"{path} holds no {name}, the network that samples, as diffusers reads files of the "
            f"kind of model that {config} describes: it is another part, such as a VAE, or of "
            f"another kind; to sample {config} itself, give that as model"
        )
    cls = getattr(diffusers, kind, None) or getattr(transformers, kind)
    if not any((Path(config) / name).glob("*.safetensors")):
        raise InputError(
            f"{path} holds no {name}, and neither does {config}: put its weights there"
        )
    warnings.warn(f"{path} holds no {name}: that of {config} is taken", stacklevel=3)
    return cls.from_pretrained(Path(config) / name, dtype=dtype)

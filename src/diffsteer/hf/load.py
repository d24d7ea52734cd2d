"""Load pipelines and guide networks by hub id, folder, or the name of a model that ships.

Weights files and configurations have to say the same: `from_pretrained` fills what is missing with
random numbers, and leaves out what it does not expect.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError, brief
from diffsteer.hf.network import PARTS
from diffsteer.hf.scheduler_config import require_timesteps
from diffsteer.io.extensions import LAB, extension, extensions
from diffsteer.io.model_folder import CONFIG, INDEX, require_model
from diffsteer.io.strict import read_object

VARIANT = re.compile(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$")
"""Ends the name of a weights file of another precision."""

CONFIGS = ("model_index.json", "config.json", "*/config.json", "*/scheduler_config.json")
"""Files of a folder that have to be JSON objects; diffusers takes for granted that they are."""


@dataclass(frozen=True)
class Shipped:
    """A model that an installed distribution holds.

    Attributes:
        folder: As diffusers saves it.
        base: Folder of a pipeline that has what `folder` lacks; None where nothing is lacking.
    """

    folder: Path
    base: Path | None = None


def load(name: str, dtype: Any = None) -> Any:
    """Load a diffusers pipeline by hub id, folder, or name of one that ships.

    Args:
        name: Of it.
        dtype: Of the weights.

    Raises:
        OSError: there is none.
        InputError: it is malformed, or its weights are not those that its configuration names.
        ModuleNotFoundError: it is one that ships, and is not installed.
    """
    require_model(name, (INDEX,))
    from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

    model = shipped(name)
    parts: dict[str, Any] = {}
    with _readable(name), complete_weights(bar=model is None):
        if model is None:
            if Path(name).is_dir():
                parts = _checked_folder(Path(name))
            pipe = DiffusionPipeline.from_pretrained(name, dtype=dtype, **parts)
        else:
            if model.base:
                unet = UNet2DConditionModel.from_pretrained(model.folder / "unet", dtype=dtype)
                scheduler = DDIMScheduler.from_pretrained(model.folder / "scheduler")
                parts = {"unet": unet, "scheduler": scheduler}
            place = model.base or model.folder
            pipe = DiffusionPipeline.from_pretrained(place, dtype=dtype, **parts)
        _require_words(pipe)
    _require_dtype(name, pipe, dtype)
    return pipe


def network(name: str, dtype: Any) -> Any:
    """Load a guide network by hub id or folder, of its own or of a pipeline, or as "pocket-guide".

    Of a pipeline nothing but the network is loaded.

    Raises:
        OSError: there is none.
        InputError: it is malformed, or its weights are not those that its configuration names.
        ModuleNotFoundError: it is one that ships, and is not installed.
    """
    require_model(name, (CONFIG, INDEX))
    from diffusers import AutoModel, DiffusionPipeline

    place = str(shipped_folder(name))
    inside: dict[str, Any] = {}
    with _readable(name), complete_weights():
        if not Path(place).exists() and not reachable(place):
            inside = {"local_files_only": True}
        with suppress(OSError):  # a network has no index of a pipeline
            index = DiffusionPipeline.load_config(place, **inside)
            inside |= next(({"subfolder": part} for part in PARTS if part in index), {})
        module = AutoModel.from_pretrained(place, dtype=dtype, **inside)
    _require_dtype(name, module, dtype)
    return module


def shipped(name: str) -> Shipped | None:
    """Find a model that ships by its name; None for any other name.

    Raises:
        ModuleNotFoundError: the distribution that holds it is not installed.
    """
    if name not in (*LAB["models"], *extensions("models")) or Path(name).exists():
        return None
    model: Shipped = extension("models", name)
    return model


def shipped_folder(name: str) -> Path | str:
    """Folder of a model that ships, or `name` itself; raises as `shipped`."""
    model = shipped(name)
    return name if model is None else model.folder


def reachable(name: str) -> bool:
    """Whether the hub answers for a model; asked once, since its loaders try for a minute."""
    from huggingface_hub import model_info

    try:
        model_info(name, timeout=5)
    except Exception:  # of three libraries of connections
        return False
    return True


def _checked_folder(folder: Path) -> dict[str, str]:
    """Arguments for loading a pipeline's folder, once it has all that its index names.

    Raises:
        InputError: a component is missing, or a configuration names a class that there is not.
    """
    import diffusers

    named = {k: v for k, v in read_object(folder / INDEX).items() if isinstance(v, list) and v[0]}
    if absent := [name for name in named if not (folder / name).is_dir()]:
        raise InputError(f"{INDEX} names {', '.join(absent)}, which the folder does not have")
    for name, (library, wanted, *_) in named.items():
        for config in (folder / name / CONFIG, folder / name / "scheduler_config.json"):
            if library != "diffusers" or not config.is_file():
                continue
            kind = read_object(config).get("_class_name", wanted)
            if not hasattr(diffusers, str(kind)):
                raise InputError(f"{config} is of {kind!r}, which diffusers does not have")
            if kind != wanted:
                text = f"{config} is of {kind}, and {INDEX} names {wanted}, which is taken"
                warnings.warn(text, stacklevel=4)
    for name in named:
        files = [path.name for path in (folder / name).glob("*.safetensors")]
        marks = [mark for file in files if (mark := VARIANT.search(file))]
        if marks and len(marks) == len(files):
            variant = marks[0][1]
            warnings.warn(f"{folder / name} has weights of variant {variant} alone", stacklevel=4)
            return {"variant": variant}
    return {}


@contextmanager
def complete_weights(bar: bool = True) -> Iterator[None]:
    """Refuse models of diffusers and transformers whose weights do not fit, until closed.

    Args:
        bar: Whether loading shows its progress.

    Raises:
        InputError: weights are missing, superfluous or of other shapes than the configuration
            says. Of transformers, which often hold heads that are not used, those alone are
            superfluous that another number of layers would take.
    """
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    methods = {owner: vars(owner)["from_pretrained"] for owner in (ModelMixin, PreTrainedModel)}

    def strict(method: Any, lenient: bool) -> Any:
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if lenient:
                kwargs["ignore_mismatched_sizes"] = True  # so that they are reported by name
            model, report = method(cls, *args, **{**kwargs, "output_loading_info": True})
            _require_complete(model, report, lenient)
            return (model, report) if kwargs.get("output_loading_info") else model

        return classmethod(from_pretrained)

    try:
        for owner, method in methods.items():
            checked = strict(method.__func__, lenient=owner is PreTrainedModel)
            owner.from_pretrained = checked
        with _quiet(bar):
            yield
    finally:
        for owner, method in methods.items():
            owner.from_pretrained = method


def _require_complete(model: Any, report: Mapping[str, Any], lenient: bool) -> None:
    unexpected = set(report["unexpected_keys"])
    if lenient and unexpected:
        layers = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
        beyond = {name for name in unexpected if re.sub(r"\d+", "#", name) in layers}
        if others := unexpected - beyond:
            text = f"{type(model).__name__} makes no use of {len(others)} weights of its file"
            warnings.warn(f"{text}, such as {min(others)}", stacklevel=2)
        unexpected = beyond
    problems = {
        "missing": report["missing_keys"],
        f"beyond its {CONFIG}": unexpected,
        "of another shape": map(str, report["mismatched_keys"]),
    }
    for problem, keys in problems.items():
        if names := sorted(keys):
            raise InputError(
                f"weights of {type(model).__name__} do not fit its {CONFIG}: {len(names)} "
                f"{problem}, such as {names[0]}"
            )


def _require_words(pipe: Any) -> None:
    """Check that tokenizers know more than special tokens; without files they load so."""
    parts = pipe.components.items()
    words = {k: v for k, v in parts if v is not None and k.startswith("tokenizer")}
    for name, tokenizer in words.items():
        if {*tokenizer("a cat").input_ids} <= {*tokenizer.all_special_ids}:
            raise InputError(f"{name} knows no words: its folder lacks a vocabulary")


def _require_dtype(name: str, model: Any, dtype: Any) -> None:
    if dtype is not None and model.dtype != dtype:
        raise InputError(f"{name} was loaded in {model.dtype}, not in dtype={dtype!r} as asked")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever is raised for a malformed name or damaged file into one error of one line."""
    try:
        for pattern in CONFIGS if name else ():
            for path in Path(name).glob(pattern):
                require_timesteps(read_object(path))
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, InputError):
            raise InputError(f"{name} cannot be loaded: {error}") from error
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, OSError) and not Path(name).exists() and shipped(name) is None:
            raise FileNotFoundError(
                f"there is no folder {brief(name)}, and the hub does not give a model of that name "
                f"({reason.partition('. ')[0].partition(' (')[0]}): look at the name, and "
                "at the connection"
            ) from error
        raise InputError(
            f"{brief(name)} cannot be loaded as a model of diffusers ({reason}): give a folder "
            "that save_pretrained wrote, a hub id NAME/MODEL, or the name of a model that ships"
        ) from error


@contextmanager
def _quiet(bar: bool) -> Iterator[None]:
    """Leave out advice about loading, which is checked here, and maybe bars."""
    import diffusers.utils.logging as ours
    import transformers.utils.logging as theirs

    shown, levels = ours.is_progress_bar_enabled(), (ours.get_verbosity(), theirs.get_verbosity())
    if not bar:
        ours.disable_progress_bar()
        theirs.disable_progress_bar()
    ours.set_verbosity_error()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        if shown:
            ours.enable_progress_bar()
            theirs.enable_progress_bar()
        ours.set_verbosity(levels[0])
        theirs.set_verbosity(levels[1])

"""Load pipelines and guide networks by hub id, folder, or the name of a model that ships."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.hf.network import PARTS
from diffsteer.io.extensions import LAB, extension, extensions


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
        InputError: it is malformed.
        ModuleNotFoundError: it is one that ships, and is not installed.
    """
    from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

    if (model := shipped(name)) is None:
        with _readable(name):
            return DiffusionPipeline.from_pretrained(name, dtype=dtype)
    parts: dict[str, Any] = {}
    with _quiet():
        if model.base:
            parts["unet"] = UNet2DConditionModel.from_pretrained(model.folder / "unet", dtype=dtype)
            parts["scheduler"] = DDIMScheduler.from_pretrained(model.folder / "scheduler")
        place = model.base or model.folder
        return DiffusionPipeline.from_pretrained(place, dtype=dtype, **parts)


def network(name: str, dtype: Any) -> Any:
    """Load a guide network by hub id or folder, of its own or of a pipeline, or as "pocket-guide".

    Of a pipeline nothing but the network is loaded.

    Raises:
        OSError: there is none.
        InputError: it is malformed.
        ModuleNotFoundError: it is one that ships, and is not installed.
    """
    from diffusers import AutoModel, DiffusionPipeline

    place = str(shipped_folder(name))
    inside: dict[str, str] = {}
    with _readable(name):
        with suppress(OSError):  # a network has no index of a pipeline
            index = DiffusionPipeline.load_config(place)
            inside = next(({"subfolder": part} for part in PARTS if part in index), {})
        return AutoModel.from_pretrained(place, dtype=dtype, **inside)


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


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what diffusers raises for a malformed name or damaged file into one error."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise InputError(
            f"{name!r} cannot be loaded as a model of diffusers ({error}): give a folder that "
            "save_pretrained wrote, a hub id NAME/MODEL, or the name of a model that ships"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out bars and advice about loading, of which a model in the package needs none."""
    import diffusers.utils.logging as ours
    import transformers.utils.logging as theirs

    bar, level = ours.is_progress_bar_enabled(), theirs.get_verbosity()
    ours.disable_progress_bar()
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        if bar:
            ours.enable_progress_bar()
            theirs.enable_progress_bar()
        theirs.set_verbosity(level)

"""The pocket model, which ships: a Stable Diffusion of 64 x 64 pixels that runs anywhere.

"pocket" and "pocket-eps" name pipelines wherever a hub id or folder does, "pocket-guide" the
smaller network that guides "pocket", and "pocket-refiner" what refines its noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from diffsteer.hf.network import PARTS

SHIPPED = ("pocket", "pocket-eps")
GUIDE, REFINER = "pocket-guide", "pocket-refiner"


def pipeline(name: str, dtype: Any) -> Any:
    """Load a diffusers pipeline by hub id, folder, or name of one that ships.

    Args:
        name: Of it.
        dtype: Of the weights.

    Raises:
        OSError: there is none.
        ValueError: it is one that ships, and is not there.
    """
    from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

    if name not in SHIPPED:
        return DiffusionPipeline.from_pretrained(name, dtype=dtype)
    parts: dict[str, Any] = {}
    with _quiet():
        if name == "pocket-eps":  # all but these parts is the same
            folder = shipped(name)
            parts["unet"] = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype)
            parts["scheduler"] = DDIMScheduler.from_pretrained(folder / "scheduler")
        return DiffusionPipeline.from_pretrained(shipped("pocket"), dtype=dtype, **parts)


def network(name: str, dtype: Any) -> Any:
    """Load a guide network by hub id or folder, of its own or of a pipeline, or as "pocket-guide".

    Of a pipeline nothing but the network is loaded.

    Raises:
        OSError: there is none.
    """
    from diffusers import AutoModel, DiffusionPipeline

    place = str(shipped(name)) if name == GUIDE else name  # it takes no Path
    inside: dict[str, str] = {}
    with suppress(OSError):  # a network has no index of a pipeline
        index = DiffusionPipeline.load_config(place)
        inside = next(({"subfolder": part} for part in PARTS if part in index), {})
    return AutoModel.from_pretrained(place, dtype=dtype, **inside)


def shipped(name: str) -> Path:
    """Folder of what ships under a name.

    Raises:
        ValueError: this installation does not hold it.
    """
    with as_file(files("diffsteer") / "assets" / "pocket" / name) as folder:
        if not folder.is_dir():
            raise ValueError(
                f"this installation holds no weights of {name!r}: train them (`diffsteer train`) "
                "and name their folder, runs/PRESET/model"
            )
        return folder


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

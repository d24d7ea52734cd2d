"""The pocket model, which ships: a Stable Diffusion of 64 x 64 pixels that runs anywhere.

"pocket" and "pocket-eps" name pipelines wherever a hub id or folder does, "pocket-guide" the
smaller network that guides "pocket".
"""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

SHIPPED = ("pocket", "pocket-eps")
GUIDE = "pocket-guide"
TEXTS = "{}, {} style, on a {} background"
"""What prompts of the pocket model look like: thing, style (noto, twemoji), colour."""


def pipeline(name: str, dtype: Any) -> Any:
    """Load a diffusers pipeline by hub id, folder, or name of one that ships.

    Args:
        name: Of it.
        dtype: Of the weights.

    Raises:
        OSError: there is none.
    """
    from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

    if name not in SHIPPED:
        return DiffusionPipeline.from_pretrained(name, torch_dtype=dtype)
    parts: dict[str, Any] = {}
    if name == "pocket-eps":  # all but these parts is the same
        folder = _folder(name)
        parts["unet"] = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
        parts["scheduler"] = DDIMScheduler.from_pretrained(folder / "scheduler")
    return DiffusionPipeline.from_pretrained(_folder("pocket"), torch_dtype=dtype, **parts)


def network(name: str, dtype: Any) -> Any:
    """Load a guide network by hub id, folder, or as "pocket-guide".

    Raises:
        OSError: there is none.
    """
    from diffusers import AutoModel

    return AutoModel.from_pretrained(_folder(name) if name == GUIDE else name, torch_dtype=dtype)


def _folder(name: str) -> Path:
    with as_file(files("diffsteer") / "assets" / "pocket" / name) as folder:
        return folder

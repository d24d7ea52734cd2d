"""Images of a study, for `critters.py` and `distances.py`."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from diffsteer.io.atomic import atomic_write


def enlarged(images: Tensor) -> list[Image.Image]:
    """Images of bytes, `(N, 3, H, W)`, twice as large."""
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in large]


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_write(path) as file:
        image.save(file, "PNG")

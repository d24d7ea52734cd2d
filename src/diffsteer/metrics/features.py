"""What turns pictures into features, and the record that keeps unlike features apart.

Figures differ between packages mostly by extractor, layer, resize and weights. So every set of
features carries those four as its `Origin`, and comparing across origins raises.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

UNSTATED = "unstated"
"""Stands for what a statistics file of another tool does not say; agrees with everything."""


@dataclass(frozen=True)
class Origin:
    """Where features come from.

    Attributes:
        extractor: Name of the network.
        layer: Name of the layer in it.
        resize: How pictures reach the size that the network sees, with that size.
        weights: sha256 of the weights, in hex.
    """

    extractor: str
    layer: str
    resize: str
    weights: str

    def require(self, other: "Origin", mine: str, theirs: str) -> None:
        """Check that features of both can be compared.

        Args:
            other: The other origin.
            mine: What to call the features of this one in the error.
            theirs: What to call those of the other.

        Raises:
            ValueError: a field that both state differs.
        """
        for field in fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if a != b and UNSTATED not in (a, b):
                raise ValueError(
                    f"features differ: {mine} have {field.name} {a!r}, {theirs} has {b!r}. Such "
                    "numbers do not compare: measure both with the same extractor, layer, resize "
                    f"and weights\n  {mine}: {self}\n  {theirs}: {other}"
                )


class Extractor(ABC):
    """A callable from pictures to features. A class of your own is ready when it is defined."""

    @property
    @abstractmethod
    def origin(self) -> Origin:
        """What the features are to be compared by."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return features `(N, d)`, float32, of uint8 pictures `(N, 3, H, W)`.

        Raises:
            ValueError: `images` are no such pictures.
        """


@dataclass(frozen=True)
class Custom(Extractor):
    """Any function from uint8 pictures `(N, 3, H, W)` to features `(N, d)`, with its origin."""

    function: Callable[[Tensor], Tensor]
    made: Origin

    @property
    @override
    def origin(self) -> Origin:
        return self.made

    @override
    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.function(pictures(images))


def pictures(images: Tensor) -> Tensor:
    """Return `images` when they are uint8 RGB pictures, `(N, 3, H, W)`.

    Raises:
        ValueError: they are not.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"pictures have dtype {images.dtype} and shape {tuple(images.shape)}: give uint8 "
            "(N, 3, H, W) in [0, 255]; samples x in [-1, 1] become (127.5 x + 127.5).round()"
        )
    return images


def resized(images: Tensor, size: int) -> Tensor:
    """Resize uint8 pictures to `(N, 3, size, size)`, float32 whole numbers in [0, 255].

    Antialiased bicubic as Pillow does it, clipped to [0, 255] and rounded after each axis, which
    uint8 on the CPU alone gives: so figures are the same on every device. Other aspect ratios are
    squashed, as in every published figure.
    """
    x = pictures(images)
    if x.shape[2:] != (size, size):
        x = F.interpolate(x.cpu(), (size, size), mode="bicubic", antialias=True)
    return x.to(torch.float32)


def normalised(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Map [0, 255] to (x / 255 - mean) / std, one mean and std a channel."""
    shift, scale = (x.new_tensor(v).reshape(3, 1, 1) for v in (mean, std))
    return (x / 255 - shift) / scale


def device_of(name: str = "") -> str:
    """Return `name`, or where it is empty the GPU of this process, or the CPU."""
    if name:
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def file_hash(path: Path) -> str:
    """Sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(net: nn.Module) -> str:
    """Sha256 of names, dtypes, shapes and bytes of all weights, in hex: of what was loaded."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

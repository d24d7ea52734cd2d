"""Extractors of features, and the origin of features, which keeps unlike ones apart.

Metrics differ between packages mostly by extractor, layer, resize and weights. So every set of
features carries those four as its `Origin`, and comparing across origins raises.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError

UNSTATED = "unstated"
"""Value of what a statistics file of another tool does not say; agrees with everything."""


@dataclass(frozen=True)
class Origin:
    """Origin of features.

    Attributes:
        extractor: Name of the network.
        layer: Name of the layer in it.
        resize: How images reach the size that the network sees, with that size.
        weights: sha256 of the weights, in hex.
    """

    extractor: str
    layer: str
    resize: str
    weights: str

    @property
    def text(self) -> str:
        """The four in words, for people."""
        return (
            f"{self.extractor}, layer {self.layer}, resize {self.resize}, "
            f"weights {self.weights[:8]}"
        )

    def require(self, other: "Origin", mine: str, theirs: str) -> None:
        """Check that features of both can be compared; `mine`, `theirs` name them in the error."""
        wrong = []
        for field in fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if a != b and UNSTATED not in (a, b):
                wrong += [f"{mine} have {field.name} {a!r}, {theirs} has {b!r}"]
        if wrong:
            raise InputError(
                f"features differ: {'; '.join(wrong)}. Such numbers do not compare: measure both "
                "with the same --extractor, --layer, --size, --noise-mask and --checkpoint"
            )


class Extractor(ABC):
    """A callable from images to features. A class of your own is ready when it is defined."""

    @property
    @abstractmethod
    def origin(self) -> Origin:
        """Name by which features are compared."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return features `(N, d)`, float32, of uint8 images `(N, 3, H, W)`."""


@dataclass(frozen=True)
class Custom(Extractor):
    """Any function from uint8 images `(N, 3, H, W)` to features `(N, d)`, with its origin.

    Features may be an array of numpy.
    """

    function: Callable[[Tensor], Any]
    made: Origin

    def __post_init__(self) -> None:
        if not callable(self.function) or not isinstance(self.made, Origin):
            raise InputError("Custom takes a function and its Origin(extractor, layer, ...)")

    @property
    @override
    def origin(self) -> Origin:
        return self.made

    @override
    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.as_tensor(self.function(pictures(images)))


def pictures(images: Tensor) -> Tensor:
    """Return `images` when they are uint8 RGB images, `(N, 3, H, W)`."""
    if not isinstance(images, Tensor):
        raise InputError(
            f"images are a {type(images).__name__}: give a tensor, uint8 (N, 3, H, W) in [0, 255]"
        )
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"images have dtype {images.dtype} and shape {tuple(images.shape)}: give uint8 "
            "(N, 3, H, W) in [0, 255]; samples x in [-1, 1] become (127.5 x + 127.5).round()"
        )
    return images


def resized(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images to `(N, 3, size, size)`, float32 whole numbers in [0, 255].

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


def key_of(images: Mapping[str, Any], extractor: Extractor) -> dict[str, Any]:
    """All that decides the features of a seed: what decides its image, and the extractor."""
    origin = asdict(extractor.origin)
    return {**images, **{f"features.{name}": value for name, value in origin.items()}}

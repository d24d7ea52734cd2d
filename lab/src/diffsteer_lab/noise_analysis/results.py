"""What experiments on noise find: distances between images, relative to others, over seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffsteer.metrics.bootstrap import Interval, interval, weights

if TYPE_CHECKING:
    from PIL.Image import Image

RESAMPLES = 1000
THUMBNAIL = 256
"""Most pixels of a side of images that are kept."""


class Estimate(NamedTuple):
    """A number over seeds, and where it would lie with other seeds, at 95 %."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.interval.low:.3g} to {self.interval.high:.3g})"


@lru_cache(maxsize=4)
def _weights(n: int) -> Tensor:
    return weights(n, RESAMPLES).double()


def means(rows: Tensor) -> list[Estimate]:
    """Mean of each column over the rows, `(N, d)`, one a seed, N >= 2."""
    resampled = _weights(len(rows)) @ rows.double() / len(rows)
    values = rows.double().mean(dim=0).tolist()
    return [Estimate(v, interval(v, r)) for v, r in zip(values, resampled.mT, strict=True)]


def ratio(over: Tensor, under: Tensor) -> Estimate | None:
    """Sum of `over` by that of `under`, `(N,)` each >= 0, paired over seeds.

    None where `under` is 0 throughout: of images that do not differ at all.
    """
    if under.sum() == 0:
        return None
    value, w = float(over.sum() / under.sum()), _weights(len(over))
    w = w[w @ under > 0]
    return Estimate(value, interval(value, (w @ over) / (w @ under)))


@dataclass(frozen=True, eq=False)
class Samples:
    """What a sampling makes of noise.

    Attributes:
        latents: `(B, *D)`, float32.
        pictures: uint8, `(B, 3, H, W)`.
        features: Of the images, `(B, d)`; None without an extractor.
        path: The x0 that the network predicted at each step, like the latents; where it was asked
            for. Schedulers of second order take two steps for one.
    """

    latents: Tensor
    pictures: Tensor
    features: Tensor | None = None
    path: tuple[Tensor, ...] = ()

    def apart(self, other: "Samples") -> dict[str, Tensor]:
        """Mean squared differences of rows, `(B,)` in float64, by the space that they are of."""
        found = {"latents": (self.latents, other.latents)}
        found["pictures"] = (self.pictures, other.pictures)
        if self.features is not None and other.features is not None:
            found["features"] = (self.features, other.features)
        return {
            space: (a.double() - b.double()).square().flatten(1).mean(dim=1).cpu()
            for space, (a, b) in found.items()
        }


class Thumbnail(NamedTuple):
    """An image of the page, and what is written under it."""

    image: "Image"
    caption: str


class Results:
    """Results of experiments, by experiment and by name within it, gathered part by part.

    Args:
        show: Images of so many seeds are kept, of the first.

    Attributes:
        pictures: Those that are kept, small.
    """

    def __init__(self, show: int) -> None:
        self.show = show
        self.pictures: dict[str, dict[str, list[Thumbnail]]] = {}
        self._ratios: dict[str, dict[str, dict[str, list[tuple[Tensor, Tensor]]]]] = {}
        self._numbers: dict[str, dict[str, list[Tensor]]] = {}

    def compare(self, experiment: str, name: str, got: Samples, to: Samples, base: Samples) -> None:
        """Note how far `got` is from `to`, where `base` is at 1."""
        under = base.apart(to)
        for space, over in got.apart(to).items():
            self.divide(experiment, name, space, over, under[space])

    def divide(self, experiment: str, name: str, space: str, over: Tensor, under: Tensor) -> None:
        """Note two numbers each, `(B,)` >= 0, of which the ratio of sums is to be known."""
        found = self._ratios.setdefault(experiment, {}).setdefault(name, {})
        found.setdefault(space, []).append((over, under))

    def note(self, experiment: str, name: str, values: Tensor) -> None:
        """Note a number each, `(B,)`."""
        self._numbers.setdefault(experiment, {}).setdefault(name, []).append(values)

    def keep(
        self, experiment: str, name: str, drawn: Samples, captions: list[str] | None = None
    ) -> None:
        """Keep images of the first seeds."""
        self.keep_images(experiment, name, drawn.pictures, captions)

    def keep_images(
        self, experiment: str, name: str, pictures: Tensor, captions: list[str] | None = None
    ) -> None:
        """Keep those of the first seeds, of uint8 `(B, 3, H, W)`."""
        from PIL import Image

        held = self.pictures.setdefault(experiment, {}).setdefault(name, [])
        for i in range(min(self.show - len(held), len(pictures))):
            image = Image.fromarray(pictures[i].permute(1, 2, 0).cpu().numpy())
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            held.append(Thumbnail(image, captions[i] if captions else ""))

    def wanted(self, experiment: str, name: str) -> int:
        """How many more images are to be kept."""
        return self.show - len(self.pictures.get(experiment, {}).get(name, ()))

    def ratios(self, experiment: str) -> dict[str, dict[str, Estimate]]:
        """What was noted, by name and space; of `compare`, squared distances, that of `base` 1."""
        return {
            name: {
                space: found
                for space, parts in spaces.items()
                if (found := ratio(*(torch.cat(side) for side in zip(*parts, strict=True))))
            }
            for name, spaces in self._ratios.get(experiment, {}).items()
        }

    def numbers(self, experiment: str) -> Mapping[str, Estimate]:
        """Means of what `note` noted, by name."""
        return {
            name: means(torch.cat(parts)[:, None])[0]
            for name, parts in self._numbers.get(experiment, {}).items()
        }

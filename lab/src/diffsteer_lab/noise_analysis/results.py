"""Results of experiments on noise as tidy rows: distances relative to others, over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffsteer.metrics.bootstrap import Estimate, Interval, interval, weights

if TYPE_CHECKING:
    from PIL.Image import Image

RESAMPLES = 1000
THUMBNAIL = 256
"""Most pixels of a side of images that are kept."""


@lru_cache(maxsize=4)
def _weights(n: int) -> Tensor:
    return weights(n, RESAMPLES).double()


def means(rows: Tensor) -> list[Estimate]:
    """Mean of each column over the rows, `(N, d)`, one a seed, N >= 2."""
    resampled = _weights(len(rows)) @ rows.double() / len(rows)
    values = rows.double().mean(dim=0).tolist()
    return [Estimate(v, interval(v, r)) for v, r in zip(values, resampled.mT, strict=True)]


def ratio(over: Tensor, under: Tensor) -> Estimate | None:
    """Sum of `over` by that of `under`, `(N,)` each, `under` >= 0, paired over seeds.

    None where `under` is 0 throughout: of images that do not differ at all.
    """
    if under.sum() == 0:
        return None
    value, w = float(over.sum() / under.sum()), _weights(len(over))
    w = w[w @ under > 0]
    low, high = interval(value, (w @ over) / (w @ under))
    return Estimate(value, Interval(max(low, 0.0) if bool((over >= 0).all()) else low, high))


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of some seeds.

    Attributes:
        latents: `(B, *D)`, float32.
        images: uint8, `(B, 3, H, W)`.
        features: Of the images, `(B, d)`; None without an extractor.
        path: The x0 that the network predicted at each step, like the latents; where it was asked
            for. Schedulers of second order take two steps for one.
    """

    latents: Tensor
    images: Tensor
    features: Tensor | None = None
    path: tuple[Tensor, ...] = ()

    def apart(self, other: "Samples") -> dict[str, Tensor]:
        """Mean squared differences, `(B,)` in float64, by space: latents, pictures, features."""
        pairs = {"latents": (self.latents, other.latents), "pictures": (self.images, other.images)}
        if self.features is not None and other.features is not None:
            pairs["features"] = (self.features, other.features)
        return {
            space: (a.double() - b.double()).square().flatten(1).mean(dim=1).cpu()
            for space, (a, b) in pairs.items()
        }


class Thumbnail(NamedTuple):
    """Small image of the page with its caption."""

    image: "Image"
    caption: str


class Row(NamedTuple):
    """Two numbers a seed, `(B,)`, whose ratio of sums is of interest.

    Attributes:
        experiment: Its name.
        name: What was varied in it.
        space: Of the distance; empty for a number that is no distance.
        over: Numerators.
        under: Denominators >= 0; ones where the mean of `over` is of interest.
    """

    experiment: str
    name: str
    space: str
    over: Tensor
    under: Tensor


def _over_all(rows: Sequence[Row]) -> Estimate | None:
    return ratio(torch.cat([r.over for r in rows]), torch.cat([r.under for r in rows]))


class Results:
    """Tidy rows of all experiments, gathered part by part, and images of the first seeds.

    Args:
        show: Number of seeds of which images are kept.

    Attributes:
        images: Those that are kept, small, by experiment and name.
    """

    def __init__(self, show: int) -> None:
        self.show = show
        self.images: dict[str, dict[str, list[Thumbnail]]] = {}
        self._rows: list[Row] = []

    def compare(self, experiment: str, name: str, got: Samples, to: Samples, base: Samples) -> None:
        """Note how far `got` is from `to`, where `base` is at 1."""
        under = base.apart(to)
        for space, over in got.apart(to).items():
            self.divide(experiment, name, space, over, under[space])

    def divide(self, experiment: str, name: str, space: str, over: Tensor, under: Tensor) -> None:
        """Note two numbers a seed, of which the ratio of sums is of interest."""
        self._rows.append(Row(experiment, name, space, over.double(), under.double()))

    def note(self, experiment: str, name: str, values: Tensor) -> None:
        """Note a number a seed, of which the mean is of interest."""
        self.divide(experiment, name, "", values, torch.ones_like(values))

    def keep(
        self, experiment: str, name: str, images: Tensor, captions: Sequence[str] = ()
    ) -> None:
        """Keep those of the first seeds, of uint8 `(B, 3, H, W)`."""
        from PIL import Image

        kept = self.images.setdefault(experiment, {}).setdefault(name, [])
        for i in range(min(self.show - len(kept), len(images))):
            image = Image.fromarray(images[i].permute(1, 2, 0).cpu().numpy())
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            kept.append(Thumbnail(image, captions[i] if captions else ""))

    def wanted(self, experiment: str, name: str) -> int:
        """Number of images that are still to be kept."""
        return self.show - len(self.images.get(experiment, {}).get(name, ()))

    def ratios(self, experiment: str) -> dict[str, dict[str, Estimate]]:
        """Estimates by name and space; of `compare`, squared distances where `base` is at 1."""
        parts: dict[str, dict[str, list[Row]]] = {}
        for row in self._rows:
            if row.experiment == experiment:
                parts.setdefault(row.name, {}).setdefault(row.space, []).append(row)
        return {
            name: {
                space: estimate
                for space, rows in spaces.items()
                if (estimate := _over_all(rows)) is not None
            }
            for name, spaces in parts.items()
        }

    def numbers(self, experiment: str) -> dict[str, Estimate]:
        """Means of what `note` noted, by name."""
        return {name: spaces[""] for name, spaces in self.ratios(experiment).items()}

"""Evaluate images in memory or in folders against a reference."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from diffsteer.io.images import Pictures, stacked
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.evaluate import compare, spreads
from diffsteer.metrics.features import Extractor
from diffsteer.metrics.measure import KEEP, measure
from diffsteer.metrics.statistics import Statistics
from diffsteer.metrics.value import MetricValue

BATCH = 32
"""Images in one forward pass of the extractor."""
STATISTICS = ".npz"
"""What the names of statistics files end in."""


def evaluate(
    images: Tensor | Path | str,
    reference: Tensor | Path | str,
    extractor: Extractor | None = None,
    resamples: int = 200,
) -> tuple[MetricValue, ...]:
    """All metrics that a set of images and a reference allow, as `diffsteer evaluate`.

    Args:
        images: uint8 `(N, 3, H, W)`, or a folder, zip file or statistics file (.npz).
        reference: The same, of real images.
        extractor: Of the features; None for EfficientNet-Lite0.
        resamples: For the intervals, >= 20; 0 for none.

    Raises:
        InputError: a statistics file holds features of another extractor.
        OSError: a folder or file is not there.
    """
    extractor = extractor or EfficientNetLite0()
    for side in (images, reference):
        require_comparable(side, extractor)
    fake, real = (statistics_of(side, extractor) for side in (images, reference))
    return compare(fake, real, spread=spreads(fake, real, resamples))


def require_comparable(images: Tensor | Path | str, extractor: Extractor) -> None:
    """Check, before any work, that images are there, or features of this extractor.

    Raises:
        InputError: a folder has none, or a statistics file those of another extractor.
        OSError: a folder or file is not there.
    """
    if isinstance(images, Tensor):
        return
    if Path(images).suffix == STATISTICS:
        origin = Statistics.load(Path(images)).origin
        extractor.origin.require(origin, "the pictures", str(images))
    else:
        Pictures.at(Path(images))


def statistics_of(
    images: Tensor | Path | str,
    extractor: Extractor,
    batch: int = BATCH,
    keep: int = KEEP,
    kinds: Counter[str] | None = None,
) -> Statistics:
    """Statistics of images, measured or, of a statistics file, read.

    Args:
        images: uint8 `(N, 3, H, W)`, or a folder, zip file or statistics file (.npz).
        extractor: Of the features.
        batch: Images in one forward pass of the extractor.
        keep: Images of which features are kept, for metrics other than Frechet distances.
        kinds: Counts what image files hold, "RGB 64x64".
    """
    if isinstance(images, Tensor):
        return measure(torch.split(images, batch), len(images), extractor, keep)
    if Path(images).suffix == STATISTICS:
        return Statistics.load(Path(images))
    folder = Pictures.at(Path(images))
    return measure(_batches(folder, batch, kinds), len(folder), extractor, keep)


def _batches(folder: Pictures, size: int, kinds: Counter[str] | None) -> Iterator[Tensor]:
    """Yield batches with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(folder), unit="picture", desc=folder.path.name, disable=None) as bar:
        for images in folder.batches(size):
            if kinds is not None:
                height, width = images[0].pixels.shape[1:]
                kinds.update(f"{image.found} {width}x{height}" for image in images)
            yield stacked(images)
            bar.update(len(images))

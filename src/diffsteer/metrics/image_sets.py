"""Evaluate images in memory or in folders against a reference."""

from pathlib import Path

import torch
from torch import Tensor

from diffsteer.io.images import Pictures, stacked
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.evaluate import compare, spreads
from diffsteer.metrics.features import Extractor
from diffsteer.metrics.measure import measure
from diffsteer.metrics.statistics import Statistics
from diffsteer.metrics.value import MetricValue

BATCH = 32
"""Images in one forward pass of the extractor."""


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
    fake, real = (_statistics(side, extractor) for side in (images, reference))
    return compare(fake, real, spread=spreads(fake, real, resamples))


def _statistics(images: Tensor | Path | str, extractor: Extractor) -> Statistics:
    if isinstance(images, Tensor):
        return measure(torch.split(images, BATCH), len(images), extractor)
    if Path(images).suffix == ".npz":
        return Statistics.load(Path(images))
    folder = Pictures.at(Path(images))
    return measure(map(stacked, folder.batches(BATCH)), len(folder), extractor)

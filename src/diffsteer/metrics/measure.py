"""Statistics of a stream of images in one pass: moments of all, features of a random part."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.metrics.features import Extractor
from diffsteer.metrics.frechet import Gaussian
from diffsteer.metrics.moments import Moments, table
from diffsteer.metrics.statistics import Statistics

KEEP = 10_000
"""Pictures of which features are kept by default: ADM's number for precision and recall."""


def measure(
    batches: Iterable[Tensor], n: int, extractor: Extractor, keep: int = KEEP
) -> Statistics:
    """Measure images as they come.

    Args:
        batches: uint8 images, `(N, 3, H, W)` each, `n` in all.
        n: Number of images, >= 2: known ahead, so that the kept ones are a random part.
        extractor: Of the features.
        keep: Images of which features are kept, for metrics other than Frechet distances.

    Raises:
        ValueError: other than `n` images came, or the features are no finite table.
    """
    chosen = kept(n, keep)
    moments, rows, seen = None, [], 0
    for images in batches:
        seen += len(images)
        if seen > n:
            break
        features = table(extractor(images)).cpu()
        batch = Moments.of(features)
        moments = batch if moments is None else moments + batch
        rows.append(features[chosen[seen - len(images) : seen]].float())
    if moments is None or seen != n:
        more = " or more" if seen > n else ""
        raise InputError(f"{n} images were announced but {seen}{more} came: count them anew")
    return Statistics(extractor.origin, Gaussian.of(moments), n, torch.cat(rows))


def kept(n: int, keep: int) -> Tensor:
    """Mask of the images whose features are kept, `(n,)`: the same for the same n and keep."""
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.from_numpy(np.random.RandomState(0).permutation(n)[:keep])] = True
    return mask

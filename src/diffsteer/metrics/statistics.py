"""Statistics of a set of images, and their file: the `.npz` of pytorch-fid and ADM.

Keys `mu` and `sigma` are theirs; ours add what a reader needs to refuse a wrong comparison (`n`,
`extractor`, `layer`, `resize`, `weights`, `version`), which they ignore, and `features` of a random
part of the images, for metrics that need more than two moments. ADM's own evaluator wants more of
a reference (`mu_s`, `sigma_s`, the images `arr_0`), so its files are read here, ours not there;
whatever reads `mu` and `sigma` alone reads both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.atomic import write_npz
from diffsteer.io.strict import read_npz, refused
from diffsteer.metrics.features import UNSTATED, Extractor, Origin
from diffsteer.metrics.frechet import Gaussian
from diffsteer.metrics.moments import Moments, table

VERSION = 1
ORIGIN = ("extractor", "layer", "resize", "weights")
KEYS = ("mu", "sigma", "n", "version", "features", *ORIGIN)
KEEP = 10_000
"""Images of which features are kept by default: ADM's number for precision and recall."""
INCEPTION_WIDTHS = (64, 192, 768, 2048)
"""Lengths of Inception's layers; what files without an origin hold, by their tools' convention."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of a set of images, and features of some of them.

    Attributes:
        origin: Of the features.
        gaussian: Their mean and covariance.
        n: Number of images; None where another tool's file does not say.
        features: Of a random part of the images, or of all, `(m, d)`, float32; m = 0 for none.
    """

    origin: Origin
    gaussian: Gaussian
    n: int | None
    features: Tensor

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all."""
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(f"{path} does not end in .npz, by which readers know the format")
        arrays = {
            "mu": self.gaussian.mean.numpy(),
            "sigma": self.gaussian.cov.numpy(),
            **{name: np.array(value) for name, value in vars(self.origin).items()},
            "version": np.array(VERSION),
            "features": self.features.to(torch.float32).numpy(),
        }
        if self.n is not None:
            arrays["n"] = np.array(self.n)
        write_npz(path, arrays)

    @classmethod
    def load(cls, path: Path | str) -> "Statistics":
        """Read a file of ours, of pytorch-fid, ADM or EDM."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no statistics file {path}: make one with `diffsteer stats`")
        hint = (
            " (pickles, as EDM2's, can run code and are never read); make one with "
            "`diffsteer stats`"
        )
        with refused(f"{path} is no usable file of statistics", hint):
            return _parsed(read_npz(path, KEYS))


def measure(
    batches: Iterable[Tensor], n: int, extractor: Extractor, keep: int = KEEP
) -> Statistics:
    """Statistics of a stream of images in one pass: moments of all, features of a random part.

    Args:
        batches: uint8 images, `(N, 3, H, W)` each, `n` in all.
        n: Number of images, >= 2: known ahead, so that the kept ones are a random part.
        extractor: Of the features.
        keep: Images of which features are kept, for metrics other than Frechet distances.
    """
    chosen = kept(n, keep)
    moments, rows, seen = None, [], 0
    for images in batches:
        seen += len(images)
        if seen > n:
            break
        features = features_of(extractor, images)
        batch = Moments.of(features)
        moments = batch if moments is None else moments + batch
        rows.append(features[chosen[seen - len(images) : seen]].float())
    if moments is None or seen != n:
        more = " or more" if seen > n else ""
        raise InputError(f"{n} images were announced but {seen}{more} came: count them anew")
    return Statistics(extractor.origin, Gaussian.of(moments), n, torch.cat(rows))


def features_of(extractor: Extractor, images: Tensor) -> Tensor:
    """Features of images, `(N, d)`, on the CPU.

    Raises:
        InputError: an extractor of the user's returned something else.
    """
    with torch.no_grad():
        features = extractor(images)
    if not isinstance(features, Tensor) or len(features) != len(images):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"the extractor {extractor.origin.extractor} gave {shape} for {len(images)} images: it "
            "must give a tensor of one row of floats an image, (N, d)"
        )
    return table(features).cpu()


def kept(n: int, keep: int) -> Tensor:
    """Mask of the images whose features are kept, `(n,)`: the same for the same n and keep."""
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.from_numpy(np.random.RandomState(0).permutation(n)[:keep])] = True
    return mask


def _parsed(arrays: "dict[str, np.ndarray]") -> Statistics:
    if not {"mu", "sigma"} <= arrays.keys():
        raise InputError(f"it holds {', '.join(arrays) or 'nothing'}, not mu and sigma")
    version = int(arrays["version"]) if "version" in arrays else VERSION
    if version > VERSION:
        raise InputError(f"it has version {version}, this program reads up to {VERSION}")
    gaussian = Gaussian(torch.from_numpy(arrays["mu"]), torch.from_numpy(arrays["sigma"]))
    width = len(gaussian.mean)
    features = torch.zeros(0, width)
    if "features" in arrays:
        features = table(torch.from_numpy(arrays["features"]))
    if features.shape[1] != width:
        raise InputError(f"its mean has {width} numbers, its features have {features.shape[1]}")
    n = int(arrays["n"]) if "n" in arrays else None
    if n is not None and not max(2, len(features)) <= n < 2**53:
        raise InputError(f"it says n={n} and holds features of {len(features)} images")
    return Statistics(_origin(arrays, width), gaussian, n, features)


def _origin(arrays: "dict[str, np.ndarray]", width: int) -> Origin:
    if "extractor" in arrays:
        if missing := set(ORIGIN) - arrays.keys():
            raise InputError(f"it names an extractor, but not {', '.join(sorted(missing))}")
        return Origin(*(str(arrays[name]) for name in ORIGIN))
    if width not in INCEPTION_WIDTHS:
        raise InputError(
            f"it does not say which extractor made its {width} numbers, and Inception, which such "
            "files hold by convention, has 2048"
        )
    return Origin("Inception", str(width), UNSTATED, UNSTATED)

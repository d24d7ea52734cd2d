"""Sets of images in memory, folders, zip files or statistics files, and their evaluation."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import offers
from diffsteer.generate.recipe import KEY, Recipe, parsed
from diffsteer.io.hashing import differences
from diffsteer.io.images import PictureError, Pictures, stacked
from diffsteer.io.seeds import format_seeds
from diffsteer.metrics.bootstrap import require_resamples
from diffsteer.metrics.comparison import Compared, compared
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.evaluate import cautions, spreads
from diffsteer.metrics.evaluate import compare as measured
from diffsteer.metrics.features import UNSTATED, Extractor
from diffsteer.metrics.image_scores import (
    count,
    judged,
    mean_spreads,
    means,
    named,
    require_scored,
    scores_of,
)
from diffsteer.metrics.sampled import Sampled
from diffsteer.metrics.statistics import KEEP, Statistics, measure
from diffsteer.metrics.value import MetricValue

BATCH = 32
"""Images in one forward pass of the extractor."""
STATISTICS = ".npz"
"""Suffix of statistics files."""
PROMPTS = ("prompt", "prompts")
"""Fields in which images of one recipe differ."""


def evaluate(
    images: Tensor | Path | str,
    reference: Tensor | Path | str,
    extractor: Extractor | None = None,
    resamples: int = 200,
    scores: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> tuple[MetricValue, ...]:
    """All metrics that a set of images and a reference allow, as `diffsteer evaluate`.

    Warns where there are too few images for a metric.

    Args:
        images: uint8 `(N, 3, H, W)`, or a folder, zip file or statistics file (.npz).
        reference: The same, of real images.
        extractor: Of the features; None for EfficientNet-Lite0.
        resamples: For the intervals, >= 20; 0 for none.
        scores: Texts of scores, such as 'PickScore("WEIGHTS")' or "MODULE:FUNCTION".
        prompts: One of each image, for scores that read them; images of `diffsteer sample` hold
            theirs.
    """
    extractor, judges = _extractor(extractor), scores_of(scores)
    require_resamples(resamples, none=True)
    sides = tuple(map(_given, (images, reference)))
    for side in sides:
        require_comparable(side, extractor)
    each = judged(_pictures(images), judges, prompts) if judges or prompts else {}
    fake, real = (statistics_of(side, extractor) for side in sides)
    _warn(fake, real)
    figures = measured(fake, real, spread=spreads(fake, real, resamples))
    return figures + means(each, named(judges), spread=mean_spreads(each, resamples))


def compare(
    images: Mapping[str, Tensor | Path | str],
    reference: Tensor | Path | str,
    *,
    extractor: Extractor | None = None,
    resamples: int = 200,
    scores: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> tuple[Compared, ...]:
    """Compare sets of images of the same seeds, with paired differences from the first.

    Warns where there are too few images for a metric. Statistics are compared by
    `metrics.evaluate.compare`.

    Args:
        images: Sets by name, as for `evaluate`, but no statistics files. Images in the same place
            of the order of names are of one seed and prompt.
        reference: Of real images, as for `evaluate`.
        extractor: Of the features; None for EfficientNet-Lite0.
        resamples: For the intervals, >= 20.
        scores: As for `evaluate`.
        prompts: As for `evaluate`.
    """
    if not isinstance(images, Mapping) or len(images) < 2:
        raise InputError('give two sets of images or more by name, {"a": "x/", "b": "y/"}')
    extractor, judges = _extractor(extractor), scores_of(scores)
    require_resamples(resamples)
    require_scored(prompts, judges)
    require_comparable(_given(reference), extractor)
    sizes = {name: _size(name, side) for name, side in images.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"sets hold {sizes} images: give one of each seed in all of them")
    real = statistics_of(reference, extractor)
    runs = {
        name: Sampled(
            tuple(range(sizes[name])),
            statistics_of(side, extractor, keep=sizes[name]),
            {},
            judged(_pictures(side), judges, prompts),
        )
        for name, side in images.items()
    }
    _warn(next(iter(runs.values())).statistics, real)
    return compared(runs, real, resamples, named(judges))


def _size(name: str, images: Tensor | Path | str) -> int:
    if (n := count(_pictures(images))) < 2:
        raise InputError(f"{name} holds {n} image, which has no covariance: give at least 2")
    return n


def _pictures(images: Tensor | Path | str) -> Tensor | Path:
    given = _given(images)
    if isinstance(given, Path):
        require_no_statistics(given)
    return given


def _given(images: Tensor | Path | str) -> Tensor | Path:
    """Images in memory, or the path of some; anything else raises."""
    if not isinstance(images, Tensor | str | os.PathLike):
        raise InputError(
            f"images must be a uint8 tensor (N, 3, H, W), or the path of a folder or zip file, got "
            f"a {type(images).__name__}: of images of Pillow of one size or arrays (H, W, 3), "
            "torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2) is one"
        )
    return images if isinstance(images, Tensor) else Path(images)


def _extractor(extractor: Extractor | None) -> Extractor:
    if extractor is not None and not offers(extractor, "origin"):
        raise InputError(
            f"extractor must be an Extractor, got {brief(extractor)}: give one, such as "
            "EfficientNetLite0(size=64), or Custom(function, Origin(...)) of a function"
        )
    return extractor or EfficientNetLite0()


def require_no_statistics(images: Path) -> None:
    """Check that a path is of images, not of what was measured of them."""
    if images.suffix == STATISTICS:
        raise InputError(f"{images} holds statistics, and images are needed: give their folder")


def _warn(fake: Statistics, real: Statistics) -> None:
    for note in cautions(fake, real):
        warnings.warn(f"too few images for {note}", stacklevel=3)


def require_comparable(images: Tensor | Path | str, extractor: Extractor) -> None:
    """Check, before any work, that 2 images are there, or features of this extractor."""
    if not isinstance(images, Tensor) and Path(images).suffix == STATISTICS:
        origin = Statistics.load(Path(images)).origin
        extractor.origin.require(origin, "the images", str(images))
        return
    _size("the tensor" if isinstance(images, Tensor) else str(images), images)


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

    with tqdm(total=len(folder), unit="img", desc=folder.path.name, disable=None) as bar:
        for images in folder.batches(size):
            if kinds is not None:
                height, width = images[0].pixels.shape[1:]
                kinds.update(f"{image.found} {width}x{height}" for image in images)
            yield stacked(images)
            bar.update(len(images))


def require_one_recipe(wanted: object, mixed: bool) -> None:
    """Check that images are not asked to be of one recipe, or a file of it, and of several."""
    if mixed and wanted is not None:
        raise InputError("--recipe takes images of one recipe alone: leave out it, or --mixed")


def seeds_in(images: Pictures, wanted: Recipe | None = None, mixed: bool = False) -> str:
    """Seeds of images, in words, once they are known to be of one recipe.

    Args:
        images: The images; those of other programs hold no recipe, and then none may.
        wanted: The recipe that must have made them; None for any.
        mixed: Allow several recipes, and images without one; not beside `wanted`.

    Raises:
        InputError: `mixed` is beside `wanted`.
        PictureError: an image was made otherwise than the first or than `wanted`, or a seed is
            there twice; names the file and what differs.
    """
    require_one_recipe(wanted, mixed)
    names: dict[tuple[int, int], str] = {}
    first: tuple[str, dict[str, Any]] | None = None
    for name, text in images.texts(KEY):
        metadata = parsed(text, name)
        if mixed:
            continue
        if wanted is not None:
            options = wanted.options.to_dict() if wanted.options else {}
            seeded = wanted.for_seed(metadata["seed"]) if metadata else wanted
            expected = seeded.to_dict() | options
            _require_same(name, expected, _recipe(metadata), "the recipe asked for")
        shared = {} if metadata is None else _shared(metadata)
        first = first or (name, shared)
        _require_same(name, first[1], shared, first[0])
        if metadata is None:
            continue
        number = (metadata["seed"], metadata.get("frame", 0))  # every frame of a video counts
        if names.setdefault(number, name) != name:
            raise PictureError(f"{name} and {names[number]} both have seed {number[0]}: remove one")
    return format_seeds(sorted({seed for seed, _ in names})) if names else UNSTATED


def _require_same(
    name: str, expected: Mapping[str, Any], recipe: Mapping[str, Any], other: str
) -> None:
    if expected == recipe:
        return
    how = differences(expected, recipe) if expected and recipe else "one of them holds no recipe"
    raise PictureError(
        f"{name} was made otherwise than {other}: {how}. Keep images of each recipe in a folder "
        "of its own, or count them together with --mixed"
    )


def _shared(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Fields in which all images of one recipe agree: the hash of it stands for its prompts."""
    recipe = {name: v for name, v in _recipe(metadata).items() if name not in PROMPTS}
    return recipe | {"recipe": metadata.get("made_by"), "weights": metadata.get("weights")}


def _recipe(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The recipe, and options beside it."""
    return {} if metadata is None else metadata["recipe"] | metadata.get("options", {})

"""Scores of images beside their metrics: the mean over images, with an interval over seeds."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.fields import require_texts
from diffsteer.generate.recipe import KEY, parsed
from diffsteer.io.hashing import file_hash
from diffsteer.io.images import Pictures, stacked
from diffsteer.metrics.best_of_n import Score, scored
from diffsteer.metrics.bootstrap import interval, weights
from diffsteer.metrics.features import UNSTATED, Origin
from diffsteer.metrics.scorer import SHORT, Scorer
from diffsteer.metrics.scores import name_of, score_of
from diffsteer.metrics.value import MetricValue

PREFIX = "score "
"""Begins the names of scores among metrics."""
Judge = Callable[[Tensor, Sequence[int]], Mapping[str, Tensor]]
"""From images and their seeds to numbers of each, `(N,)`, by the texts of scores."""


def scores_of(texts: Sequence[str], device: str = "") -> dict[str, Score]:
    """Scores by their texts, each of which `score_of` reads."""
    texts = (texts,) if isinstance(texts, str) else texts
    if len(set(texts)) < len(texts):
        raise InputError("a score is named twice: name each once")
    return {text: score_of(text, device) for text in texts}


def named(scores: Mapping[str, Score]) -> dict[str, str]:
    """Names of scores with the digests of what decides what they say: weights, or source."""
    return {
        text: f"{name_of(score, text)}{'' if isinstance(score, Scorer) else _source(score)}"
        for text, score in scores.items()
    }


def _source(score: Score) -> str:
    """Digest of the file that defines a function, behind a space; empty where there is none."""
    module = sys.modules.get(getattr(score, "__module__", None) or type(score).__module__)
    file = getattr(module, "__file__", None)
    return f" {file_hash(Path(file))[:SHORT]}" if file and Path(file).is_file() else ""


def judge(scores: Mapping[str, Score], images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """Scores of images, `(N,)` float64 each."""
    return {text: scored(score, images, prompts) for text, score in scores.items()}


def require_scored(prompts: object, scores: Mapping[str, Score]) -> None:
    """Check that prompts, or a file of them, are given for a score."""
    require_texts(prompts, "prompts")
    if prompts and not scores:
        raise InputError("prompts are of scores, and none is named: leave out --prompts")


def judged(
    images: Tensor | Path, scores: Mapping[str, Score], prompts: Sequence[str], batch: int = 32
) -> dict[str, Tensor]:
    """Scores of a tensor, a folder or a zip file, in the order of its images.

    Args:
        images: uint8 `(N, 3, H, W)`, or the path.
        scores: By their texts.
        prompts: One of each image; empty for those that images of `diffsteer sample` hold.
        batch: Images at a time.
    """
    require_scored(prompts, scores)
    if not scores:
        return {}
    texts = _prompts(images, scores, prompts)
    parts: list[dict[str, Tensor]] = []
    start = 0
    for some in _batches(images, batch):
        parts.append(judge(scores, some, texts[start : start + len(some)]))
        start += len(some)
    return {text: torch.cat([part[text] for part in parts]) for text in scores}


def count(images: Tensor | Path) -> int:
    """Number of images of a tensor, a folder or a zip file."""
    return len(images) if isinstance(images, Tensor) else len(Pictures.at(images))


def _batches(images: Tensor | Path, batch: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from torch.split(images, batch)
    else:
        yield from (stacked(some) for some in Pictures.at(images).batches(batch))


def _prompts(
    images: Tensor | Path, scores: Mapping[str, Score], prompts: Sequence[str]
) -> list[str]:
    n = count(images)
    if prompts:
        if len(prompts) != n:
            raise InputError(f"{len(prompts)} prompts for {n} images: give one each, in order")
        return list(prompts)
    readers = [t for t, s in scores.items() if not isinstance(s, Scorer) or s.reads_prompts]
    if not readers:
        return [""] * n
    own = [None] * n if isinstance(images, Tensor) else _own_prompts(images)
    if None not in own:
        return [str(prompt) for prompt in own]
    if need := [t for t in readers if isinstance(scores[t], Scorer)]:
        where = images if isinstance(images, Path) else "the tensor"
        raise InputError(
            f"images of {where} hold no prompts, which {need[0]} reads: give --prompts, a file "
            "with one a line in the order of their names (prompts= in Python)"
        )
    warnings.warn(f"images hold no prompts, and {readers[0]} is given empty ones", stacklevel=4)
    return [prompt or "" for prompt in own]


def _own_prompts(images: Path) -> list[str | None]:
    """Prompts that images of `diffsteer sample` hold; None for others."""
    recipes = [parsed(text, name) for name, text in Pictures.at(images).texts(KEY)]
    return [None if r is None else str(r["recipe"].get("prompt", "")) for r in recipes]


def resampled_means(values: Mapping[str, Tensor], w: Tensor) -> dict[str, Tensor]:
    """Means of each resample by the name of the metric; `w` as of `bootstrap.weights`."""
    return {PREFIX + text: w.double() @ each / len(each) for text, each in values.items()}


def mean_spreads(values: Mapping[str, Tensor], resamples: int) -> dict[str, Tensor]:
    """Resampled means of values, as `means` takes them; empty for 0 resamples."""
    n = len(next(iter(values.values()), ()))
    return resampled_means(values, weights(n, resamples)) if resamples and n > 1 else {}


def means(
    values: Mapping[str, Tensor],
    names: Mapping[str, str],
    seeds: str = UNSTATED,
    spread: Mapping[str, Tensor] | None = None,
) -> tuple[MetricValue, ...]:
    """Means of scores as metrics.

    Args:
        values: By the text of the score, `(N,)`.
        names: As of `named`.
        seeds: Of the images, in words.
        spread: Of `resampled_means`, for the intervals.
    """
    out = []
    for text, each in values.items():
        name, mean = PREFIX + text, each.mean().item()
        within = interval(mean, spread[name]) if spread and name in spread else None
        digest = names.get(text, text)
        origin = Origin(text, "score", "as the score says", digest.rpartition(" ")[2])
        std = each.std().item() if len(each) > 1 else None
        out.append(MetricValue(name, "mean", mean, std, len(each), None, origin, seeds, within))
    return tuple(out)

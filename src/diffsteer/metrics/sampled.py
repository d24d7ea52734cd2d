"""Sample and measure in one pass: no image is written, and a killed run goes on where it was.

`sampled` takes any function from seeds to images. Under `torchrun` or `accelerate launch` every
process takes a share of the seeds. A seed decides its image and no process sees another's, so
figures do not depend on batch, processes or interruptions, up to the rounding of the network (one
grey level in rare pixels) and of sums (1e-12 relative).
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.noise import checked_seeds
from diffsteer.generate.generator import open_generator
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import require_images
from diffsteer.generate.seed_images import SeedImages
from diffsteer.io.atomic import owned
from diffsteer.io.distributed import Processes
from diffsteer.io.hashing import digest, require_plain
from diffsteer.io.shards import Shard, ShardFolder
from diffsteer.metrics.best_of_n import Score
from diffsteer.metrics.features import Extractor, key_of, pictures
from diffsteer.metrics.frechet import Gaussian
from diffsteer.metrics.image_scores import PREFIX, Judge, judge, named
from diffsteer.metrics.moments import F64, Moments
from diffsteer.metrics.statistics import KEEP, Statistics, features_of, kept

Images = Callable[[list[int]], Tensor]
"""Makes one uint8 image a seed, `(N, 3, H, W)`, each the same alone and in any batch."""
Costs = Callable[[], Mapping[str, float]]
"""Cost of making images since the last call, by name, all images together."""
FEATURES = "features"
"""Name of the features in a shard; its other arrays are costs."""
ROWS, SECONDS = 256, 60.0
"""A chunk is written when it has so many samples, or is so old."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """Samples as they were measured.

    Attributes:
        seeds: Of all of them, sorted.
        statistics: Moments of all, features of a random part.
        costs: By name, `(N,)`, in the order of `seeds`: seconds, and what `costs` told.
        scores: By the text of the score, the same.
    """

    seeds: tuple[int, ...]
    statistics: Statistics
    costs: dict[str, Tensor]
    scores: dict[str, Tensor] = field(default_factory=dict)


def sampled(
    images: Images,
    seeds: Sequence[int],
    extractor: Extractor,
    out: Path | str | None = None,
    key: Mapping[str, Any] | None = None,
    batch: int = 8,
    keep: int = KEEP,
    costs: Costs = dict,
    judge: Judge = lambda images, seeds: {},
) -> Sampled:
    """Make images of seeds and measure them; call it in every process where there are several.

    Args:
        images: Makes images; each process asks for its own seeds.
        seeds: At least 2 different ones.
        extractor: Of the features.
        out: Folder, seen by all processes, where measured samples are kept and found again; None
            keeps them in memory.
        key: All that decides the images of `images`, in plain values that JSON knows; needed
            with `out`, which refuses samples of another key.
        batch: Images at a time, >= 1.
        keep: Images of which features are kept, for metrics other than Frechet distances.
        costs: Tells what the last images cost besides seconds.
        judge: Gives numbers of images and their seeds, by the texts of scores; `key` has to name
            what decides them.
    """
    seeds = checked_seeds(seeds)
    order = tuple(sorted(set(seeds)))
    if len(order) < max(2, len(seeds)) or batch < 1:
        raise InputError(f"{len(order)} different seeds of {len(seeds)}, batch={batch}: give at "
                         "least 2 seeds, each once, and batch >= 1")  # fmt: skip
    together = Processes.running()
    make = partial(_measured, images, extractor, costs, judge)
    costs()  # what came before is not ours
    if out is None:
        chunks = list(_chunks(make, order, len(order), batch, together))
        return _joined(chunks, order, extractor, keep, together)
    if key is None:
        raise InputError(f"{out} cannot keep samples without a key: say what decides the images")
    require_plain(key)
    folder = ShardFolder(Path(out), key_of(key, extractor))
    with filled(folder, order, make, batch) as names:
        return _joined(map(folder.read, names), order, extractor, keep, together)


@contextmanager
def filled(
    folder: ShardFolder, order: Sequence[int], make: Callable[[list[int]], Shard], batch: int
) -> Iterator[list[str]]:
    """Add the missing of some seeds to a folder, and keep other programs out until closed.

    In every process: each calls `make` with up to `batch` seeds of its share, and is given the
    names of a share of the chunks.
    """
    together = Processes.running()
    if len(set(together.gathered(folder.digest))) > 1:
        raise InputError("the processes make different images: give all of them the same key")
    with owned(folder.path, together.rank, together.world):
        if together.rank == 0:
            folder.bind()
        done = together.told(folder.done() if together.rank == 0 else None)
        assert done is not None
        present = {seed for seeds in done.values() for seed in seeds}
        missing = [seed for seed in order if seed not in present]
        chunks = _chunks(make, missing, len(order), batch, together)
        names = [folder.add(chunk) for chunk in chunks]
        names += sorted(done)[together.rank :: together.world]
        folder.require(*names)
        yield names


def _chunks(
    make: Callable[[list[int]], Shard],
    missing: Sequence[int],
    total: int,
    batch: int,
    together: Processes,
) -> Iterator[Shard]:
    """Make this process's share of the missing seeds; yield what has come together often enough.

    The first process shows the progress of all: they go at about the same pace.
    """
    from tqdm import tqdm

    seeds, parts, since = missing[together.rank :: together.world], list[Shard](), time.monotonic()
    hidden = None if together.rank == 0 else True
    with tqdm(total=total, initial=total - len(missing), unit="image", disable=hidden) as bar:
        for start in range(0, len(seeds), batch):
            try:
                parts.append(make(list(seeds[start : start + batch])))
            except BaseException:
                if parts:
                    yield Shard.joined(parts)  # what is there is kept
                raise
            bar.update(min(len(parts[-1].seeds) * together.world, total - bar.n))
            last, n = start + batch >= len(seeds), sum(len(part.seeds) for part in parts)
            if last or n >= ROWS or time.monotonic() - since >= SECONDS:
                yield Shard.joined(parts)
                parts, since = [], time.monotonic()


def _measured(
    images: Images, extractor: Extractor, costs: Costs, judge: Judge, seeds: list[int]
) -> Shard:
    start, n = time.perf_counter(), len(seeds)
    made = pictures(images(seeds))
    spent = {"seconds": time.perf_counter() - start, **costs()}
    if len(made) != n:
        raise InputError(f"{len(made)} images came for {n} seeds: return one each, in order")
    features = features_of(extractor, made).float()
    each = {name: torch.full((n,), value / n, dtype=F64) for name, value in spent.items()}
    scores = {PREFIX + text: values for text, values in judge(made, seeds).items()}
    return Shard(tuple(seeds), {FEATURES: features, **each, **scores})


def _joined(
    shards: Iterable[Shard],
    order: tuple[int, ...],
    extractor: Extractor,
    keep: int,
    together: Processes,
) -> Sampled:
    """Join the shards of all processes, in the order of the seeds."""
    keeps = dict(zip(order, kept(len(order), keep).tolist(), strict=True))
    moments, features, costs = None, list[Shard](), list[Shard]()
    for shard in shards:
        arrays = _rows(shard, keeps).arrays
        seeds = [seed for seed in shard.seeds if seed in keeps]
        part = Moments.of(arrays[FEATURES])
        moments = part if moments is None else moments + part
        stays = _rows(shard, {seed for seed in seeds if keeps[seed]})
        features.append(Shard(stays.seeds, {FEATURES: stays.arrays[FEATURES]}))
        costs.append(Shard(tuple(seeds), {n: a for n, a in arrays.items() if n != FEATURES}))
    widths = together.gathered(None if moments is None else len(moments.mean))
    width = next(w for w in widths if w is not None)
    moments = (moments or Moments.empty(width)).reduced(together.group)
    if moments.n != len(order):
        raise InputError(f"{moments.n} samples are there of {len(order)}: was the folder changed?")
    rows = _in_order(features, together)[FEATURES]
    statistics = Statistics(extractor.origin, Gaussian.of(moments), moments.n, rows)
    arrays = _in_order(costs, together)
    scores = {n.removeprefix(PREFIX): a for n, a in arrays.items() if n.startswith(PREFIX)}
    spent = {n: a for n, a in arrays.items() if not n.startswith(PREFIX)}
    return Sampled(order, statistics, spent, scores)


def _rows(shard: Shard, seeds: Container[int]) -> Shard:
    """Part of a shard."""
    rows = [i for i, seed in enumerate(shard.seeds) if seed in seeds]
    arrays = {name: array[rows] for name, array in shard.arrays.items()}
    return Shard(tuple(shard.seeds[i] for i in rows), arrays)


def _in_order(shards: list[Shard], together: Processes) -> dict[str, Tensor]:
    """Arrays of all processes, in the order of the seeds."""
    whole = Shard.joined([shard for part in together.gathered(shards) for shard in part])
    turn = sorted(range(len(whole.seeds)), key=whole.seeds.__getitem__)
    return {name: whole.arrays[name][turn] for name in sorted(whole.arrays)}


def measure_recipe(
    recipe: Recipe,
    seeds: Sequence[int],
    extractor: Extractor,
    work: Path,
    batch: int = 8,
    keep: int = KEEP,
    device: str = "",
    show: Path | None = None,
    shown: int = 0,
    scores: Mapping[str, Score] = MappingProxyType({}),
) -> Sampled:
    """Make and measure the images of a recipe, as `sampled`, in every process.

    Args:
        recipe: Of the images.
        seeds: One image each.
        extractor: Of the features.
        work: Folder of folders for `sampled`, each named by a hash of its key.
        batch: Images at a time, >= 1; changes none of them.
        keep: Images of which features are kept.
        device: Where the networks of the recipe run; empty for a GPU if there is one.
        show: Folder for images to look at; None for none.
        shown: Number of them, of the first seeds.
        scores: Judge each image and its prompt, by their texts.
    """
    with open_generator(recipe, device) as generator:
        require_images(recipe, generator.media)
        folder = None if show is None else SeedImages(show, generator)
        missing = set(folder.missing(sorted(set(seeds))[:shown])) if folder else set()

        def make(part: Sequence[int]) -> Tensor:
            images = generator(part)
            if folder is not None:
                for seed, image in zip(part, images, strict=True):
                    if seed in missing:
                        folder.save(seed, image)
            return images

        def judged(images: Tensor, part: Sequence[int]) -> Mapping[str, Tensor]:
            return judge(scores, images, [recipe.for_seed(seed).prompt for seed in part])

        key = {**generator.key, **({"scores": named(scores)} if scores else {})}
        out = work / digest(key_of(key, extractor))[:16]
        run = sampled(make, seeds, extractor, out, key, batch, keep, generator.nfe, judged)
        if folder is not None:
            processes = Processes.running()
            processes.gathered(len(missing))  # all have written before the first looks
            if processes.rank == 0:
                folder.fill(sorted(missing), batch)
        return run

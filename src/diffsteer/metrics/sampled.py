"""Sample and measure in one pass: no image is written, and a killed run goes on where it was.

`sampled` takes any function from seeds to images. Under `torchrun` or `accelerate launch` every
process takes a share of the seeds. A seed decides its image and no process sees another's, so
figures do not depend on batch, processes or interruptions, up to the rounding of the network (one
grey level in rare pixels) and of sums (1e-12 relative).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.atomic import owned
from diffsteer.io.distributed import Processes
from diffsteer.io.shards import Shard, ShardFolder
from diffsteer.metrics.features import Extractor, key_of, pictures
from diffsteer.metrics.frechet import Gaussian
from diffsteer.metrics.measure import KEEP, kept
from diffsteer.metrics.moments import F64, Moments, table
from diffsteer.metrics.statistics import Statistics

Images = Callable[[list[int]], Tensor]
"""Makes one uint8 image a seed, `(N, 3, H, W)`, each the same alone and in any batch."""
Costs = Callable[[], Mapping[str, float]]
"""What making images cost since the last call, by name, all images together."""
FEATURES = "features"
"""Name of the features in a shard; its other arrays are costs."""
ROWS, SECONDS = 256, 60.0
"""A chunk is written when it has so many samples, or is so old."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """What is known of samples.

    Attributes:
        seeds: Of all of them, sorted.
        statistics: Moments of all, features of a random part.
        costs: By name, `(N,)`, in the order of `seeds`: seconds, and what `costs` told.
    """

    seeds: tuple[int, ...]
    statistics: Statistics
    costs: dict[str, Tensor]


def sampled(
    images: Images,
    seeds: Sequence[int],
    extractor: Extractor,
    out: Path | None = None,
    key: Mapping[str, Any] | None = None,
    batch: int = 8,
    keep: int = KEEP,
    costs: Costs = dict,
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

    Raises:
        ValueError: seeds repeat, `out` holds something else or is in use, or the images or
            features are none.
    """
    order = tuple(sorted(set(seeds)))
    if len(order) < max(2, len(seeds)) or batch < 1:
        raise InputError(f"{len(order)} different seeds of {len(seeds)}, batch={batch}: give at "
                         "least 2 seeds, each once, and batch >= 1")  # fmt: skip
    together = Processes.running()
    make = partial(_measured, images, extractor, costs)
    costs()  # what came before is not ours
    if out is None:
        todo = order[together.rank :: together.world]
        chunks = list(_chunks(make, todo, batch, _Bar(order, 0, together)))
        return _joined(iter(chunks), order, extractor, keep, together)
    if key is None:
        raise InputError(f"{out} cannot keep samples without a key: say what decides the pictures")
    folder = ShardFolder(out, key_of(key, extractor))
    with filled(folder, order, make, batch) as names:
        return _joined(map(folder.read, names), order, extractor, keep, together)


@contextmanager
def filled(
    folder: ShardFolder, order: Sequence[int], make: Callable[[list[int]], Shard], batch: int
) -> Iterator[list[str]]:
    """Add to a folder what it lacks of some seeds, and keep other programs out until closed.

    Call it in every process where there are several: each makes a share, and is given the names of
    a share of the chunks.

    Args:
        folder: Where chunks are kept and found again.
        order: The seeds, each once.
        make: Makes the chunk of some seeds.
        batch: Most seeds that it is given at a time, >= 1.

    Raises:
        ValueError: the folder holds something else or is in use, or the processes disagree.
    """
    together = Processes.running()
    if len(set(together.gathered(folder.digest))) > 1:
        raise InputError("the processes make different pictures: give all of them the same key")
    with owned(folder.path, together.rank, together.world):
        done = together.told(_begun(folder) if together.rank == 0 else None)
        assert done is not None
        there = {seed for held in done.values() for seed in held}
        left = [seed for seed in order if seed not in there]
        bar = _Bar(order, len(order) - len(left), together)
        mine = left[together.rank :: together.world]
        names = [folder.add(chunk) for chunk in _chunks(make, mine, batch, bar)]
        names += sorted(done)[together.rank :: together.world]
        folder.require(*names)
        yield names


def _begun(folder: ShardFolder) -> dict[str, tuple[int, ...]]:
    folder.bind()
    return folder.done()


class _Bar:
    """Progress of all processes, as the first one knows it: all go at about the same pace."""

    def __init__(self, order: Sequence[int], done: int, together: Processes) -> None:
        from tqdm import tqdm

        off = None if together.rank == 0 else True
        self.bar = tqdm(total=len(order), initial=done, unit="picture", disable=off)
        self.world = together.world

    def update(self, n: int) -> None:
        self.bar.update(min(n * self.world, self.bar.total - self.bar.n))


def _chunks(
    make: Callable[[list[int]], Shard], seeds: Sequence[int], batch: int, bar: _Bar
) -> Iterator[Shard]:
    """Make chunks of seeds, a batch at a time; yield what has come together often enough."""
    parts: list[Shard] = []
    since = time.monotonic()
    for start in range(0, len(seeds), batch):
        try:
            parts.append(make(list(seeds[start : start + batch])))
        except BaseException:
            if parts:
                yield Shard.joined(parts)  # what is there is kept
            raise
        bar.update(len(parts[-1].seeds))
        last = start + batch >= len(seeds)
        held = sum(len(part.seeds) for part in parts)
        if last or held >= ROWS or time.monotonic() - since >= SECONDS:
            yield Shard.joined(parts)
            parts, since = [], time.monotonic()
    bar.bar.close()


def _measured(images: Images, extractor: Extractor, costs: Costs, seeds: list[int]) -> Shard:
    start, n = time.perf_counter(), len(seeds)
    made = pictures(images(seeds))
    spent = {"seconds": time.perf_counter() - start, **costs()}
    if len(made) != n:
        raise InputError(f"{len(made)} images came for {n} seeds: return one each, in order")
    features = table(extractor(made)).to("cpu", torch.float32)
    each = {name: torch.full((n,), value / n, dtype=F64) for name, value in spent.items()}
    return Shard(tuple(seeds), {FEATURES: features, **each})


@dataclass(frozen=True, eq=False)
class _Share:
    """What one process knows: where its samples stand in the order, and what is kept of them."""

    places: Tensor
    costs: dict[str, Tensor]
    kept_places: Tensor
    kept_rows: Tensor


def _joined(
    shards: Iterator[Shard],
    order: tuple[int, ...],
    extractor: Extractor,
    keep: int,
    together: Processes,
) -> Sampled:
    """Join the shards of all processes, in the order of the seeds."""
    at = {seed: i for i, seed in enumerate(order)}
    chosen = kept(len(order), keep)
    moments, own = None, list[_Share]()
    for shard in shards:
        rows = [i for i, seed in enumerate(shard.seeds) if seed in at]
        places = torch.tensor([at[shard.seeds[i]] for i in rows], dtype=torch.long)
        arrays = {name: array[rows] for name, array in shard.arrays.items()}
        features = arrays.pop(FEATURES)
        part = Moments.of(features)
        moments = part if moments is None else moments + part
        stays = chosen[places]
        own.append(_Share(places, arrays, places[stays], features[stays]))
    widths = together.gathered(None if moments is None else len(moments.mean))
    width = next(w for w in widths if w is not None)
    moments = (moments or Moments.empty(width)).reduced(together.group)
    shares = [share for part in together.gathered(own) for share in part]
    if moments.n != len(order):
        raise InputError(f"{moments.n} samples are there of {len(order)}: was the folder changed?")
    features = torch.cat([s.kept_rows for s in shares])[_ranks([s.kept_places for s in shares])]
    statistics = Statistics(extractor.origin, Gaussian.of(moments), moments.n, features)
    names = set.intersection(*(set(share.costs) for share in shares))
    turn = _ranks([s.places for s in shares])
    costs = {name: torch.cat([s.costs[name] for s in shares])[turn] for name in sorted(names)}
    return Sampled(order, statistics, costs)


def _ranks(places: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(places)).argsort()

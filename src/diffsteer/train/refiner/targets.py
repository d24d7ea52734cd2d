"""Samples of a guided teacher from the noise of seeds, as targets of a refiner or of an adapter.

Noise is not stored: that of seed i is `Noise([i])`. A folder of targets is one of chunks as
measuring keeps them, with latents in the place of features: bound to its recipe and network, shared
by processes, resumed after any end.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.noise import Noise
from diffsteer.generate.from_noise import noise_shape, predictions, sample_from_noise
from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.network import network_of, unwrap_compiled
from diffsteer.hf.prompt_conditions import require_prompts
from diffsteer.hf.time_arguments import Predicted
from diffsteer.io.hashing import differences, digest
from diffsteer.io.shards import MANIFEST, BrokenShard, Shard, ShardFolder
from diffsteer.io.strict import read_object, refused
from diffsteer.metrics.best_of_n import Score, scored
from diffsteer.metrics.sampled import filled
from diffsteer.refine.metadata import fingerprint
from diffsteer.train.fingerprint import Fingerprint

LATENTS, SCORE = "features", "score"
TRAJECTORY, TIMES = "trajectory", "times"
"""Names of the arrays of a shard; latents are stored as the features of an evaluation are."""


def make(
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    batch: int = 8,
    device: str = "",
    score: Score | None = None,
    scorer: str = "",
    trajectory: bool = False,
) -> int:
    """Sample targets, in each process where there are several; returns how many are there.

    Args:
        recipe: The teacher: model, prompts, guidance, sampler, steps.
        seeds: One target each; seed i shows prompt i mod their number.
        out: Folder; one with other targets is refused.
        batch: Targets at a time, >= 1; changes none of them.
        device: Where; empty for a GPU if there is one.
        score: Judges the image of each target, so that training can leave out the worse.
        scorer: Its name, which binds the folder too.
        trajectory: Keep each step's sample and guided x0 as well, for `diffsteer train agd`.
    """
    require_prompts(list(recipe.prompts))
    if not recipe.guidance:
        raise InputError('the teacher has no guidance: give one to learn from, such as "CFG(6)"')
    if batch < 1 or len(set(seeds)) < len(seeds):
        raise InputError(f"batch={batch}: give at least 1, and each seed once")
    with open_pipeline(recipe, device) as images:
        shape = noise_shape(images.pipe, recipe)
        networks = fingerprint(unwrap_compiled(network_of(images.pipe)))
        key = {**images.key, "networks": networks, "shape": list(shape), "score": scorer}
        key |= {TRAJECTORY: True} if trajectory else {}
        folder = ShardFolder(out, key)

        def chunk(part: list[int]) -> Shard:
            texts = [recipe.for_seed(seed).prompt for seed in part]
            noise = Noise(part)(torch.empty(len(part), *shape))
            steps: list[Predicted] = []
            noted = predictions(images.pipe.scheduler, steps.append)
            with noted if trajectory else nullcontext():
                latents, shown = sample_from_noise(
                    images.pipe, recipe, texts, noise, part, shown=score is not None
                )
            arrays = {LATENTS: latents.flatten(1), **_trajectory(steps, len(part))}
            if score is not None and shown is not None:
                arrays[SCORE] = scored(score, shown, texts)
            return Shard(tuple(part), arrays)

        with filled(folder, sorted(seeds), chunk, batch):
            return len(seeds)


def _trajectory(steps: Sequence[Predicted], n: int) -> dict[str, Tensor]:
    """Arrays of n samples, each with its steps: x and x0, `(n, S, 2, *D)`, and times, `(n, S)`."""
    if not steps:
        return {}
    pairs = [torch.stack([at.x[:n], at.x0[:n]], 1).to("cpu", torch.float32) for at in steps]
    times = torch.stack([at.level.t for at in steps]).expand(n, -1)
    return {TRAJECTORY: torch.stack(pairs, 1), TIMES: times.contiguous()}


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of a folder, in memory.

    Attributes:
        path: The folder.
        key: All that decides them: the recipe, hashes of the weights, the shape.
        seeds: Of the noise of each.
        latents: What the teacher makes of it, `(N, *D)`, float32.
        trajectory: Sample and guided x0 of each step, `(N, S, 2, *D)`, where they were kept.
        times: Of the steps, `(N, S)`, float64.
    """

    path: Path
    key: Mapping[str, Any]
    seeds: tuple[int, ...]
    latents: Tensor
    trajectory: Tensor | None = None
    times: Tensor | None = None

    @classmethod
    def at(cls, path: Path, least: float | None = None) -> "Targets":
        """Read a folder of `make`, without targets that scored less than `least`."""
        folder = ShardFolder(path, _key(path))
        try:
            shards = [folder.read(file.name) for file in sorted(path.glob("chunk-*.npz"))]
        except BrokenShard as error:
            raise InputError(
                f"a chunk of {path} is broken, {error}: give the command of `diffsteer refine "
                "targets` again, which makes its targets anew"
            ) from error
        seeds = [seed for shard in shards for seed in shard.seeds]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{path} holds a seed twice: remove one of its chunks")
        if not seeds:
            raise FileNotFoundError(f"{path} holds no targets yet: run `diffsteer refine targets`")
        latents = _latents(path, shards, folder.key["shape"])
        order = torch.tensor(seeds, dtype=torch.float64).argsort()
        if least is not None:
            if any(SCORE not in shard.arrays for shard in shards):
                raise InputError(f"{path} has no scores: make the targets with --score")
            score = torch.cat([shard.arrays[SCORE] for shard in shards])
            order = order[score[order] >= least]
            if not len(order):
                raise InputError(f"no target scores {least} or more: the best has {score.max():g}")
        steps = [
            torch.cat([shard.arrays[name] for shard in shards])[order]
            for name in (TRAJECTORY, TIMES)
            if folder.key.get(TRAJECTORY)
        ]
        return cls(
            path, folder.key, tuple(seeds[i] for i in order.tolist()), latents[order], *steps
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the targets, as a source of training."""
        values = digest({"targets": self.key, "seeds": self.seeds})[:16]
        return Fingerprint({}, {"samples": len(self.seeds), "digest": values})

    def prompt(self, index: int) -> str:
        """What a target shows."""
        prompts = self.key["prompts"]
        return str(prompts[self.seeds[index] % len(prompts)])

    def require(self, networks: Mapping[str, str], teacher: Mapping[str, Any]) -> None:
        """Refuse targets of another network, or recipe as far as `teacher` says it."""
        if adapters := self.key.get("lora"):
            raise InputError(
                f"{self.path} is of a teacher with adapters, {', '.join(adapters)}: fuse them into "
                "a model of its own, and make targets of that"
            )
        expected = self.key["networks"]
        shared = expected.keys() & networks.keys()
        if any(expected[name] != networks[name] for name in shared):
            raise InputError(
                f"{self.path} holds targets of another network than settings.start: make them with "
                "the model that is trained"
            )
        stored = {name: self.key.get(name) for name in teacher}
        if changes := differences(stored, dict(teacher)):
            raise InputError(
                f"{self.path} holds targets of another teacher: {changes}. Leave settings.teacher "
                "out, or make other targets"
            )


def _latents(path: Path, shards: Sequence[Shard], shape: Sequence[int]) -> Tensor:
    """Latents of all shards, `(N, *D)`, of the shape that the folder says."""
    if (found := {shard.arrays[LATENTS].shape[1] for shard in shards}) != {prod(shape)}:
        raise InputError(
            f"{path} holds targets of {' and '.join(map(str, sorted(found)))} numbers, and its "
            f"{MANIFEST} says shape={shape}: put back the one that it was made with, or make other "
            "targets"
        )
    return torch.cat([shard.arrays[LATENTS] for shard in shards]).reshape(-1, *shape)


def _key(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).exists():
        raise FileNotFoundError(f"{path} holds no targets: run `diffsteer refine targets`")
    with refused(f"{path / MANIFEST} is not one of targets"):
        key = read_object(path / MANIFEST)["key"]
        _ = key["networks"], prod(key["shape"]), key["prompts"]
        return dict(key)

"""Arrays of seeds on disk, bound to all that made them: features, latents of targets, costs.

A folder holds `manifest.json` with a key (recipe, weights, extractor) and shard files with seeds
and arrays. A shard is there whole or not at all, and every array in it has a checksum. What a
killed run leaves is good; seeds that are there are not computed again.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.atomic import put, write_npz
from diffsteer.io.hashing import differences, digest
from diffsteer.io.seeds import format_seeds
from diffsteer.io.strict import read_npz, read_object, refused

VERSION = 1
MANIFEST = "manifest.json"


class BrokenShard(Exception):
    """A shard file that is not as it was written."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Results of some seeds.

    Attributes:
        seeds: N seeds.
        arrays: Results by name, `(N, ...)`, such as "features" and "seconds".
    """

    seeds: tuple[int, ...]
    arrays: dict[str, Tensor]

    @classmethod
    def joined(cls, shards: "Sequence[Shard]") -> "Shard":
        """One shard of several, all of which must have the same arrays."""
        names = shards[0].arrays.keys()
        if other := next((shard for shard in shards if shard.arrays.keys() != names), None):
            raise InputError(
                f"seeds {format_seeds(other.seeds)} have {', '.join(sorted(other.arrays))}, others "
                f"{', '.join(sorted(names))}: measure the same of each; a folder of samples makes "
                "those again whose chunk is removed"
            )
        arrays = {name: torch.cat([shard.arrays[name] for shard in shards]) for name in names}
        return cls(tuple(seed for shard in shards for seed in shard.seeds), arrays)


@dataclass(frozen=True)
class ShardFolder:
    """Shards of one key.

    Attributes:
        path: The folder.
        key: All that decides the results of a seed, in plain values.
    """

    path: Path
    key: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Hash of the key, which every shard carries."""
        return digest(self.key)

    def bind(self) -> None:
        """Write the manifest, or check the one that is there."""
        path = self.path / MANIFEST
        if not path.exists():
            if any(self.path.glob("chunk-*.npz")):
                raise InputError(f"{self.path} has samples, but no {MANIFEST}: take another folder")
            manifest = {"version": VERSION, "key": self.key}
            put(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
            return
        with refused(f"{path} is no manifest of ours: take another folder"):
            stored = read_object(path)
            was, version = {**stored["key"]}, stored["version"]
        if version != VERSION or digest(was) != self.digest:
            changes = differences({**was, "version": version}, {**self.key, "version": VERSION})
            raise InputError(
                f"{self.path} holds samples of something else: {changes}. Take another folder, or "
                "remove this one"
            )

    def done(self) -> dict[str, tuple[int, ...]]:
        """Seeds of every shard by its file; a broken file is set aside, with a warning."""
        done: dict[str, tuple[int, ...]] = {}
        owner: dict[int, str] = {}
        for path in sorted(self.path.glob("chunk-*.npz")):
            try:
                seeds = self.read(path.name).seeds
            except BrokenShard as error:
                path.replace(path.with_suffix(".npz.broken"))
                warnings.warn(
                    f"{path} is broken ({error}): it is set aside as {path.name}.broken and its "
                    "samples are measured again",
                    stacklevel=2,
                )
                continue
            for seed in seeds:
                if seed in owner:
                    raise InputError(
                        f"{path} and {owner[seed]} both hold seed {seed}: remove one of them"
                    )
                owner[seed] = path.name
            done[path.name] = seeds
        return done

    def read(self, name: str) -> Shard:
        """Read a shard and check all that it holds."""
        arrays = _arrays(self.path / name)
        if str(arrays.pop("key")) != self.digest:
            raise InputError(f"{self.path / name} belongs to another folder: remove it")
        seeds = tuple(int(seed) for seed in arrays.pop("seeds"))
        return Shard(seeds, {name: torch.from_numpy(array) for name, array in arrays.items()})

    def require(self, *names: str) -> None:
        """Refuse to go on in a folder of which somebody removed the manifest or a shard."""
        for name in (MANIFEST, *names):
            if not (self.path / name).exists():
                raise InputError(
                    f"{self.path / name} was removed meanwhile: start again, which makes what is "
                    "missing"
                )

    def add(self, shard: Shard) -> str:
        """Write a shard and return the name of its file."""
        self.require()
        name = f"chunk-{min(shard.seeds):020d}.npz"
        arrays = {
            "key": np.array(self.digest),
            "seeds": np.array(shard.seeds, dtype=np.uint64),
            **{name: array.numpy() for name, array in shard.arrays.items()},
        }
        write_npz(self.path / name, arrays)
        return name


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with refused("it cannot be read", error=BrokenShard, absent=True):
        arrays = read_npz(path)
        if missing := {"key", "seeds", "features"} - arrays.keys():
            raise InputError(f"it lacks {', '.join(sorted(missing))}")
        lengths = {len(array) for name, array in arrays.items() if name != "key"}
        if len(lengths) != 1 or arrays["seeds"].dtype != np.uint64 or arrays["seeds"].ndim != 1:
            raise InputError("its arrays have no row for each seed")
        return arrays

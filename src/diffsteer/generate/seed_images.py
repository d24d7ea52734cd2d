"""Folders of images named after their seeds, each with what made it."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.generate.base import Generator, NotFinite
from diffsteer.generate.recipe import metadata
from diffsteer.generate.sample_metadata import metadata_file, require_whole, save
from diffsteer.io.hashing import differences
from diffsteer.io.progress import progress

HOPELESS = 8
"""Samples of which none is finite, after which no more are tried."""


@dataclass(frozen=True, eq=False)
class SeedImages:
    """The images SEED.png of a folder; videos and sounds as `sample_metadata.py` names them.

    Attributes:
        out: The folder.
        generator: Makes them, and knows what decides them.
        subdirs: Sort images into folders of a thousand seeds.
        frames: Keep videos as folders of frames.
    """

    out: Path
    generator: Generator
    subdirs: bool = False
    frames: bool = False

    def path(self, seed: int) -> Path:
        """Path of the image of a seed."""
        name = f"{seed:06d}.png"
        return self.out / f"{seed // 1000 * 1000:06d}" / name if self.subdirs else self.out / name

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Seeds that have no image yet.

        Raises:
            InputError: the folder holds an image of another recipe or model for one of them.
        """
        return [seed for seed in seeds if not self._made(seed)]

    def fill(self, seeds: Sequence[int], batch: int) -> int:
        """Make the images that are missing, each written as soon as its batch is made.

        Args:
            seeds: Of the images.
            batch: Images at a time, >= 1; changes them by rounding alone.

        Returns:
            How many there were already.

        Raises:
            NotFinite: samples of some seeds are not finite. The other images are written, unless
                none of the first HOPELESS is finite.
            InputError: another program makes images there, or images were removed meanwhile.
        """
        from diffsteer.io.atomic import owned

        with owned(self.out, *launch()):
            done = self._fill(seeds, batch)
            if lost := [seed for seed in seeds if self._file(seed) is None]:
                raise InputError(
                    f"{self.out} lacks {len(lost)} of {len(seeds)} images, the first of them of "
                    f"seed {lost[0]}: they were removed meanwhile; start again, which makes them"
                )
        return done

    def _fill(self, seeds: Sequence[int], batch: int) -> int:
        todo, refused = self.missing(seeds), list[int]()
        with progress(len(todo)) as bar:
            for start in range(0, len(todo), batch):
                part = todo[start : start + batch]
                try:
                    images = dict(zip(part, self.generator(part), strict=True))
                except NotFinite as error:
                    images = error.images
                    refused += error.seeds
                for seed, image in images.items():
                    self.save(seed, image)
                bar.update(len(part))
                if HOPELESS <= len(refused) == start + len(part):
                    break
        if refused:
            raise NotFinite(refused, {})
        return len(seeds) - len(todo)

    def _made(self, seed: int) -> bool:
        path = self._file(seed)
        if path is None:
            return False
        table, expected = metadata(path), self.generator.provenance(seed)
        made = {} if table is None else {name: table.get(name) for name in expected}
        if table is None or made != expected:
            why = f"otherwise: {differences(_flat(made), _flat(expected))}"
            raise InputError(
                f"{path} was made {'not by this command' if table is None else why}. Give another "
                "--out, or remove it"
            )
        require_whole(self.path(seed))
        return True

    def _file(self, seed: int) -> Path | None:
        return metadata_file(self.path(seed), self.frames)

    def save(self, seed: int, sample: Tensor) -> None:
        """Write a sample with its metadata."""
        modules = [sys.modules.get(name) for name in ("torch", "diffusers")]
        versions = {module.__name__: module.__version__ for module in modules if module}
        table = {**self.generator.metadata(seed), "seed": seed, "versions": versions}
        rate = 1 if sample.ndim == 3 else self.generator.rate
        sound = self.generator.sound(seed)
        save(self.path(seed), sample, table, rate, self.frames, sound)


def launch() -> tuple[int, int]:
    """Number of this process and of all, where torchrun or accelerate launch started several."""
    rank, world = (int(os.environ.get(name, d)) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= rank < world:
        raise InputError(f"RANK={rank} of WORLD_SIZE={world} processes cannot be: use torchrun")
    return rank, world


def share(seeds: Sequence[int]) -> list[int]:
    """Seeds of this process."""
    rank, world = launch()
    return list(seeds[rank::world])


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Spread out recipe and options of a table, so that differences name their fields."""
    inner = ("recipe", "options")
    flat = {k: v for k, v in table.items() if k not in inner}
    return {**flat, **{k: v for name in inner for k, v in (table.get(name) or {}).items()}}

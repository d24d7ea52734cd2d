"""Folders of images named after their seeds, each with what made it; importable without torch."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import KEY, metadata
from diffsteer.io.hashing import differences

if TYPE_CHECKING:
    from torch import Tensor

    Make = Callable[[Sequence[int]], Tensor]
    """From seeds to images, uint8 `(B, 3, H, W)`."""


@dataclass(frozen=True)
class Numbered:
    """The images SEED.png of a folder.

    Attributes:
        out: The folder.
        decides: From a seed to all that decides its image, in plain values: "recipe", a table,
            and what else is to be written beside it.
        also: Written as well, but does not decide.
        subdirs: Sort images into folders of a thousand seeds.
    """

    out: Path
    decides: Callable[[int], Mapping[str, Any]]
    also: Mapping[str, Any] = field(default_factory=dict)
    subdirs: bool = False

    def path(self, seed: int) -> Path:
        """Where the image of a seed is."""
        name = f"{seed:06d}.png"
        return self.out / f"{seed // 1000 * 1000:06d}" / name if self.subdirs else self.out / name

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Seeds whose images are not there.

        Raises:
            ValueError: one is there that was made otherwise.
        """
        return [seed for seed in seeds if not self._made(seed)]

    def fill(self, seeds: Sequence[int], make: "Make", batch: int) -> None:
        """Make images, some at a time, and write each as soon as it is made."""
        from tqdm import tqdm

        self.out.mkdir(parents=True, exist_ok=True)
        with tqdm(total=len(seeds), unit="picture", disable=None) as bar:
            for start in range(0, len(seeds), batch):
                part = seeds[start : start + batch]
                for seed, picture in zip(part, make(part), strict=True):
                    self._save(seed, picture)
                bar.update(len(part))

    def _made(self, seed: int) -> bool:
        path = self.path(seed)
        if not path.exists():
            return False
        said, wanted = metadata(path), self.decides(seed)
        made = {} if said is None else {name: said.get(name) for name in wanted}
        if said is None or made != wanted:
            why = f"otherwise: {differences(_level(made), _level(wanted))}"
            raise InputError(
                f"{path} was made {'not by this command' if said is None else why}. Give another "
                "--out, or remove it"
            )
        return True

    def _save(self, seed: int, picture: "Tensor") -> None:
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        from diffsteer.io.atomic import atomic_write

        used = [sys.modules.get(name) for name in ("torch", "diffusers")]
        versions = {module.__name__: module.__version__ for module in used if module}
        info = PngInfo()
        said = {**self.decides(seed), **self.also, "seed": seed, "versions": versions}
        info.add_text(KEY, json.dumps(said))
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        with atomic_write(self.path(seed)) as file:
            image.save(file, format="png", pnginfo=info)


def share(seeds: Sequence[int]) -> list[int]:
    """Seeds of this process, where torchrun or accelerate launch started several."""
    rank, world = (int(os.environ.get(name, d)) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= rank < world:
        raise InputError(f"RANK={rank} of WORLD_SIZE={world} processes cannot be: use torchrun")
    return list(seeds[rank::world])


def _level(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table whose recipe and options are spread out, so that differences name their fields."""
    inner = ("recipe", "options")
    flat = {k: v for k, v in table.items() if k not in inner}
    return {**flat, **{k: v for name in inner for k, v in (table.get(name) or {}).items()}}

"""The images of a studio on the disk, each with its recipe."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffsteer.core.errors import InputError
from diffsteer.generate.base import Generator
from diffsteer.generate.recipe import Recipe, recipe_of_png
from diffsteer.generate.sample_metadata import save

if TYPE_CHECKING:
    from diffsteer.studio.render import Sampled

SHOWN = 60
"""Images of the history that the page shows, the newest first."""


@dataclass(frozen=True)
class History:
    """A folder of PNG files, named by recipe and seed, so that one image is kept once.

    Attributes:
        folder: The folder.
    """

    folder: Path

    def add(self, sample: "Sampled", generator: Generator) -> None:
        """Write an image with all that decides it."""
        recipe, seed = generator.recipe, sample.seed
        path = self.folder / f"{recipe.hash[:12]}-{seed}.png"
        modules = [sys.modules.get(name) for name in ("torch", "diffusers")]
        versions = {module.__name__: module.__version__ for module in modules if module}
        save(path, sample.pixels, {**generator.metadata(seed), "seed": seed, "versions": versions})

    def entries(self) -> list[tuple[str, str]]:
        """Path and caption of the newest images."""
        files = [path for path in self.folder.glob("*.png") if path.is_file()]
        files = sorted(files, key=lambda path: -path.stat().st_mtime_ns)[:SHOWN]
        return [(str(path), caption(path)) for path in files]


def caption(path: Path) -> str:
    """Guidance and seed of an image; empty for one without a recipe."""
    try:
        recipe, seed = recipe_of_png(path)
    except InputError:
        return ""
    return f"{recipe.guidance or 'no guidance'}, {recipe.steps} steps, seed {seed}"


def restored(path: Path, trusted: set[str]) -> tuple[Recipe, int]:
    """Recipe and seed of an image, which names nothing on the disk but what is trusted.

    Args:
        path: Of a PNG.
        trusted: Names of models, guides and refiners that the studio was started with.

    Raises:
        InputError: it is no PNG of `diffsteer`, or names another model or file.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path.name[-80:]} is no PNG: drop an image that diffsteer made")
    recipe, seed = recipe_of_png(path)
    files = {recipe.model, recipe.guide, recipe.refiner, recipe.config, recipe.image, recipe.mask}
    files |= set(recipe.lora)
    strange = sorted(name for name in files - trusted if name and not name.startswith("NLG("))
    if strange:
        raise InputError(
            f"this image is of {strange[0]}, which this studio was not started with: "
            f"diffsteer studio {strange[0]}"
        )
    return recipe, seed

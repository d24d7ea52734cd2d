"""Sample a recipe and measure its images in one pass."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from diffsteer.generate.generator import open_generator
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.seed_images import SeedImages
from diffsteer.io.distributed import Processes
from diffsteer.io.hashing import digest
from diffsteer.metrics.features import Extractor, key_of
from diffsteer.metrics.measure import KEEP
from diffsteer.metrics.sampled import Sampled, sampled


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
) -> Sampled:
    """Make and measure the images of a recipe; call it in every process where there are several.

    Args:
        recipe: Of the images.
        seeds: One image each.
        extractor: Of the features.
        work: Folder in which features are kept and found again, under a hash of recipe, weights
            and extractor.
        batch: Images at a time, >= 1; changes none of them.
        keep: Images of which features are kept.
        device: Where the networks of the recipe run; empty for a GPU if there is one.
        show: Folder for images to look at; None for none.
        shown: Number of them, of the first seeds.
    """
    with open_generator(recipe, device) as generator:
        folder = None if show is None else SeedImages(show, generator)
        missing = set(folder.missing(sorted(set(seeds))[:shown])) if folder else set()
        images: dict[int, Tensor] = {}

        def make(part: Sequence[int]) -> Tensor:
            made = generator(part)
            pairs = zip(part, made, strict=True)
            images.update({seed: image for seed, image in pairs if seed in missing})
            return made

        out, key = work / digest(key_of(generator.key, extractor))[:16], generator.key
        run = sampled(make, seeds, extractor, out, key, batch, keep, generator.nfe)
        if folder is not None:
            for seed, image in images.items():
                folder.save(seed, image)
            processes = Processes.running()
            processes.gathered(len(images))  # all have written before the first looks
            if processes.rank == 0:
                folder.fill(sorted(missing), batch)
        return run

"""Open what makes images: `with open_generator(recipe) as generate: images = generate([0, 1])`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from diffsteer.generate import adm, edm2, pipelines
from diffsteer.generate.base import Generator
from diffsteer.generate.options import ADM, EDM2
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import kind_of, require_consistent
from diffsteer.io.device import device_of

__all__ = ["Generator", "open_generator", "rehearse"]


@contextmanager
def open_generator(recipe: Recipe, device: str = "") -> Iterator[Generator]:
    """Load the models of a recipe, and make its images until closed.

    Args:
        recipe: Of a diffusers pipeline, of a folder of `diffsteer convert`, or of a preset.
        device: Where networks run; empty for a GPU if there is one.

    Raises:
        InputError: the recipe says what cannot be, or what its model does not take.
        OSError: a model is not there.
    """
    require_consistent(recipe)
    openers = {EDM2: edm2.open_edm2, ADM: adm.open_adm, "": pipelines.open_pipeline}
    with openers[kind_of(recipe)](recipe, device_of(device)) as generator:
        try:
            yield generator
        finally:
            generator.closed = True


def rehearse(recipes: Iterable[Recipe], device: str = "") -> None:
    """Make the first step of each recipe, so that all that is wrong shows before one is sampled."""
    for recipe in recipes:
        with open_generator(recipe, device) as generator:
            generator.rehearse()

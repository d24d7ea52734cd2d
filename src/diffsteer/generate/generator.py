"""Open what makes images: `with open_generator(recipe) as generate: images = generate([0, 1])`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from diffsteer.core.errors import InputError
from diffsteer.generate import adm, edm2, pipelines
from diffsteer.generate.base import Generator
from diffsteer.generate.options import ADM, EDM2, ADMOptions, EDM2Options, format_of
from diffsteer.generate.recipe import Recipe

__all__ = ["Generator", "open_generator"]


@contextmanager
def open_generator(recipe: Recipe, device: str = "") -> Iterator[Generator]:
    """Load the models of a recipe, and make its images until closed.

    Args:
        recipe: Of a diffusers pipeline, of a folder of `diffsteer convert`, or of a preset.
        device: Where networks run; empty for a GPU if there is one.

    Raises:
        InputError: the model does not take what the recipe sets, or the recipe names none.
        OSError: a model is not there.
    """
    options, kind = recipe.options, format_of(recipe.model)
    opened: AbstractContextManager[Generator]
    if isinstance(options, EDM2Options) and (kind == EDM2 or options.preset):
        opened = edm2.open_edm2(recipe, options, device)
    elif isinstance(options, ADMOptions) and kind == ADM:
        opened = adm.open_adm(recipe, options, device)
    elif options is not None:
        raise InputError(f"{recipe.model} does not take {type(options).__name__}: leave them out")
    elif kind == EDM2:
        opened = edm2.open_edm2(recipe, EDM2Options(), device)
    elif kind == ADM:
        opened = adm.open_adm(recipe, ADMOptions(), device)
    else:
        opened = pipelines.open_pipeline(recipe, device)
    with opened as generator:
        yield generator

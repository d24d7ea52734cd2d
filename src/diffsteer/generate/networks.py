"""Checks that EDM2 and ADM networks share, before a network is loaded."""

from dataclasses import fields

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance import Guidance


def require_only(recipe: Recipe, kind: str, used: tuple[str, ...]) -> None:
    """Refuse settings of a recipe that such a network does not take.

    Raises:
        InputError: one is not at its default.
    """
    for field in fields(Recipe):
        name = field.name
        if name not in (*used, "options") and getattr(recipe, name) != field.default:
            raise InputError(f"{recipe.model} is an {kind} network, which takes no {name}")


def guidance_of(recipe: Recipe) -> Guidance | None:
    """Guidance of a recipe; None for none.

    Raises:
        InputError: the recipe names a guide that its guidance does not evaluate.
    """
    guidance = parse(recipe.guidance, Guidance) if recipe.guidance else None
    if recipe.guide and "guide" not in networks_of(guidance):
        raise InputError(
            f"guide={recipe.guide} does nothing with guidance={recipe.guidance!r}: give one that "
            'asks it, such as --guidance "Auto(1.7)", or no guide'
        )
    return guidance


def networks_of(guidance: Guidance | None) -> set[str]:
    """Names of the networks that the parts of a guidance evaluate besides the main one."""
    return {getattr(part, "net", "") for part in guidance.parts()} if guidance else set()

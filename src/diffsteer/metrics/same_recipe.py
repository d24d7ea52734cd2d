"""Finds images in a folder that do not belong to the others, by the recipes that they hold."""

from collections.abc import Mapping
from typing import Any

from diffsteer.generate.recipe import KEY, Recipe, parsed
from diffsteer.io.hashing import differences
from diffsteer.io.images import PictureError, Pictures
from diffsteer.io.seeds import format_seeds
from diffsteer.metrics.features import UNSTATED

OWN = ("prompt", "prompts")
"""Fields in which images of one recipe differ; the hash of the whole recipe stands for them."""


def seeds_in(found: Pictures, wanted: Recipe | None = None, mixed: bool = False) -> str:
    """Seeds of the images, in words, once they are known to be of one recipe.

    Args:
        found: The images; those of other programs hold no recipe, and then none may.
        wanted: The recipe that must have made them; None for any.
        mixed: Allow several recipes, and images without one.

    Raises:
        PictureError: an image was made otherwise than the first or than `wanted`, or a seed is
            there twice; names the file and what differs.
    """
    names: dict[int, str] = {}
    first: tuple[str, dict[str, Any]] | None = None
    for name, text in found.texts(KEY):
        said = parsed(text, name)
        if mixed and wanted is None:
            continue
        if wanted is not None:
            options = wanted.options.to_dict() if wanted.options else {}
            expected = wanted.for_seed(said["seed"]).to_dict() | options if said else {}
            _require(name, expected, _recipe(said), "asked")
        now = {} if said is None else _shared(said)
        first = first or (name, now)
        _require(name, first[1], now, first[0])
        if said is not None and names.setdefault(said["seed"], name) != name:
            raise PictureError(
                f"{name} and {names[said['seed']]} both have seed {said['seed']}: remove one"
            )
    return format_seeds(list(names)) if names else UNSTATED


def _require(name: str, was: Mapping[str, Any], now: Mapping[str, Any], other: str) -> None:
    if was == now and (now or other != "asked"):
        return
    how = differences(was, now) if was and now else "one of them holds no recipe"
    whom = "the recipe asked for" if other == "asked" else other
    raise PictureError(
        f"{name} was made otherwise than {whom}: {how}. Keep images of each recipe in a folder "
        "of its own, or count them together with --mixed"
    )


def _shared(said: Mapping[str, Any]) -> dict[str, Any]:
    """What all images of one recipe say alike."""
    recipe = {name: value for name, value in _recipe(said).items() if name not in OWN}
    return recipe | {"recipe": said.get("made_by"), "weights": said.get("weights")}


def _recipe(said: Mapping[str, Any] | None) -> dict[str, Any]:
    """The recipe, and options beside it, which no recipe says."""
    return {} if said is None else said["recipe"] | said.get("options", {})

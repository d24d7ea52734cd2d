"""Models that installed distributions hold, found by name."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffsteer.io.extensions import extension
from diffsteer.io.model_folder import ships


@dataclass(frozen=True)
class Shipped:
    """A model that an installed distribution holds.

    Attributes:
        folder: As diffusers saves it.
        base: Folder of a pipeline that has what `folder` lacks; None where nothing is lacking.
        guide: Name of the weaker network for autoguidance that belongs to it; empty for none.
        refiner: Name of the refiner of its noise; empty for none.
        words: Gives the words that its prompts are made of, by name; none where it takes any text.
        compose: Makes a prompt of one word of each name; None where it takes any text.
        start: Words of a prompt to begin with.
        check: Raises InputError for a prompt outside of those it was trained on; None for any.
        guidances: Expressions with values that were tried on it, by name.
        examples: Gives a number of images of its data, uint8 `(3, H, W)`, with captions.
        name: Its name, so that it warns where it is asked for by a former one; empty for any.
    """

    folder: Path
    base: Path | None = None
    guide: str = ""
    refiner: str = ""
    words: Callable[[], Mapping[str, Sequence[str]]] = dict
    compose: Callable[..., str] | None = None
    start: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[str], object] | None = None
    guidances: Mapping[str, str] = field(default_factory=dict)
    examples: Callable[[int], Iterable[tuple[torch.Tensor, str]]] | None = None
    name: str = ""

    @property
    def prompt(self) -> str:
        """Prompt to begin with; empty where it takes any text."""
        return self.compose(**self.start) if self.compose else ""


def shipped(name: str) -> Shipped | None:
    """Find a model that ships by its name; None for any other name.

    Raises:
        ModuleNotFoundError: the distribution that holds it is not installed.
    """
    if not ships(name):
        return None
    model: Shipped = extension("models", name)
    if name != (model.name or name):
        warnings.warn(f"{name} is {model.name} now, another model: name that", stacklevel=2)
    return model


def shipped_folder(name: str) -> Path | str:
    """Folder of a model that ships, or `name` itself; raises as `shipped`."""
    model = shipped(name)
    return name if model is None else model.folder

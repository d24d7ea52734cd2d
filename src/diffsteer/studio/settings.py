"""All that the controls of the page say, as a recipe and seeds, and back."""

from dataclasses import dataclass, replace
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance import Guidance
from diffsteer.io.seeds import format_seeds, parse_seeds
from diffsteer.studio.expression import numbers, one_line, with_numbers

CONTROLS = (
    *("model", "prompt", "guidance", "steps", "seeds", "sampler", "spacing", "zero_snr"),
    *("refiner", "strength", "guide", "negative", "width", "height"),
)
"""Controls of the page, in their order."""
MOST_SEEDS, MOST_CELLS = 16, 64
"""Images of a run, and of a grid."""
STEPS, SEED = "steps", "seed"
"""Axes of a grid beside the numbers of the expression."""


@dataclass(frozen=True)
class Settings:
    """A recipe and seeds, as the page sets them.

    Attributes:
        recipe: Of the images.
        seeds: Of the images.
    """

    recipe: Recipe
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> "Settings":
        """Settings from the values of the controls, in the order of CONTROLS."""
        table = dict(zip(CONTROLS, values, strict=True))
        seeds = parse_seeds(str(table.pop("seeds")).strip() or "0")
        if len(seeds) > MOST_SEEDS:
            raise InputError(f"{len(seeds)} seeds: take at most {MOST_SEEDS} at a time")
        for name in ("steps", "width", "height"):
            table[name] = int(table[name] or 0)
        table["guidance"] = one_line(table["guidance"] or "")
        table["prompt"] = (table["prompt"] or "").strip()
        if not table["sampler"]:
            table |= {"spacing": Recipe.spacing, "zero_snr": False}
        if not table["refiner"]:
            table["strength"] = 1.0
        guidance = parse(table["guidance"], Guidance) if table["guidance"] else None
        if guidance is None or "guide" not in guidance.networks():
            table["guide"] = ""
        return cls(Recipe(**table), tuple(seeds))

    def values(self) -> list[Any]:
        """Values of the controls."""
        seeds = format_seeds(self.seeds)
        return [seeds if n == "seeds" else getattr(self.recipe, n) for n in CONTROLS]

    def require_complete(self) -> None:
        """Check that the controls of the page hold all of the recipe."""
        kept, whole = Settings.of(tuple(self.values())).recipe.to_dict(), self.recipe.to_dict()
        if lost := sorted(name for name, value in whole.items() if value != kept.get(name)):
            raise InputError(
                f"this image was made with {', '.join(lost)}, which the page has no control for: "
                "repeat it by `diffsteer sample --recipe IMAGE`"
            )

    def varied(self, axis: str, value: float) -> "Settings":
        """The same with another value of an axis."""
        if axis in (STEPS, SEED) and not (0 <= value < 2**64 and value == int(value)):
            raise InputError(f"{axis} must be a whole number >= 0, got {value}")
        if axis == STEPS:
            return replace(self, recipe=replace(self.recipe, steps=int(value)))
        if axis == SEED:
            return replace(self, seeds=(int(value),))
        names = [number.name for number in numbers(self.recipe.guidance)]
        if axis not in names:
            raise InputError(
                f"the expression has no {axis}: choose from {', '.join([*names, STEPS, SEED])}"
            )
        values = [value if name == axis else None for name in names]
        guidance = with_numbers(self.recipe.guidance, values)
        return replace(self, recipe=replace(self.recipe, guidance=guidance))

    def grid(
        self, x: str, columns: list[float], y: str = "", rows: list[float] | None = None
    ) -> "list[list[Settings]]":
        """Settings of each cell of a grid, in rows; the first seed unless an axis varies it."""
        if x == y:
            raise InputError(f"both axes vary {x}: choose another for one of them")
        if not columns or (y and not rows):
            raise InputError("give the values of an axis, such as 1, 2, 4")
        if len(columns) * len(rows or [0]) > MOST_CELLS:
            raise InputError(
                f"{len(columns)} x {len(rows or [0])} images: a grid has at most {MOST_CELLS}"
            )
        one = replace(self, seeds=self.seeds[:1])
        lines = [one.varied(y, value) for value in rows or []] if y else [one]
        return [[line.varied(x, value) for value in columns] for line in lines]


def values_of(text: str) -> list[float]:
    """Numbers of a text such as "1, 2, 4"."""
    try:
        return [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"{text[:80]!r} are no numbers: write 1, 2, 4") from error

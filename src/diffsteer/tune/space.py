"""Text of a search space: a guidance with names in place of numbers, and ranges of the names.

CFG(w) + SAG(s), w=1..8, s=0..1:0.25, steps=8..30
CFG(w).within(lo, hi) | PAG(p), w=1..6, p=0.5..4, lo=0.1..1 log, hi=2..20 log

Guidances stand between "|", one of which a recipe has. `a..b` is a range, `a..b:step` one in steps,
`a..b log` one whose ratios count; `x|y|none` is a choice, where none is the empty text.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError, did_you_mean
from diffsteer.core.parse import parse
from diffsteer.core.sampler import Sampler
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance import Guidance
from diffsteer.tune.ranges import NONE, Choice, Range, split, values_of

if TYPE_CHECKING:
    from optuna import Trial

TUNED = ("steps", "sampler", "spacing", "strength", "refiner", "zero_snr")
"""Fields of a recipe that a space may vary beside the numbers of its guidance."""
GUIDANCE = "guidance"
"""Name of the choice between guidances."""


Values = Mapping[str, float | str]
"""A number or text for each name of a space."""


@dataclass(frozen=True)
class Space:
    """Recipes to search.

    Attributes:
        guidances: Texts of guidances, one of which a recipe has, with names for numbers.
        variables: Values of the names, and of fields of the recipe.
    """

    guidances: tuple[str, ...]
    variables: Mapping[str, Range | Choice] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Space":
        """Read a space; see the module for the syntax.

        Raises:
            InputError: a name has no range or is used nowhere, or a guidance does not parse.
        """
        guidances: list[str] = []
        variables: dict[str, Range | Choice] = {}
        for part in filter(None, map(str.strip, split(text, ","))):
            match = re.fullmatch(r"(\w+)\s*=\s*(.+)", part)
            if match is None:
                texts = map(str.strip, split(part, "|"))
                guidances += ("" if text == NONE else text for text in texts)
            elif match[1] in variables:
                raise InputError(f"{match[1]} has two ranges: give one")
            else:
                variables[match[1]] = values_of(match[1], match[2])
        space = cls(tuple(guidances), variables)
        space._require_used()
        if len(guidances) < 2 and not variables:
            raise InputError(f'space {text!r} varies nothing: write such as "CFG(w), w=1..8"')
        for name, values in variables.items():
            for option in values.options if isinstance(values, Choice) and name in TUNED else ():
                _field(name, option)
        whole = {name: space._whole(name) for name in variables}
        return replace(space, variables=whole)

    def suggest(self, trial: "Trial") -> dict[str, float | str]:
        """Values that a trial proposes; names of other guidances than the chosen are left out."""
        values: dict[str, float | str] = {}
        if len(self.guidances) > 1:
            values[GUIDANCE] = trial.suggest_categorical(GUIDANCE, self.guidances)
        used = {*_names(self._guidance(values)), *TUNED}
        asked = {name: each for name, each in self.variables.items() if name in used}
        return values | {name: each.suggest(trial, name) for name, each in asked.items()}

    def recipe(self, base: Recipe, values: Values) -> Recipe:
        """Fill values into a recipe.

        Raises:
            InputError: they do not go together, such as an interval whose end is below its start.
        """
        changes = {name: _field(name, values[name]) for name in TUNED if name in values}
        if text := self._guidance(values):
            guidance = parse(_filled(text, values), Guidance)
            changes["guidance"] = repr(guidance)
            changes["guide"] = base.guide if "guide" in guidance.networks() else ""
        elif self.guidances:
            changes |= {"guidance": "", "guide": ""}
        return replace(base, **changes)

    def require_each(self, base: Recipe, check: Callable[[Recipe], None]) -> None:
        """Check that each choice, and each end of a recipe's field, is in a recipe that can be.

        Args:
            base: As of `recipe`.
            check: Raises an InputError for a recipe that cannot be.
        """
        chosen = [n for n, v in self.variables.items() if isinstance(v, Choice) and n not in TUNED]
        fields = [*(name for name in TUNED if name in self.variables), *chosen]
        ends: list[tuple[float | str, ...]] = [self.variables[name].ends for name in fields]
        others: list[dict[str, float | str]] = [{}]
        others += (dict(zip(fields, values, strict=True)) for values in islice(product(*ends), 99))
        pairs = ((name, value) for name in fields for value in self.variables[name].ends)
        for name, value in pairs:
            refused: InputError | None = None
            for more in others:
                try:
                    check(next(self._examples(base, {**more, name: value}, name)))
                    break
                except InputError as error:
                    refused = refused or error
            else:
                raise InputError(f"{name}={NONE if value == '' else value}: {refused}")

    def examples(self, base: Recipe) -> Iterator[Recipe]:
        """Recipes from the middle of the space, one of each guidance."""
        return self._examples(base, {})

    def _examples(self, base: Recipe, fixed: Values, used: str = "") -> Iterator[Recipe]:
        middle = {name: each.middle for name, each in self.variables.items()} | dict(fixed)
        for text in self.guidances or ("",):
            if used in ("", *TUNED, *_names(text)):
                yield self.recipe(base, {**middle, GUIDANCE: text})

    def _guidance(self, values: Values) -> str:
        first = self.guidances[0] if self.guidances else ""
        return str(values.get(GUIDANCE, first))

    def _require_used(self) -> None:
        names = {name for text in self.guidances for name in _names(text)}
        for name in sorted(names - {*self.variables, "inf"}):
            text = next(text for text in self.guidances if name in _names(text))
            raise InputError(f"{name} in {text!r} has no range: add it, such as {name}=1..8")
        for name in sorted({*self.variables} - names - {*TUNED}):
            hint = did_you_mean(name, (*names, *TUNED))
            raise InputError(
                f"{name} is no name in a guidance and no field that can vary{hint}: there are "
                f"{', '.join((*sorted(names), *TUNED))}"
            )

    def _whole(self, name: str) -> Range | Choice:
        """Values of a name, whole numbers where the guidance takes nothing else."""
        values = self.variables[name]
        if not isinstance(values, Range) or name == "strength":
            return values
        if not values.has_whole_ends:
            if name == "steps":
                raise InputError(f"steps takes whole numbers, got {values.low:g}..{values.high:g}")
            return values
        whole = name == "steps" or (
            self._takes(name, int(values.low)) and not self._takes(name, values.low + 0.5)
        )
        return replace(values, whole=whole)

    def _takes(self, name: str, value: float) -> bool:
        """Whether all guidances with a name take a number for it, and whole ones for the others."""
        values = {
            n: int(v.middle) if isinstance(v, Range) and v.has_whole_ends else v.middle
            for n, v in self.variables.items()
        }
        try:
            for text in self.guidances:
                if name in _names(text):
                    parse(_filled(text, {**values, name: value}), Guidance)
        except InputError:
            return False
        return True


def _tree(text: str) -> ast.Expression:
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{text!r} is no guidance: {error}") from error


def _names(text: str) -> list[str]:
    """Names in a guidance that stand for numbers."""
    tree = _tree(text) if text else ast.parse("0", mode="eval")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
    return [node.id for node in names]


def _filled(text: str, values: Values) -> str:
    """Text of a guidance with values in place of names."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id not in values:
                return node
            value = values[node.id]
            return _tree(str(value)).body

    return ast.unparse(Fill().visit(_tree(text)))


def _field(name: str, value: float | str) -> Any:
    """Value of a recipe's field from that of a space.

    Raises:
        InputError: it is no value of that field.
    """
    kinds: dict[str, Callable[[Any], Any]] = {"steps": int, "strength": float}
    kinds["sampler"] = lambda text: str(text) and repr(parse(str(text), Sampler))
    kinds["zero_snr"] = lambda text: {"true": True, "false": False}[str(text).lower()]
    try:
        return kinds.get(name, str)(value)
    except InputError:
        raise
    except (KeyError, ValueError) as error:
        expected = {"steps": "whole numbers", "strength": "numbers"}.get(name, '"true|false"')
        raise InputError(f"{name} takes {expected}, got {value!r}") from error

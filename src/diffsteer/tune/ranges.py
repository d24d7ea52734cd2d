"""Values of a name in a search space: ranges, and choices."""

import re
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from diffsteer.core.errors import InputError

if TYPE_CHECKING:
    from optuna import Trial

NONE = "none"
"""The empty text among choices."""
RANGE = re.compile(r"([-+.\de]+?)\s*\.\.\s*([-+.\de]+?)(?::([.\de]+))?(\s+log)?")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: Least.
        high: Most.
        step: Distance of neighbours; None for any number.
        log: Whether ratios count and not differences; needs low > 0 and no step.
        whole: Whether they are whole numbers.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not -inf < self.low < self.high < inf:
            raise InputError(
                f"{self.low:g}..{self.high:g} is no range: write two numbers, the lower one first"
            )
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise InputError(
                f"{self.low:g}..{self.high:g}:{self.step:g} holds one number at most: the step "
                f"must be in ]0, {self.high - self.low:g}]"
            )
        if self.log and (self.low <= 0 or self.step is not None):
            raise InputError(f"a range in log needs numbers > 0 and no step, got {self}")

    def suggest(self, trial: "Trial", name: str) -> float:
        """Ask a trial for a number, of four digits."""
        if self.whole:
            step = int(self.step or 1)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        value = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return float(f"{value:.4g}")

    @property
    def has_whole_ends(self) -> bool:
        """Whether both ends and the step are whole numbers."""
        return all(number == int(number) for number in (self.low, self.high, self.step or 1))

    @property
    def ends(self) -> tuple[float, ...]:
        """Both ends."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def middle(self) -> float:
        """A number inside."""
        if self.whole or self.step:
            step = self.step or 1
            middle = self.low + step * int((self.high - self.low) / step / 2)
            return int(middle) if self.whole else middle
        return (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2


@dataclass(frozen=True)
class Choice:
    """One of several texts or numbers."""

    options: tuple[str, ...]

    def suggest(self, trial: "Trial", name: str) -> str:
        """Ask a trial for one."""
        chosen: str = trial.suggest_categorical(name, self.options)
        return chosen

    @property
    def ends(self) -> tuple[str, ...]:
        """All of them."""
        return self.options

    @property
    def middle(self) -> str:
        """One of them."""
        return self.options[0]


def split(text: str, mark: str) -> list[str]:
    """Parts between marks that are in no parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def values_of(name: str, text: str) -> Range | Choice:
    """Read what stands behind a name: a range or a choice."""
    match = RANGE.fullmatch(text.strip())
    if match is None:
        options = tuple(map(str.strip, split(text, "|")))
        if ".." in text:
            raise InputError(
                f'{name}={text} is no range: write "1..8", "0..1:0.25" or "0.1..9 log"'
            )
        if "" in options:
            raise InputError(f"{name}={text} has an empty choice: write x|y, or x|{NONE} for none")
        return Choice(tuple("" if option == NONE else option for option in options))
    try:
        low, high = float(match[1]), float(match[2])
        step = float(match[3]) if match[3] else None
    except ValueError as error:
        raise InputError(f"{name}={text} has no numbers at its ends: write 1..8") from error
    return Range(low, high, step, bool(match[4]))

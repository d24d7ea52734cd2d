"""What the buttons of the page do, as generators of what the page shows next."""

import math
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import require_consistent
from diffsteer.studio.engine import Engine, Update
from diffsteer.studio.render import Cancelled, Preview, Sampled
from diffsteer.studio.settings import Settings, values_of
from diffsteer.studio.view import bar, error, grid_sheet, label, note, strip_sheet


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows next; None leaves a part as it is.

    Attributes:
        status: HTML of the status line; empty leaves it.
        image: The image, or two for the slider, or a grid.
        batch: All images of a run, by label.
        strip: Strip of predictions.
    """

    status: str
    image: Any = None
    batch: list[tuple[Any, str]] | None = None
    strip: Any = None


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of all tabs: each tab has one at a time, which it alone cancels.

    Attributes:
        engine: Makes the images.
    """

    engine: Engine
    _events: dict[str, threading.Event] = field(default_factory=dict)

    def begin(self, tab: str) -> threading.Event:
        """Event that cancels the run of a tab which begins now."""
        self.cancel(tab)
        self._events[tab] = threading.Event()
        return self._events[tab]

    def cancel(self, tab: str) -> None:
        """Cancel the run of a tab, if there is one."""
        if event := self._events.get(tab):
            event.set()

    def close(self, tab: str) -> None:
        """Forget a tab that was closed."""
        self.cancel(tab)
        self._events.pop(tab, None)

    def close_all(self) -> None:
        """Cancel all runs, as the studio ends."""
        for tab in list(self._events):
            self.close(tab)
        self.engine.close()

    def generate(self, tab: str, values: tuple[Any, ...]) -> Iterator[Shown]:
        """Sample the seeds of the settings."""
        settings = Settings.of(values)
        recipe, made = settings.recipe, list[tuple[Any, str]]()
        yield Shown(note("Waiting for the model ..."))
        require_consistent(recipe)
        for update in self.engine.images(recipe, list(settings.seeds), self.begin(tab)):
            yield _shown(update, settings, made)

    def compare(self, tab: str, values: tuple[Any, ...], pinned: Recipe | None) -> Iterator[Shown]:
        """Sample the first seed by the pinned recipe, or without guidance, and by the settings."""
        settings = Settings.of(values)
        recipes = (pinned or replace(settings.recipe, guidance="", guide=""), settings.recipe)
        for recipe in recipes:
            require_consistent(recipe)
        event, pair = self.begin(tab), list[Sampled]()
        for name, recipe in zip("AB", recipes, strict=True):
            for update in self.engine.images(recipe, [settings.seeds[0]], event):
                if isinstance(update, Preview):
                    step = f"{name}: {label(recipe)}, step {update.step} of {recipe.steps}"
                    yield Shown(bar(update.step, recipe.steps, step))
                elif isinstance(update, Sampled):
                    pair.append(update)
        costs = [
            f"{n}: {label(r)} ({cost(d)})" for n, r, d in zip("AB", recipes, pair, strict=True)
        ]
        text = f"Seed {settings.seeds[0]}, left {costs[0]}, right {costs[1]}"
        yield Shown(note(text), (pair[0].image, pair[1].image))

    def grid(
        self, tab: str, values: tuple[Any, ...], x: str, columns: str, y: str, rows: str
    ) -> Iterator[Shown]:
        """Sample a grid over two numbers, and show it as it grows."""
        settings = Settings.of(values)
        xs, ys = values_of(columns), values_of(rows) if y else [0.0]
        cells = settings.grid(x, xs, y, ys if y else None)
        for row in cells:
            for one in row:
                require_consistent(one.recipe)
        event, images, count = self.begin(tab), list[list[Any]](), len(xs) * len(ys)
        for row in cells:
            images.append([])
            for one in row:
                for update in self.engine.images(one.recipe, list(one.seeds), event, keep=False):
                    if isinstance(update, Sampled):
                        images[-1].append(update.image)
                number = sum(map(len, images))
                sheet = grid_sheet(images, (x, xs), (y, ys), settings)
                text = "Grid finished" if number == count else f"Image {number} of {count}"
                yield Shown(bar(number, count, text), sheet)


def guarded(
    shown: Iterator[Any], ending: Callable[[str], Any] = Shown, cancelled: str = "Cancelled"
) -> Iterator[Any]:
    """The same, with an error as its last status line.

    Args:
        shown: What the page shows next.
        ending: Makes the last of it from the HTML of a status line.
        cancelled: Text of the status line where it was cancelled.
    """
    try:
        yield from shown
    except Cancelled:
        yield ending(note(cancelled))
    except Exception as problem:
        yield ending(error(one_line(problem)))


def one_line(problem: Exception) -> str:
    """Error in a line; faults of ours show their traceback on the terminal."""
    if isinstance(problem, InputError | OSError):
        return str(problem)
    traceback.print_exception(problem)
    return f"{type(problem).__name__}: {problem}"


def _shown(update: Update, settings: Settings, made: list[tuple[Any, str]]) -> Shown:
    recipe, count = settings.recipe, len(settings.seeds)
    if isinstance(update, Preview):
        which = f"image {len(made) + 1} of {count}, " if count > 1 else ""
        text = f"{which}step {update.step} of {recipe.steps}".capitalize()
        return Shown(bar(update.step, recipe.steps, text), update.image)
    if isinstance(update, Sampled):
        made.append((update.image, f"seed {update.seed}"))
        return Shown(note(f"Seed {update.seed}: {cost(update)}"), update.image, [*made])
    return Shown("", strip=strip_sheet(update, recipe, settings.seeds[-1]))


def cost(sample: Sampled) -> str:
    """What an image took."""
    nfe = math.fsum(sample.nfe.values())
    return f"{nfe:.0f} network evaluations, {sample.seconds:.1f} s"

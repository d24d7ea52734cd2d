"""The front of a search, measured once more on seeds that it did not choose by."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.io.atomic import put, write_json
from diffsteer.io.hashing import digest
from diffsteer.io.seeds import format_seeds
from diffsteer.io.strict import from_table
from diffsteer.metrics.bootstrap import Estimate
from diffsteer.metrics.comparison import compared
from diffsteer.metrics.value import MetricValue
from diffsteer.report.compare import verdict
from diffsteer.report.page import render
from diffsteer.report.plots import Chart, Curve, Point, line_chart, write_png
from diffsteer.tune.study import PLACE, RECIPE, WORKER, Search, describe, finished, front

if TYPE_CHECKING:
    from optuna import Study

RECIPES = "recipes"
"""Name in the folder of a search of the folder of recipes."""
BASE = "base"
"""Name of the recipe that a search began from, with no guidance."""


@dataclass(frozen=True)
class Confirmed:
    """A recipe on the seeds of the report.

    Attributes:
        name: Its name in the report.
        recipe: The recipe.
        chosen: Its value on the seeds of the search; None where it was not searched.
        nfe: Network evaluations of an image.
        value: Of the metric on the seeds of the report, with its interval.
        difference: From the first recipe of the report, and its interval, paired over seeds; None
            for the first.
        images: Files by seed.
        folder: Of recipes, with its file and that of the prompts, where it has several.
    """

    name: str
    recipe: Recipe
    chosen: float | None
    nfe: float
    value: MetricValue
    difference: Estimate | None
    images: Mapping[int, Path]
    folder: Path

    @property
    def verdict(self) -> str:
        """CSS class: better or worse than the first, or undecided."""
        return verdict(self.value, self.difference)

    @property
    def command(self) -> str:
        """Command that samples it."""
        out = ("--out", f"out-{self.name}")
        if self.recipe.options:  # which no other option says
            return shlex.join(["diffsteer", "sample", "--recipe", str(self.file), *out])
        return self.recipe.command(*out, prompts=str(self.prompts))

    @property
    def file(self) -> Path:
        """JSON file of its recipe."""
        return self.folder / f"{self.name}.json"

    @property
    def prompts(self) -> Path:
        """File of its prompts, which all recipes of a search share."""
        return self.folder / "prompts.txt"


def confirm(
    search: Search,
    study: "Study",
    seeds: Sequence[int],
    against: Mapping[str, Recipe],
    most: int = 5,
    shown: int = 6,
    resamples: int = 200,
) -> list[Confirmed]:
    """Measure the front of a search on seeds of its own, after recipes to compare it with.

    Args:
        search: The search.
        study: Its trials.
        seeds: Of the report; none of those of the search.
        against: Recipes to compare with, by name; the first is what differences are taken from.
        most: Recipes of the front, >= 1.
        shown: Images of each, of the first seeds.
        resamples: For the intervals, >= 20.
    """
    require_disjoint(seeds, search.budget.seeds)
    trials = front(study, most)
    if not trials:
        raise InputError(
            f"{search.folder}: no trial is finished, so that there is no front: give more time"
        )
    recipes, chosen = dict(against), dict[str, float]()
    for trial in trials:
        name = f"{len(chosen) + 1}"
        table = dict(trial.user_attrs[RECIPE])
        varied = from_table(Recipe, table, str(search.folder))
        recipes[name] = replace(varied, options=search.base.options)  # which no space varies
        chosen[name] = trial.values[0]
    keys = {name: digest(_whole(recipe))[:12] for name, recipe in recipes.items()}
    folders = {name: search.folder / "images" / key for name, key in keys.items()}
    runs = {
        name: search.objective.sampled(recipe, seeds, folders[name], shown)
        for name, recipe in recipes.items()
    }
    results = compared(runs, search.objective.reference, resamples, search.objective.names)
    order = sorted(seeds)[:shown]
    return [
        Confirmed(
            one.name,
            recipes[one.name],
            chosen.get(one.name),
            sum(cost.median for name, cost in one.costs.items() if name != "seconds"),
            search.objective.figure(one.figures),
            one.differences.get(search.objective.label),
            {seed: folders[one.name] / f"{seed:06d}.png" for seed in order},
            search.folder / RECIPES,
        )
        for one in results
    ]


def undecided(results: Sequence[Confirmed]) -> str:
    """Say which recipes the seeds of a report cannot tell from the first; empty for none."""
    first, *others = results
    close = [(o.name, o.difference[1]) for o in others if o.difference and not o.verdict]
    if not close:
        return ""
    names = ", ".join(name for name, _ in close)
    half = max((interval.high - interval.low) / 2 for _, interval in close)
    return (
        f"{first.value.n} seeds cannot tell {names} from {first.name}: differences are known to "
        f"+-{half:.2g} alone; --report-seeds of four times as many would halve that"
    )


def require_disjoint(seeds: Sequence[int], searched: Sequence[int]) -> None:
    """Check that a report is not of the seeds that chose what it reports."""
    if both := sorted(set(seeds) & set(searched)):
        raise InputError(
            f"seeds {format_seeds(both)[:80]} serve both to search and to report, which flatters "
            "what was found: give others, --report-seeds"
        )


def _whole(recipe: Recipe) -> dict[str, Any]:
    """All fields, and the options where there are any."""
    return recipe.to_dict() | recipe.to_json()


def write(search: Search, study: "Study", results: Sequence[Confirmed], resamples: int) -> Path:
    """Write `front.png`, `report.json`, `report.html` and a JSON file of each recipe.

    Returns:
        Path of the page.
    """
    folder, objective = search.folder, search.objective
    name = objective.metric.partition("(")[0].rpartition(":")[2]  # of a score, without its module
    labels = "network evaluations (NFE) an image", name
    charts = [
        ("seeds of the search", _searched(search, study)),
        ("seeds of the report", _reported(results)),
    ]
    write_png(
        folder / "front.png", [Chart(charts[0][0], *labels, tuple(charts[0][1]))], search.base.model
    )
    for one in results:
        table = one.recipe.to_json()
        if one.recipe.prompts:
            put(one.prompts, "".join(f"{text}\n" for text in one.recipe.prompts).encode())
            table["prompts"] = one.prompts.name
        write_json(one.file, table)
    for path in {*(folder / RECIPES).glob("*.json")} - {one.file for one in results}:
        path.unlink()  # of an earlier, longer report
    write_json(folder / "report.json", _json(search, study, results))
    first = results[0]
    page = render(
        "tune.html",
        title=f"{search.base.model}: {name} against cost",
        search=search,
        trials=finished(study),
        results=results,
        first=first,
        seeds={seed: first.recipe.for_seed(seed).prompt for seed in first.images},
        charts=[(line_chart(text, *labels, curves), curves) for text, curves in charts],
        describe=lambda recipe: describe(recipe.to_dict(), search.space),
        searched=format_seeds(search.budget.seeds),
        resamples=resamples,
        undecided=undecided(results),
    )
    put(folder / "report.html", page.encode())
    return folder / "report.html"


def _searched(search: Search, study: "Study") -> list[Curve]:
    from optuna.trial import TrialState

    complete = [t for t in finished(study) if t.state is TrialState.COMPLETE]
    points = tuple(Point(t.values[1], t.values[0]) for t in complete)
    best = tuple(Point(t.values[1], t.values[0]) for t in front(study, len(complete)))
    n = len(search.budget.seeds)
    return [Curve(f"recipe, N = {n}", points, 5, joined=False), Curve("front", best, 0)]


def _reported(results: Sequence[Confirmed]) -> list[Curve]:
    def point(one: Confirmed) -> Point:
        return Point(one.nfe, one.value.value, None, one.value.interval, one.name)

    front = tuple(point(one) for one in results if one.chosen is not None)
    rest = tuple(point(one) for one in results if one.chosen is None)
    return [Curve("compared with", rest, 1, joined=False), Curve("front", front, 0)]


def _json(search: Search, study: "Study", results: Sequence[Confirmed]) -> dict[str, Any]:
    return {
        "key": study.user_attrs["key"],
        "metric": search.objective.metric,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "values": trial.values,
                "params": trial.params,
                **{k: v for k, v in trial.user_attrs.items() if k not in (WORKER, PLACE)},
            }
            for trial in finished(study)
        ],
        "recipes": {
            one.name: {
                "recipe": _whole(one.recipe),
                "command": one.command,
                "on the seeds of the search": one.chosen,
                "nfe": one.nfe,
                "value": one.value.json(),
                "difference": one.difference,
            }
            for one in results
        },
    }

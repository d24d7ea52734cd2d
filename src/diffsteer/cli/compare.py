"""`diffsteer compare`: recipes against one another, as a page; importable without torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from diffsteer.cli.evaluate import known
from diffsteer.cli.options import FEATURES, LOADING, SAMPLES, Features, Loading, Samples, loaded
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import WEIGHT, Recipe, read
from diffsteer.io.seeds import format_number, parse_seeds

if TYPE_CHECKING:
    from diffsteer.metrics.sampled import Sampled
    from diffsteer.metrics.statistics import Statistics
    from diffsteer.report.compare import Result


@dataclass(frozen=True)
class Entry:
    """One recipe of a comparison: its name, the sweep that it is part of, and its weight there."""

    name: str
    curve: str
    weight: float | None
    recipe: Recipe

    @property
    def prompts(self) -> tuple[str, ...]:
        """What its images show."""
        return self.recipe.prompts or (self.recipe.prompt,)

    def folder(self, out: Path) -> Path:
        """Where its images are shown from."""
        return out / "pictures" / self.name.replace("/", "_")


def compare(
    recipes: Positional[tuple[Path, ...]],
    /,
    reference: Path,
    weights: str = "",
    features: OmitArgPrefixes[Features] = FEATURES,
    samples: OmitArgPrefixes[Samples] = SAMPLES,
    out: Path = Path("compared"),
    show: int = 6,
    resamples: int = 200,
    score: UseAppendAction[tuple[str, ...]] = (),
    loading: OmitArgPrefixes[Loading] = LOADING,
) -> None:
    """Compare recipes on the same seeds and prompts: figures, cost, curves, images, one page.

    A guidance in which {w} stands for a number, such as "CFG({w}) + SAG(0.75)", becomes one recipe
    for each of --weights. Runs on as many processes as torchrun or accelerate launch starts.

    Args:
        recipes: JSON files, or PNGs of `diffsteer sample`; the others are compared with the first.
        reference: Statistics file (.npz), folder or zip file of real images.
        weights: Numbers for {w}, such as "1,2,4".
        features: How images become features; of every image they are kept.
        samples: Which images.
        out: Folder for report.html, report.json and the images that are shown.
        show: Images of each recipe in the page, of the first seeds.
        resamples: For the intervals, >= 20.
        score: Also the mean of a score of each image, as for `diffsteer evaluate`; may be given
            several times.
        loading: How the models of all recipes are loaded, in place of what they say themselves.
    """
    import matplotlib  # noqa: F401 - the page comes last: better to miss it now

    from diffsteer.generate.generator import rehearse
    from diffsteer.generate.recipe_checks import require_measurable
    from diffsteer.io.atomic import owned, require_writable
    from diffsteer.io.distributed import Processes, launched
    from diffsteer.metrics.image_scores import named, scores_of
    from diffsteer.metrics.image_sets import require_comparable

    entries = [
        replace(entry, recipe=loaded(entry.recipe, loading))
        for entry in entries_of(recipes, weights)
    ]
    if resamples < 20 or show < 0:
        raise InputError(f"resamples={resamples}, show={show}: give >= 20 resamples, >= 0 to show")
    scores = scores_of(score, features.device)
    features = replace(features, keep=len(parse_seeds(samples.seeds)))
    require_writable(out)
    require_writable(samples.work)
    for entry in entries:
        require_measurable(entry.recipe, features.device)
    extractor = features.build()
    require_comparable(reference, extractor)
    runs = {}
    with launched():
        processes = Processes.running()
        with owned(out, processes.rank, processes.world):
            rehearse((entry.recipe for entry in entries), features.device)
            against = None if processes.rank else known(reference, features, extractor)
            for entry in entries:
                if processes.rank == 0:
                    print(f"{entry.name}: {entry.recipe.guidance or 'no guidance'}", flush=True)
                runs[entry.name] = samples.measure(
                    entry.recipe, features, extractor, entry.folder(out), show, scores
                )
            if against is None:
                return
            real, digest = against
            source = {"path": str(reference), "sha256": digest}
            _report(entries, runs, real, source, out, show, resamples, named(scores))


def entries_of(paths: tuple[Path, ...], weights: str) -> list[Entry]:
    """Recipes to compare, with sweeps filled in."""
    numbers = _numbers(weights)
    read_all = [(path, read(path)) for path in paths]
    if numbers and not any(WEIGHT in recipe.guidance for _, recipe in read_all):
        raise InputError(
            f'no recipe has a place for --weights: write {WEIGHT} into a guidance, "CFG({WEIGHT})"'
        )
    alike = len({path.stem for path in paths}) == len(paths)
    entries = []
    for path, recipe in read_all:
        curve = path.stem if alike else str(path)
        if WEIGHT not in recipe.guidance:
            entries.append(Entry(curve, curve, None, recipe))
            continue
        if not numbers:
            raise InputError(f"{path} has {WEIGHT} in its guidance: say its numbers, --weights 1,2")
        for number, filled in zip(numbers, recipe.sweep(numbers), strict=True):
            entries.append(Entry(f"{curve} w={format_number(number)}", curve, number, filled))
    _comparable(entries)
    return entries


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise InputError(f'{text!r} are no weights: write "1,2,4"') from error
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{text!r} names a weight twice")
    return numbers


def _comparable(entries: list[Entry]) -> None:
    if len(entries) < 2:
        raise InputError("one recipe is nothing to compare: name two, or use `diffsteer evaluate`")
    if len({entry.name for entry in entries}) < len(entries):
        raise InputError("a recipe is named twice: name each once")
    first, *others = entries
    for entry in others:
        if first.prompts != entry.prompts:
            raise InputError(
                f"{entry.name} has other prompts than {first.name}: images of other things do "
                "not compare; give both the same prompts"
            )


def _report(
    entries: list[Entry],
    runs: "dict[str, Sampled]",
    real: "Statistics",
    reference: dict[str, Any],
    out: Path,
    show: int,
    resamples: int,
    scores: dict[str, str],
) -> None:
    from diffsteer.io.atomic import put, write_json
    from diffsteer.metrics.comparison import compared
    from diffsteer.metrics.evaluate import cautions, omitted
    from diffsteer.metrics.value import table
    from diffsteer.report.compare import Result, page

    first = runs[entries[0].name].statistics
    notes, cautioned = omitted(first, real), cautions(first, real)
    results = []
    for entry, one in zip(entries, compared(runs, real, resamples, scores), strict=True):
        images = {s: entry.folder(out) / f"{s:06d}.png" for s in runs[entry.name].seeds[:show]}
        results.append(Result(one, entry.recipe, entry.curve, entry.weight, images))
        print(f"\n{one.name}", table(one.figures), *_lines(results[-1]), sep="\n")
    for note in notes:
        print(f"not measured: {note}")
    for note in cautioned:
        print(f"too few images for {note}")
    content = {
        "reference": reference,
        "resamples": resamples,
        "recipes": [_plain(one) for one in results],
        "not measured": notes,
        "too few images": cautioned,
    }
    write_json(out / "report.json", content)
    put(out / "report.html", page(results, reference["path"], notes, cautioned, resamples).encode())
    print(f"\n{out / 'report.html'}, {out / 'report.json'}")


def _lines(one: "Result") -> list[str]:
    lines = [
        f"  {name} less the first's: {value:+.5g}, 95 % {within}"
        for name, (value, within) in one.compared.differences.items()
    ]
    costs = one.compared.costs.items()
    return lines + [
        f"  {name.replace('rows', 'NFE')} an image: {c.median:.4g} ({c.low:.4g} to {c.high:.4g})"
        for name, c in costs
    ]


def _plain(one: "Result") -> dict[str, Any]:
    return {
        "curve": one.curve,
        "weight": one.weight,
        "recipe": one.recipe.to_dict() | one.recipe.to_json(),  # all fields, and the options
        "pictures": {seed: str(path) for seed, path in one.images.items()},
        **one.compared.json(),
    }

"""`diffsteer tune`: search for the best recipe at each cost; importable without torch."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from diffsteer.cli.options import FEATURES, Features
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import NOTHING, Recipe, read
from diffsteer.io.hub import require_known
from diffsteer.io.seeds import parse_seeds, prompts_of


def tune(
    reference: Path,
    space: str,
    recipe: OmitArgPrefixes[Recipe] = NOTHING,
    prompts: Path | None = None,
    metric: str = "FD",
    trials: int = 60,
    minutes: float = 15.0,
    seeds: str = "100000-100199",
    first: int = 50,
    report_seeds: str = "0-999",
    against: tuple[Path, ...] = (),
    top: int = 5,
    show: int = 6,
    resamples: int = 200,
    at_once: int = 8,
    storage: str = "",
    out: Path = Path("tuned"),
    features: OmitArgPrefixes[Features] = FEATURES,
) -> None:
    """Search for the recipes with the best images at each number of network evaluations.

    Started again it goes on; several workers, started by the same command, share its trials. What
    the search found is measured on seeds of its own, with paired intervals, in OUT/report.html.

    Args:
        reference: Statistics file (.npz), folder or zip file of real images.
        space: A guidance with names for numbers, and their ranges, such as
            "CFG(w) + SAG(s), w=1..8, s=0..1:0.25, steps=8..30". A | B tries either guidance; ranges
            may end in "log"; names of the recipe vary too: sampler="DDIM()|UniPC()", strength=0..1.
        recipe: All that does not vary.
        prompts: File with one prompt a line; the image of seed i shows prompt i mod their number.
        metric: FD, KID, CMMD, precision, recall, density or coverage; or a score, as for
            `diffsteer evaluate --score`: 'CLIPScore("WEIGHTS")', MODULE:FUNCTION.
        trials: Finished trials after which all workers stop.
        minutes: Time that this worker searches; the report comes after it.
        seeds: Of each trial.
        first: Seeds of them after which a trial that three others beat at no more evaluations ends.
        report_seeds: Of the report; none of those of the search.
        against: Recipes (JSON, PNG) to compare with, the first instead of the recipe unguided.
        top: Recipes of the front that are reported.
        show: Images of each in the page.
        resamples: For the intervals, >= 20.
        at_once: Images sampled at a time, >= 1; changes none of them.
        storage: For workers on many machines, each with a folder OUT of its own: URL of a database
            (postgresql://, mysql://, sqlite:///), or a file that ends in .journal in a folder that
            they share; without, a file in OUT.
        out: Folder of the search; workers on one machine name the same.
        features: How images become features.
    """
    require_known(recipe.model, recipe.guide, recipe.refiner)
    import matplotlib  # noqa: F401 - the report comes last: better to miss it now
    import optuna  # noqa: F401

    from diffsteer.cli.evaluate import known
    from diffsteer.generate.generator import rehearse
    from diffsteer.generate.recipe_checks import require_measurable
    from diffsteer.io.atomic import InUse, owned, require_writable
    from diffsteer.metrics.image_sets import require_comparable
    from diffsteer.tune.objective import Objective, scores_for
    from diffsteer.tune.report import BASE, confirm, require_disjoint, undecided, write
    from diffsteer.tune.space import Space
    from diffsteer.tune.storage import open_storage
    from diffsteer.tune.study import Budget, Search

    if min(top, at_once) < 1 or show < 0 or resamples < 20:
        raise InputError(f"top={top}, at_once={at_once}, show={show}, resamples={resamples}: give "
                         "top and at_once >= 1, show >= 0 and resamples >= 20")  # fmt: skip
    scores = scores_for(metric, features.device)
    if prompts is not None:
        recipe = replace(recipe, prompts=prompts_of(prompts))
    budget = Budget(parse_seeds(seeds), first, trials, minutes)
    reported = parse_seeds(report_seeds)
    require_disjoint(reported, budget.seeds)
    searched = Space.parse(space)
    rivals = _named(against, top) or {BASE: replace(recipe, guidance="")}
    for name, rival in rivals.items():
        if (rival.prompts, rival.prompt) != (recipe.prompts, recipe.prompt):
            raise InputError(
                f"{name} has other prompts than the search: give both the same, --prompts or "
                '"prompts" in its JSON'
            )
    check = partial(require_measurable, device=features.device)
    for each in (*rivals.values(), *searched.examples(recipe)):
        check(each)
    searched.require_each(recipe, check)
    require_writable(out)
    if storage:
        open_storage(storage, out)
    extractor = features.build()
    require_comparable(reference, extractor)
    rehearse([*rivals.values(), *searched.examples(recipe)], features.device)
    real, _ = known(reference, features, extractor)
    work = out / "measured"
    objective = Objective(metric, real, extractor, work, at_once, features.device, scores)
    search = Search(out, searched, recipe, objective, budget, storage)
    study = search.run()
    try:
        with owned(out / "recipes"):
            results = confirm(search, study, reported, rivals, top, show, resamples)
            page = write(search, study, results, resamples)
    except InUse:
        print(f"{out}: another worker writes the report")
        return
    for one in results:
        print(f"{one.name}: {one.value}, {one.nfe:.4g} NFE\n  {one.command}")
    if text := undecided(results):
        print(text)
    print(page)


def _named(paths: tuple[Path, ...], top: int) -> dict[str, Recipe]:
    """Recipes to compare with, by the names of their files."""
    found = {path.stem: read(path) for path in paths}
    if len(found) < len(paths) or found.keys() & {f"{n + 1}" for n in range(top)}:
        raise InputError(
            f"--against names {', '.join(path.stem for path in paths)}: a recipe is called by its "
            f"file, and 1 to {top} are those of the front: give each a name of its own"
        )
    return found

"""What `diffsteer stats` and `diffsteer evaluate` do; importable without torch.

The command line reads its options from the types and docstrings here.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction

from diffsteer.cli.options import (
    FEATURES,
    LOADING,
    SAMPLES,
    Features,
    Loading,
    Samples,
    loaded,
    said,
)
from diffsteer.core.errors import InputError
from diffsteer.io.seeds import prompts_of

if TYPE_CHECKING:
    from diffsteer.generate.recipe import Recipe
    from diffsteer.metrics.features import Extractor
    from diffsteer.metrics.statistics import Statistics

RECIPES = (".json", ".png")
"""What the names of recipes end in."""


def stats(
    data: Positional[Path], /, out: Path, features: OmitArgPrefixes[Features] = FEATURES
) -> None:
    """Measure a data set once, to compare with it later.

    Args:
        data: Folder or zip file of images.
        out: Statistics file to write, .npz; pytorch-fid reads it too.
        features: How images become features.
    """
    if out.suffix != ".npz":
        raise InputError(f"{out} does not end in .npz, by which readers know the format")
    from diffsteer.io.atomic import owned_file

    with owned_file(out):
        statistics = measured(data, features, features.build())
        statistics.save(out)
    print(
        f"{out}: N={statistics.n}, features of {len(statistics.features)} kept, {statistics.origin}"
    )


def evaluate(
    pictures: Positional[Path],
    /,
    reference: Path,
    features: OmitArgPrefixes[Features] = FEATURES,
    samples: OmitArgPrefixes[Samples] = SAMPLES,
    recipe: Path | None = None,
    mixed: FlagCreatePairsOff[bool] = False,
    resamples: int = 200,
    out: Path | None = None,
    score: UseAppendAction[tuple[str, ...]] = (),
    prompts: Path | None = None,
    loading: OmitArgPrefixes[Loading] = LOADING,
) -> None:
    """Compare images with a reference and print every metric that it allows.

    A recipe is sampled and measured in one pass, without writing images, on as many processes as
    torchrun or accelerate launch starts.

    Args:
        pictures: Folder or zip file; or a recipe: a JSON file, or a PNG of `diffsteer sample`.
        reference: Statistics file (.npz) of `diffsteer stats`, pytorch-fid or ADM, or a folder or
            zip file of real images.
        features: How images become features; must be as the reference was measured.
        samples: Which images of a recipe.
        recipe: Refuse images in the folder that this recipe (JSON, PNG) did not make.
        mixed: Also count images of several recipes; they are refused otherwise.
        resamples: For the intervals; 0 for none.
        out: JSON file for the figures.
        score: Also the mean of a score, such as 'CLIPScore("WEIGHTS")', 'PickScore("WEIGHTS")',
            'HPSv2("FILE", "CLIP")', 'Aesthetic("FILE", "CLIP")' or MODULE:FUNCTION; may be given
            several times.
        prompts: File with the prompt of each image of a folder, one a line in the order of names;
            images of `diffsteer sample` hold theirs.
        loading: How the model of a recipe is loaded, in place of what it says itself.
    """
    from diffsteer.generate.recipe import read
    from diffsteer.generate.recipe_checks import require_measurable
    from diffsteer.io.atomic import owned_file, require_writable, write_json
    from diffsteer.io.distributed import Processes, launched
    from diffsteer.io.images import Pictures
    from diffsteer.io.seeds import format_seeds
    from diffsteer.metrics.bootstrap import require_resamples
    from diffsteer.metrics.evaluate import cautions, compare, omitted, spreads
    from diffsteer.metrics.image_scores import (
        judged,
        mean_spreads,
        means,
        named,
        require_scored,
        scores_of,
    )
    from diffsteer.metrics.image_sets import (
        require_comparable,
        require_no_statistics,
        require_one_recipe,
    )
    from diffsteer.metrics.value import table

    require_resamples(resamples, none=True)
    asked, scores = None, scores_of(score, features.device)
    if pictures.suffix.lower() in RECIPES and not pictures.is_dir():
        if prompts is not None:
            raise InputError(f"{pictures} is a recipe, which has prompts: leave --prompts out")
        if recipe is not None or mixed:
            raise InputError(
                f"{pictures} is a recipe, and --recipe and --mixed say which images of a folder "
                "count: leave them out"
            )
        asked = loaded(read(pictures), loading)
        require_measurable(asked, features.device)
        require_writable(samples.work)
    else:
        if typed := [*said(loading), *said(samples)]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in typed)
            raise InputError(
                f"{pictures} is no recipe, of which {flags} would say how images are made: leave "
                "out what says so"
            )
        require_one_recipe(recipe, mixed)
        require_no_statistics(pictures)
        Pictures.at(pictures)
        require_scored(prompts, scores)
        lines = () if prompts is None else prompts_of(prompts)
        wanted = None if recipe is None else read(recipe)
    extractor = features.build()
    require_comparable(reference, extractor)
    with launched(), ExitStack() as stack:
        first = Processes.running().rank == 0
        if first and out is not None:
            stack.enter_context(owned_file(out))
        against = known(reference, features, extractor) if first else None
        if asked is not None:
            run = samples.measure(asked, features, extractor, scores=scores)
            fake, seeds, each = run.statistics, format_seeds(run.seeds), run.scores
        else:
            each = judged(pictures, scores, lines, features.batch)
            fake, seeds = _folder(pictures, features, extractor, wanted, mixed)
        if against is None:
            return
        real, digest = against
        figures = compare(fake, real, seeds, spreads(fake, real, resamples))
        figures += means(each, named(scores), seeds, mean_spreads(each, resamples))
        notes = omitted(fake, real)
        print(f"{pictures} against {reference}", table(figures), sep="\n")
        for note in notes:
            print(f"not measured: {note}")
        for note in (cautioned := cautions(fake, real)):
            print(f"too few images for {note}")
        if out is not None:
            content = {
                "pictures": str(pictures),
                "reference": {"path": str(reference), "sha256": digest},
                "figures": [figure.json() for figure in figures],
                "not measured": notes,
                "too few images": cautioned,
            }
            write_json(out, content)


def known(
    reference: Path, features: Features, extractor: "Extractor"
) -> tuple["Statistics", str | None]:
    """Statistics of the reference, and the hash of its file where it is one."""
    from diffsteer.io.hashing import file_hash

    hashed = file_hash(reference) if reference.suffix == ".npz" else None
    return measured(reference, features, extractor), hashed


def _folder(
    path: Path, features: Features, extractor: "Extractor", wanted: "Recipe | None", mixed: bool
) -> tuple["Statistics", str]:
    from diffsteer.io.distributed import Processes
    from diffsteer.io.images import Pictures
    from diffsteer.metrics.image_sets import seeds_in

    if Processes.running().world > 1:
        raise InputError(f"{path} is no recipe: only recipes are shared by processes; start one")
    seeds = seeds_in(Pictures.at(path), wanted, mixed)
    return measured(path, features, extractor), seeds


def measured(path: Path, features: Features, extractor: "Extractor") -> "Statistics":
    """Statistics of a folder, zip or statistics file; says on stderr what image files hold."""
    from diffsteer.metrics.image_sets import statistics_of

    kinds = Counter[str]()
    result = statistics_of(path, extractor, features.batch, features.keep, kinds)
    if kinds:
        contents = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        print(f"{path}: {contents}; all measured as RGB, transparency on white", file=sys.stderr)
    return result

"""Page of a noise analysis, from the template noise_analysis.html."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffsteer.io.seeds import format_seeds
from diffsteer.metrics.best_of_n import STRIDE
from diffsteer.report.page import render
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.baselines import BEST, NUDGED
from diffsteer_lab.noise_analysis.charts import Ratios, growing, legend, spaces_of, tenths
from diffsteer_lab.noise_analysis.experiments import FULLY, RANDOM, REFINED, STOPS, UNREFINED
from diffsteer_lab.noise_analysis.inversion import INVERSIONS
from diffsteer_lab.noise_analysis.results import Thumbnail
from diffsteer_lab.noise_analysis.spectrum import band
from diffsteer_lab.noise_analysis.trajectory import ALL, images_of
from diffsteer_lab.noise_analysis.verdict import share


@dataclass(frozen=True)
class Grid:
    """Images of an experiment or of several.

    Attributes:
        columns: Label of each column.
        rows: Label, prompt and images of each row.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Thumbnail]]]


def grid(
    analysis: Analysis, experiments: Mapping[str, str], columns: Sequence[str] | None = None
) -> Grid:
    """Images of experiments of the same columns: for each seed a row of each experiment.

    Args:
        analysis: All of it.
        experiments: Names of experiments by what a row of each is called besides its seed.
        columns: Names in them; None for all.
    """
    images = {label: analysis.results.images.get(name, {}) for label, name in experiments.items()}
    names = list(next(iter(images.values()))) if columns is None else columns
    counts = [len(each) for by_name in images.values() for each in by_name.values()]
    rows = []
    for i in range(max(counts, default=0)):
        seed = analysis.seeds[i]
        for label, by_name in images.items():
            row = [by_name[name][i] for name in names]
            rows.append((f"seed {seed} {label}".strip(), analysis.prompt(seed), row))
    return Grid(names, rows)


def page(analysis: Analysis, charts: Mapping[str, str]) -> str:
    """HTML of an analysis with its charts."""
    results = analysis.results
    bands, ways = results.ratios("bands"), list(results.ratios(ALL)["1"])
    h, w = analysis.shape[-2:]
    edges = {name: tuple(map(float, name.split(" to "))) for name in bands}
    ends = [UNREFINED, FULLY]
    energy = analysis.spectra[REFINED].energy()

    def grids(experiments: Mapping[str, str] | str, columns: Iterable[str] | None = None) -> Grid:
        named = {"": experiments} if isinstance(experiments, str) else experiments
        return grid(analysis, named, None if columns is None else list(columns))

    return render(
        "noise_analysis.html",
        package="diffsteer_lab",
        analysis=analysis,
        charts=charts,
        ratios=results.ratios,
        numbers=results.numbers,
        spaces_of=spaces_of,
        legend=legend,
        grid=grids,
        share=share,
        frequencies={n: int(band(h, w, *e).sum()) for n, e in edges.items()},
        energy=dict(zip(tenths(), energy, strict=True)),
        half=_half(bands),
        tenths=[*ends, *(name for name in tenths() if name in bands)],
        growing=[*ends, *growing(bands)],
        evaluations={name: each.iterations for name, each in INVERSIONS.items()},
        trajectories={way: images_of(way) for way in ways},
        settings={k: v for k, v in analysis.recipe.to_dict().items() if v and k != "prompts"},
        seeds=format_seeds(analysis.seeds),
        stops=len(STOPS),
        names={"random": RANDOM, "best": BEST, "nlg": NUDGED, "stride": STRIDE},
    )


def _half(bands: Ratios) -> str:
    """Name of the first of the bands that grow from 0 to carry half of the result, if any."""
    return next((n for n in growing(bands) if bands[n]["latents"].value <= 0.5), "")

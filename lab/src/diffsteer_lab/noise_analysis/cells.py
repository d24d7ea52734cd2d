"""Pieces of the page of an analysis: numbers in cells, images in grids, names in colours."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from diffsteer.report.html import image, table
from diffsteer.report.plots import Curve
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.charts import Ratios
from diffsteer_lab.noise_analysis.results import Estimate, Thumbnail


def key(names: Iterable[str]) -> str:
    """Legend: names of curves in their colours."""
    curves = [Curve(name, (), turn) for turn, name in enumerate(names)]
    return " ".join(
        f'<span class="key"><i style="background:{c.colour}"></i>{escape(c.name)}</span>'
        for c in curves
    )


def spaces_of(ratios: Ratios) -> list[str]:
    """In which distances are taken."""
    return list(dict.fromkeys(space for each in ratios.values() for space in each))


def cell(found: Estimate) -> str:
    """A number over its interval."""
    low, high = found.interval
    return f"{found.value:.3g}<small>{low:.3g} to {high:.3g}</small>"


def cells(ratios: Ratios, name: str, spaces: Sequence[str] | None = None) -> str:
    """Distances under a name, a cell each: in all spaces, or in those named."""
    row = ratios.get(name, {})
    listed = spaces_of(ratios) if spaces is None else spaces
    return "".join(f"<td>{cell(row[s]) if s in row else ''}</td>" for s in listed)


def side_by_side(drawn: Mapping[str, str], names: Iterable[str]) -> str:
    """Of charts, those named that there are."""
    return f'<div class="charts">{"".join(drawn[n] for n in names if n in drawn)}</div>'


def grid(found: Analysis, experiment: str, names: Sequence[str] | None = None) -> str:
    """Images of an experiment: a row a seed, a column a name, all of them or those named."""
    return grids(found, {"": experiment}, names)


def grids(
    found: Analysis, experiments: Mapping[str, str], names: Sequence[str] | None = None
) -> str:
    """Images of experiments of the same columns: rows a seed, one an experiment, with a label."""
    kept = {label: found.record.pictures.get(name, {}) for label, name in experiments.items()}
    names = list(next(iter(kept.values()))) if names is None else names
    prompts = found.recipe["prompts"]
    assert isinstance(prompts, Sequence)
    rows = []
    for i in range(max((len(e) for columns in kept.values() for e in columns.values()), default=0)):
        seed = found.seeds[i]
        text = escape(str(prompts[seed % len(prompts)]))
        for label, columns in kept.items():
            shown = "".join(_picture(columns[name][i], name) for name in names)
            which = f" {label}" if label else ""
            rows.append(f"<tr><td>seed {seed}{which}<small>{text}</small></td>{shown}</tr>")
            text = ""
    return table(["", *map(escape, names)], rows, "grid") if rows else ""


def _picture(shown: Thumbnail, name: str) -> str:
    caption = f"<small>{escape(shown.caption)}</small>" if shown.caption else ""
    return f"<td>{image(shown.image.copy(), f'{name} {shown.caption}')}{caption}</td>"

"""A comparison as one HTML page that loads nothing: tables, curves, images."""

from collections.abc import Sequence
from html import escape

from diffsteer.metrics.comparison import Compared, Spread
from diffsteer.metrics.value import MetricValue
from diffsteer.report.curves import Shown, curves
from diffsteer.report.html import document, image, table


def page(shown: Sequence[Shown], reference: str, notes: Sequence[str], resamples: int) -> str:
    """HTML of a comparison."""
    names = [one.compared.name for one in shown]
    title = " / ".join(names) if len(names) < 5 else f"{len(names)} recipes"
    sections = [
        f"<h1>{escape(title)}</h1>",
        _head(shown[0].compared.figures[0], reference, resamples),
        _figures(shown),
        _costs(shown),
        curves(shown),
        _grid(shown, names),
        _recipes(shown),
        *(f"<p>Not measured: {escape(note)}.</p>" for note in notes),
    ]
    return document(title, sections)


def _head(figure: MetricValue, reference: str, resamples: int) -> str:
    at, n = figure.origin, figure.reference_n
    return (
        f"<p>N = {figure.n} images of each recipe, seeds {escape(figure.seeds)}, the same for "
        f"all, against {escape(reference)} (N = {'unstated' if n is None else n}). Features: "
        f"{escape(at.extractor)}, layer {escape(at.layer)}, resize {escape(at.resize)}, weights "
        f"<code>{escape(at.weights[:8])}</code>.</p><p>Small print under a value: its 95 % "
        f"interval over seeds ({resamples} resamples, for this N), then the difference from the "
        "first recipe with its own interval, paired over seeds. Green: better than the first "
        "beyond that interval; red: worse. Last, beside real: the score of as many images as "
        "real against real has, on the same part of the reference. No recipe can be expected to do "
        "better than real images.</p>"
    )


def _figures(shown: Sequence[Shown]) -> str:
    figures = shown[0].compared.figures
    head = [""]
    for figure in figures:
        better = "higher" if figure.higher_is_better else "lower"
        detail = f"{figure.detail}; " if figure.detail else ""
        head.append(f"{escape(figure.name)}<small>{escape(detail)}{better} is better</small>")
    rows = [
        f"<tr><th>{escape(one.compared.name)}</th>"
        + "".join(_cell(one.compared, figure) for figure in one.compared.figures)
        + "</tr>"
        for one in shown
    ]
    floors = "".join(f"<td>{_floor(figure)}</td>" for figure in figures)
    rows.append(f"<tr><th>real against real</th>{floors}</tr>")
    return "<h2>Figures</h2>" + table(head, rows)


def _cell(one: Compared, figure: MetricValue) -> str:
    within = "interval unknown" if figure.interval is None else str(figure.interval)
    text, colour = f"<b>{figure.value:.5g}</b><small>{within}</small>", ""
    if figure.name in one.differences:
        value, (low, high) = one.differences[figure.name]
        text += f"<small>{value:+.3g} ({low:+.3g} to {high:+.3g})</small>"
        if low > 0 or high < 0:
            colour = "better" if (value > 0) == figure.higher_is_better else "worse"
    if figure.floor is not None:
        text += f"<small>beside real: {figure.floor.generated:.4g}</small>"
    return f'<td class="{colour}">{text}</td>' if colour else f"<td>{text}</td>"


def _floor(figure: MetricValue) -> str:
    if figure.floor is None:
        return "unknown"
    floor = figure.floor
    return f"<b>{floor.real:.5g}</b><small>N = {floor.n} against {floor.reference_n}</small>"


def _costs(shown: Sequence[Shown]) -> str:
    names = list(dict.fromkeys(name for one in shown for name in one.compared.costs))
    rows = []
    for one in shown:
        cells = "".join(f"<td>{_cost(one.compared.costs.get(name))}</td>" for name in names)
        rows.append(f"<tr><th>{escape(one.compared.name)}</th>{cells}</tr>")
    return (
        "<h2>Cost of one image</h2><p>Median, and the middle half of the images under it. "
        "Rows are samples that a network evaluated; seconds are of sampling, without features.</p>"
        + table(["", *map(escape, names)], rows)
    )


def _cost(cost: Spread | None) -> str:
    if cost is None:
        return ""
    spread = f"<small>{cost.low:.4g} to {cost.high:.4g}</small>" if cost.low < cost.high else ""
    return f"{cost.median:.4g}{spread}"


def _grid(shown: Sequence[Shown], names: Sequence[str]) -> str:
    seeds = list(shown[0].pictures)
    if not seeds:
        return ""
    rows = []
    for seed in seeds:
        cells = "".join(
            f"<td>{image(one.pictures[seed], f'{one.compared.name}, seed {seed}')}</td>"
            for one in shown
        )
        said = shown[0].said
        texts = said["prompts"] or [said["prompt"]]
        assert isinstance(texts, Sequence)
        text = str(texts[seed % len(texts)])
        prompt = f"<small>{escape(text)}</small>" if text else ""
        rows.append(f"<tr><td>seed {seed}{prompt}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *names])
    table = f'<table class="grid"><tr>{head}</tr>{"".join(rows)}</table>'
    return f'<h2>Images of the same seeds</h2><div class="wide">{table}</div>'


def _recipes(shown: Sequence[Shown]) -> str:
    said = [{field: _told(value) for field, value in one.said.items()} for one in shown]
    alike = [f for f in said[0] if len({each[f] for each in said}) == 1]
    shared = ", ".join(f"{f} <code>{escape(said[0][f])}</code>" for f in alike if said[0][f])
    others = [field for field in said[0] if field not in alike]
    rows = []
    for one, each in zip(shown, said, strict=True):
        cells = "".join(f"<td><code>{escape(each[field])}</code></td>" for field in others)
        rows.append(f"<tr><th>{escape(one.compared.name)}</th>{cells}</tr>")
    return f"<h2>Recipes</h2><p>All: {shared}.</p>" + table(["", *others], rows)


def _told(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)} prompts" if value else ""
    text = str(value) if value not in (0, False) else ""
    return text[:16] if len(text) == 64 and " " not in text else text

"""Report of the toy: a table of metrics, and which claims hold."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from diffsteer_lab.toy.measure import Figures
from diffsteer_lab.toy.study import AUTO, CFG, PLAIN, Row, Way

FEWER, SHARE, WITHIN, HALF = 1.0, 0.2, 1.5, 0.5
"""Bounds of the claims: points of outliers, share of an energy distance, points, share of TV."""
DISTANCES = ("coarse", "branches", "energy", "sliced")


@dataclass(frozen=True)
class Claim:
    """Claim on the ways to sample, with the choices of networks for which it holds.

    Attributes:
        name: A letter.
        text: For each choice of networks.
        seen: As measured.
        held: Whether it holds, for each choice.
    """

    name: str
    text: str
    seen: str
    held: tuple[bool, ...]

    def __str__(self) -> str:
        verdict = "holds" if all(self.held) else "does not hold"
        counts = f"{sum(self.held)} of {len(self.held)}"
        return f"{self.name}. {self.text}: {verdict}, {counts} ({self.seen})."


Case = dict[str, Figures]
"""Figures by way, of a main network with guides of one seed."""


def cases(rows: Sequence[Row]) -> list[Case]:
    """Figures by choice of networks."""
    picked = {(r.main, r.guide): None for r in rows if r.guide is not None}
    return [
        {r.way: r.figures for r in rows if r.main == main and r.guide in (None, guide)}
        for main, guide in picked
    ]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Which claims hold, as measured."""
    measured = cases(rows)
    return [claim(measured) for claim in (_outliers, _energy, _masses, _strong, _nearer)]


def _outliers(measured: Sequence[Case]) -> Claim:
    fewer = _fewer(measured, AUTO[2])
    return Claim(
        "a",
        f"Autoguidance at weight 2 leaves fewer outliers than no guidance, by {FEWER:g} point or "
        "more",
        f"{_span(fewer, 1)} points fewer",
        tuple(value >= FEWER for value in fewer),
    )


def _energy(measured: Sequence[Case]) -> Claim:
    pairs = [
        (case[AUTO[2].name], min((case[w.name] for w in CFG.values()), key=lambda f: f.outliers))
        for case in measured
    ]
    share = [auto.energy / cfg.energy for auto, cfg in pairs]
    more = [auto.outliers - cfg.outliers for auto, cfg in pairs]
    return Claim(
        "b",
        f"Its energy distance is at most {SHARE:.0%} of that of CFG at CFG's weight with the "
        f"fewest outliers, and its outliers at most {WITHIN:g} points more",
        f"{_span([100 * value for value in share], 1)} %; {_span(more, 1)} points",
        tuple(s <= SHARE and m <= WITHIN for s, m in zip(share, more, strict=True)),
    )


def _masses(measured: Sequence[Case]) -> Claim:
    share = [case[AUTO[2].name].coarse / case[CFG[2].name].coarse for case in measured]
    return Claim(
        "c",
        f"Its coarse TV is below {HALF:.0%} of that of CFG at weight 2",
        f"{_span([100 * value for value in share], 0)} %",
        tuple(value < HALF for value in share),
    )


def _strong(measured: Sequence[Case]) -> Claim:
    fewer = _fewer(measured, AUTO[3])
    return Claim(
        "d",
        "At weight 3, that of the paper's figure, it still leaves fewer outliers than no guidance",
        f"{_span(fewer, 1)} points fewer",
        tuple(value > 0 for value in fewer),
    )


def _nearer(measured: Sequence[Case]) -> Claim:
    pairs = [(case[AUTO[2].name], case[PLAIN.name]) for case in measured]
    nearer = {
        name: [getattr(auto, name) < getattr(plain, name) for auto, plain in pairs]
        for name in DISTANCES
    }
    nearer["recall"] = [auto.recall > plain.recall for auto, plain in pairs]
    heads = {f.name: f.metadata["head"] for f in fields(Figures)}
    return Claim(
        "e",
        "At weight 2 it is no nearer to the truth than no guidance by any of "
        f"{', '.join(heads[name] for name in nearer)}",
        "nearer in " + ", ".join(f"{sum(v)} by {heads[name]}" for name, v in nearer.items()),
        tuple(not any(column) for column in zip(*nearer.values(), strict=True)),
    )


def _fewer(measured: Sequence[Case], way: Way) -> list[float]:
    """Points by which a way has fewer outliers than no guidance."""
    return [case[PLAIN.name].outliers - case[way.name].outliers for case in measured]


def table(rows: Sequence[Row]) -> str:
    """All figures in Markdown: median (least to most) over the choices of networks."""
    columns = fields(Figures)
    lines = [["", *(f.metadata["head"] for f in columns)], ["---"] * (len(columns) + 1)]
    for way in dict.fromkeys(row.way for row in rows):
        cells = [way]
        for f in columns:
            values = [getattr(row.figures, f.name) for row in rows if row.way == way]
            cells.append(_cell(values, f.metadata["digits"]))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(values: Sequence[float], digits: int) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({_span(values, digits)})"


def _span(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

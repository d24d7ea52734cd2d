"""What the study of the toy found: a table, and which claims hold."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from diffsteer.toy.measure import Figures
from diffsteer.toy.study import AUTO, CFG, PLAIN, Row

FEWER, SHARE, WITHIN, HALF = 1.0, 0.2, 1.5, 0.5
"""What claims ask for: points of outliers, share of an energy distance, points, share of TV."""
DISTANCES = ("coarse", "branches", "energy", "sliced")


@dataclass(frozen=True)
class Claim:
    """Something said of the ways to sample, and whether it is so.

    Attributes:
        name: A letter.
        text: What is claimed for each choice of networks.
        seen: What was measured.
        held: For which choices it is so.
    """

    name: str
    text: str
    seen: str
    held: tuple[bool, ...]

    def __str__(self) -> str:
        verdict = "holds" if all(self.held) else "does not hold"
        counts = f"{sum(self.held)} of {len(self.held)}"
        return f"{self.name}. {self.text}: {verdict}, {counts} ({self.seen})."


def cases(rows: Sequence[Row]) -> list[dict[str, Figures]]:
    """Figures by way, for each main network with each seed of its guides."""
    picked = {(r.main, r.guide): None for r in rows if r.guide is not None}
    return [
        {r.way: r.figures for r in rows if r.main == main and r.guide in (None, guide)}
        for main, guide in picked
    ]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Which claims hold, as measured."""
    found = cases(rows)
    plain, auto, strong = ([case[way.name] for case in found] for way in (PLAIN, AUTO[2], AUTO[3]))
    cfg = [case[CFG[2].name] for case in found]
    best = [min((case[w.name] for w in CFG.values()), key=lambda f: f.outliers) for case in found]
    fewer = [p.outliers - a.outliers for p, a in zip(plain, auto, strict=True)]
    share = [a.energy / b.energy for a, b in zip(auto, best, strict=True)]
    more = [a.outliers - b.outliers for a, b in zip(auto, best, strict=True)]
    mass = [a.coarse / c.coarse for a, c in zip(auto, cfg, strict=True)]
    nearer = {
        name: [getattr(a, name) < getattr(p, name) for a, p in zip(auto, plain, strict=True)]
        for name in DISTANCES
    }
    nearer["recall"] = [a.recall > p.recall for a, p in zip(auto, plain, strict=True)]
    none = [not any(column) for column in zip(*nearer.values(), strict=True)]
    stronger = [p.outliers - s.outliers for p, s in zip(plain, strong, strict=True)]
    heads = {f.name: f.metadata["head"] for f in fields(Figures)}
    return [
        Claim(
            "a",
            f"Autoguidance at weight 2 leaves fewer outliers than no guidance, by {FEWER:g} point "
            "or more",
            f"{_span(fewer, 1)} points fewer",
            tuple(value >= FEWER for value in fewer),
        ),
        Claim(
            "b",
            f"Its energy distance is at most {SHARE:.0%} of that of CFG at CFG's weight with the "
            f"fewest outliers, and its outliers at most {WITHIN:g} points more",
            f"{_span([100 * value for value in share], 1)} %; {_span(more, 1)} points",
            tuple(s <= SHARE and m <= WITHIN for s, m in zip(share, more, strict=True)),
        ),
        Claim(
            "c",
            f"Its coarse TV is below {HALF:.0%} of that of CFG at weight 2",
            f"{_span([100 * value for value in mass], 0)} %",
            tuple(value < HALF for value in mass),
        ),
        Claim(
            "d",
            "At weight 3, that of the paper's figure, it still leaves fewer outliers than no "
            "guidance",
            f"{_span(stronger, 1)} points fewer",
            tuple(value > 0 for value in stronger),
        ),
        Claim(
            "e",
            "It is no nearer to the truth than no guidance by any of "
            f"{', '.join(heads[name] for name in nearer)}",
            "nearer in " + ", ".join(f"{sum(v)} by {heads[name]}" for name, v in nearer.items()),
            tuple(none),
        ),
    ]


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

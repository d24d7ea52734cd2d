"""Claims of the papers as rows of docs/results.md: the paper's figure, ours, and a verdict."""

from collections.abc import Iterator
from typing import Any

HOLDS, PART, FAILS = "**holds**", "**in part**", "**does not hold here**"
UNDECIDED = "not decided at this N"
HEAD = (
    *("claim", "the paper's figure", "measured here", "N, seeds", "uncertainty"),
    *("floor: real images", "verdict", "command"),
)
SOURCES = {
    "CFG": "[Ho and Salimans 2022](https://arxiv.org/abs/2207.12598)",
    "interval": "[Kynkäänniemi et al. 2024](https://arxiv.org/abs/2404.07724)",
    "zero SNR": "[Lin et al. 2023](https://arxiv.org/abs/2305.08891)",
    "auto": "[Karras et al. 2024](https://arxiv.org/abs/2406.02507)",
    "SAG": "[Hong et al. 2023](https://arxiv.org/abs/2210.00939)",
    "PAG": "[Ahn et al. 2024a](https://arxiv.org/abs/2403.17377)",
    "SEG": "[Hong 2024](https://arxiv.org/abs/2408.00760)",
    "refined": "[Ahn et al. 2024](https://arxiv.org/abs/2412.03895)",
    "low": "after [Jeon and Lee 2026](https://arxiv.org/abs/2605.07253)",
    "AGD": "[Perez Jensen and Sadat 2025](https://arxiv.org/abs/2503.07274)",
}
Row = tuple[str, ...]
Figures = dict[str, list[dict[str, Any]]]
GAINS = (
    ("CFG", "CFG", "CFG brings samples closer to the prompt", "Inception score up with the weight"),
    (
        "CFG in an interval",
        "interval",
        "CFG in an interval is no worse than CFG",
        "FID 2.23 to 1.68",
    ),
    ("autoguidance", "auto", "autoguidance improves a conditional model", "FID 2.56 to 1.34"),
    ("CFG + SAG", "SAG", "SAG improves samples with CFG", "FID 26.21 to 20.08 (ADM, 256, alone)"),
    ("PAG", "PAG", "PAG improves samples without CFG", "FID 26.21 to 16.23 (ADM, 256)"),
    ("SEG", "SEG", "SEG improves samples without CFG", ""),
)
"""Rows of the table of methods: name, source, claim, the paper's figure."""
AGAINST = {"CFG in an interval": "CFG", "CFG + SAG": "CFG"}
"""What a method is compared with, where not with no guidance."""


def claims_page(figures: Figures, toy: str) -> list[str]:
    """Rows of claims, and how to read them."""
    rows = [
        *brightness(figures["critters-brightness"]),
        *gains(figures["critters-obedience"]),
        *earlier(figures["critters-stages"]),
        *closed(figures["critters-obedience"]),
        *fashion(figures["fashion"]),
        *pixels(figures["sag"]),
        *points(toy),
    ]
    return [
        "",
        "## Claims",
        "",
        "Verdicts are of the models of this page alone. A gain holds where its interval excludes "
        "0, a gap is closed where three quarters of it are gone. The papers' figures are of their "
        "own models and data: for orientation, not for comparison.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEAD, ("---",) * len(HEAD), *rows)),
    ]


def brightness(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """Zero terminal SNR, on black and on white."""
    plain = {(r["model"], r["background"]): r for r in rows if not r.get("guidance")}
    for ground in dict.fromkeys(r["background"] for r in rows):
        data, flawed, repaired = (plain[m, ground] for m in ("data", "critters-eps", "critters"))
        near = abs(repaired["mean"] - data["mean"]) < 0.25 * abs(flawed["mean"] - data["mean"])
        error = max(r["std"] for r in (data, flawed, repaired)) / data["n"] ** 0.5
        yield (
            f"zero terminal SNR repairs the brightness on {ground}, {SOURCES['zero SNR']}",
            "FID 22.96 to 21.66; brightness by images",
            f"{flawed['mean']:.3f} to {repaired['mean']:.3f}",
            f"{data['n']}, one prompt each",
            f"standard error at most {error:.4f}",
            f"{data['mean']:.3f}",
            HOLDS if near else FAILS,
            "`critters.py brightness`",
        )


def gains(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """Obedience of the methods, and what it gains over none or over CFG."""
    table = {row["name"]: row for row in rows}
    for name, source, claim, paper in GAINS:
        row, other = table[name], table[AGAINST.get(name, "no guidance")]
        gain = row["gain in all right"] if name not in AGAINST else row["gain over CFG"]
        verdict = decided(gain)
        if source == "interval":
            verdict = HOLDS if gain[1] > 0 else UNDECIDED if gain[2] > 0 else FAILS
        yield (
            f"{claim}, {SOURCES[source]}",
            paper,
            rise(other, row),
            f"{row['n']}, 3 ranges",
            f"gain {points_of(gain)}",
            f"{percent(table['real images']['all right'][0])} %",
            verdict,
            "`critters.py obedience`",
        )


def earlier(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """Autoguidance by an earlier moment of the same training."""
    middle = [r for r in rows if r["kimg"] == 160]
    none, auto, cfg = (
        next(r for r in middle if r["guidance"] == t) for t in ("", "Auto(2)", "CFG(2)")
    )
    gain = auto["gain in all right"]
    yield (
        f"autoguidance by an earlier moment of the same training improves it, {SOURCES['auto']}",
        "FID 2.56 to 1.34",
        f"{rise(none, auto)}, CFG {percent(cfg['all right'][0])} %",
        f"{auto['n']}, seeds 0-{auto['n'] - 1}",
        f"gain {points_of(gain)}",
        "",
        decided(gain),
        "`critters.py stages`",
    )


def decided(gain: list[float]) -> str:
    """Verdict on a gain by its interval."""
    return HOLDS if gain[1] > 0 else FAILS if gain[2] < 0 else UNDECIDED


def rise(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Share of images that are all right, of two rows."""
    shares = (percent(row["all right"][0]) for row in (before, after))
    return f"all attributes right: {' to '.join(shares)} %"


CLOSED = {
    "refined": "FID 42.71 to 11.39; CFG 13.38 (SD 2.1)",
    "low": "",
    "AGD": "FID as CFG's",
}
"""The papers' figures of methods at one evaluation a step, by source."""


def closed(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """Share of the gap between no guidance and CFG that methods close at unguided cost."""
    table = {row["name"]: row for row in rows}
    for name, source, claim in (
        ("refined noise", "refined", "refined noise replaces guidance"),
        ("refined low frequencies", "low", "a small network of low frequencies replaces guidance"),
        ("guidance in a LoRA", "AGD", "adapters learn guidance at one evaluation a step"),
    ):
        row, gap = table[name], table["CFG"]["gain in all right"][0]
        low, high = (x / gap for x in row["gain in all right"][1:])
        share = row["gain in all right"][0] / gap
        verdict = HOLDS if low > 0.75 else PART if low > 0 else FAILS if high < 0 else UNDECIDED
        yield (
            f"{claim}, {SOURCES[source]}",
            CLOSED[source],
            f"{share:.0%} of CFG's gain at {row['rows']:g} NFE, CFG has {table['CFG']['rows']:g}",
            f"{row['n']}, 3 ranges",
            f"{low:.0%} to {high:.0%}",
            f"{percent(table['real images']['all right'][0])} %",
            verdict,
            "`critters.py obedience`",
        )


def fashion(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """Autoguidance against CFG and none on photographs of classes."""
    best = {way: min((r for r in rows if r["way"] == way), key=lambda r: r["FD"][0]) for way in
            dict.fromkeys(r["way"] for r in rows)}  # fmt: skip
    least = {
        kind: min((r for w, r in best.items() if w.startswith(kind)), key=lambda r: r["FD"][0])
        for kind in ("none", "CFG", "Auto")
    }
    none, cfg, auto = least.values()
    recall = auto["recall"][0] >= max(cfg["recall"][0], none["recall"][0])
    over_none, over_cfg = (auto["FD"][2] < other["FD"][1] for other in (none, cfg))
    part = PART + ": better than none, and than CFG in recall" if over_none and recall else FAILS
    yield (
        f"autoguidance beats CFG and none at equal or better recall, {SOURCES['auto']}",
        "FID 2.56, 2.23 and 1.34 (EDM2-S, 512)",
        f"FD {none['FD'][0]:.1f}, {cfg['FD'][0]:.1f} ({cfg['way']}) and {auto['FD'][0]:.1f} "
        f"({auto['way']}); recall {none['recall'][0]:.3f}, {cfg['recall'][0]:.3f} and "
        f"{auto['recall'][0]:.3f}",
        f"{auto['n']}, 3 ranges",
        f"{auto['FD'][1]:.1f} to {auto['FD'][2]:.1f} against {cfg['FD'][1]:.1f} to "
        f"{cfg['FD'][2]:.1f}",
        f"{auto['floor'][0]:.1f}",
        HOLDS if over_cfg and over_none and recall else part,
        "`fashion.py`",
    )


PIXELS = (
    ("SAG", "none", "SAG", "SAG improves an unconditional network of pixels", "FID 26.21 to 20.31"),
    (
        "SAG",
        "SAG, random mask",
        "SAG",
        "the mask of SAG's attention is better than a random one",
        "",
    ),
    (
        "SAG",
        "SAG, global mask",
        "SAG",
        "the mask of SAG's attention is better than a blur of everything",
        "",
    ),
    ("PAG", "none", "PAG", "PAG improves an unconditional network of pixels", "FID 26.21 to 16.23"),
    ("SEG", "none", "SEG", "SEG improves an unconditional network of pixels", ""),
    ("SAG", "classifier", "classifier + SAG", "SAG adds to a classifier", "FID 2.97 to 2.58"),
)
"""Rows of the table of pixels: source, what it is compared with, method, claim, paper's figure."""


def pixels(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """Guidance by attention on an unconditional network of pixels."""
    table = {row["way"]: row for row in rows}
    for source, before, after, claim, paper in PIXELS:
        one, other = table[before]["FD"], table[after]["FD"]
        verdict = HOLDS if other[2] < one[1] else FAILS if other[1] > one[2] else UNDECIDED
        yield (
            f"{claim}, {SOURCES[source]}",
            paper,
            f"FD {one[0]:.1f} to {other[0]:.1f}",
            f"{table[after]['n']}, 3 ranges",
            f"{one[1]:.1f} to {one[2]:.1f} and {other[1]:.1f} to {other[2]:.1f}",
            f"{table[after]['floor'][0]:.1f}",
            verdict,
            "`sag.py`",
        )


def points(toy: str) -> Iterator[Row]:
    """Autoguidance where the truth is known."""
    cells = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:]]
        for row in toy.splitlines()
        if row.startswith("| ")
    }
    none, auto, cfg = (cells[n] for n in ("no guidance", "autoguidance, weight 2", "CFG, weight 2"))
    about = ("8,192 points, networks 0-2, guides 0-2", "least to most of 9")
    yield (
        f"autoguidance removes outliers and keeps diversity, {SOURCES['auto']}",
        "figure 1: by eye",
        f"outliers {none[0]} % to {auto[0]} %; recall {none[6]} to {auto[6]}",
        *about,
        f"{cells['exact samples'][0]} %; {cells['exact samples'][6]}",
        PART + ": diversity falls",
        "`diffsteer toy`",
    )
    yield (
        f"CFG loses more of the distribution than autoguidance, {SOURCES['auto']}",
        "figure 1: by eye",
        f"coarse TV at weight 2: CFG {cfg[2]}, autoguidance {auto[2]}",
        *about,
        cells["exact samples"][2],
        HOLDS,
        "`diffsteer toy`",
    )


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points_of(gain: list[float]) -> str:
    """A gain in percentage points with its interval."""
    middle, low, high = (100 * x for x in gain)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f}) points"

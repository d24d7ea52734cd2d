"""Claims of the papers as rows of docs/results.md: what each has, what is measured here, a verdict.

Figures come from docs/results/*.json and toy.md. A claim whose figures rest on Fréchet distances
without a mask, which see grain first, has the verdict "not measured".
"""

from typing import Any

HOLDS, PART, FAILS, OPEN = "**holds**", "**in part**", "**does not hold here**", "not measured"
UNDECIDED = "not decided at this N"
ZERO_SNR = "[Lin et al. 2023](https://arxiv.org/abs/2305.08891)"
AUTO = "[Karras et al. 2024](https://arxiv.org/abs/2406.02507)"
SAG = "[Hong et al. 2023](https://arxiv.org/abs/2210.00939)"
REFINED = "[Ahn et al. 2024](https://arxiv.org/abs/2412.03895)"
AGD = "[Perez Jensen and Sadat 2025](https://arxiv.org/abs/2503.07274)"
Row = tuple[str, str, str, str, str, str, str, str]
HEAD = (
    "claim",
    "the paper's figure",
    "measured here",
    "N, seeds",
    "uncertainty",
    "floor: real images",
    "verdict",
    "by",
)


def claims_page(found: dict[str, Any], toy: str) -> list[str]:
    """Rows of claims, and how to read them."""
    rows = [*brightness(found), *autoguidance(found), *points(toy), *noise(found), *UNMEASURED]
    return [
        "",
        "## Claims",
        "",
        "Verdicts are of the models of this page alone. Distances count where they were taken "
        "through a mask ([which distance to take](evaluate.md#what-a-distance-sees)); a claim that "
        "has others alone is not measured. Brightness holds where three quarters of its error are "
        "gone, a distance where the interval of its change excludes 0. Of papers, the figures of "
        "their own models stand here for orientation: other data, other distances, not to be "
        "compared with ours.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEAD, ("---",) * len(HEAD), *rows)),
    ]


def brightness(found: dict[str, Any]) -> list[Row]:
    """Zero terminal SNR, on black and on white."""
    if not (figures := found.get("brightness")):
        return []
    unguided = [r for r in figures["rows"] if not r["guidance"] or r["model"] == "data"]
    means = {(r["model"], r["background"]): r["mean"] for r in unguided}
    stds = [r["std"] for r in unguided]
    rows = []
    for ground in ("black", "white"):
        data, flawed, repaired = (means[m, ground] for m in ("data", "pocket-eps", "pocket"))
        near = abs(repaired - data) < 0.25 * abs(flawed - data)
        rows.append(
            (
                f"zero terminal SNR brings brightness on {ground} to that of the data, {ZERO_SNR}",
                "FID 22.96 without, 21.66 with all fixes; brightness by images",
                f"{flawed:.3f} without, {repaired:.3f} with",
                f"{figures['n']}, {figures['seeds']}",
                f"standard error at most {max(stds) / figures['n'] ** 0.5:.4f}",
                f"{data:.3f}",
                HOLDS if near else FAILS,
                "`pocket.py brightness`",
            )
        )
    return rows


def autoguidance(found: dict[str, Any]) -> list[Row]:
    """Guidance by a smaller and less trained network, through a mask."""
    if not (figures := found.get("masked")):
        return []
    rows = {row["name"]: row for row in figures["rows"]}
    auto, cfg = rows["Auto(1.25)"], rows["CFG(1.5)"]
    about = (
        f"{figures['n']}, 0-{figures['n'] - 1}",
        "95 %, paired",
        f"{rows['real']['FD'][1]:.1f}",
    )

    def change(row: dict[str, Any]) -> str:
        middle, low, high = row["more"][1]
        return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"

    none = rows["none"]["FD"][1]
    apart = auto["more"][1][2] < cfg["more"][1][1]
    return [
        (
            f"autoguidance is better than no guidance, {AUTO}",
            "FID 2.56 to 1.34 (EDM2-S, 512)",
            f"FD {none:.1f}, masked, changes by {change(auto)}",
            *about,
            HOLDS if auto["more"][1][2] < 0 else UNDECIDED,
            "`pocket.py masked`",
        ),
        (
            f"autoguidance is better than CFG, {AUTO}",
            "FID 1.34 against 2.23",
            f"FD changes by {change(auto)} against {change(cfg)}",
            *about,
            HOLDS if apart else UNDECIDED,
            "`pocket.py masked`",
        ),
    ]


def points(toy: str) -> list[Row]:
    """Autoguidance where the truth is known."""
    cells = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:]]
        for row in toy.splitlines()
        if row.startswith("| ")
    }
    if not cells:
        return []
    none, auto, cfg = (cells[n] for n in ("no guidance", "autoguidance, weight 2", "CFG, weight 2"))
    about = ("8,192 points, networks 0-2, guides 0-2", "least to most of 9")
    return [
        (
            f"autoguidance removes outliers and keeps diversity, {AUTO}",
            "figure 1: by eye",
            f"outliers {none[0]} % to {auto[0]} %; recall {none[6]} to {auto[6]}",
            *about,
            f"{cells['exact samples'][0]} %; {cells['exact samples'][6]}",
            PART + ": diversity falls",
            "`diffsteer toy`",
        ),
        (
            f"CFG loses more of the distribution than autoguidance, {AUTO}",
            "figure 1: by eye",
            f"coarse TV at weight 2: CFG {cfg[2]}, autoguidance {auto[2]}",
            *about,
            cells["exact samples"][2],
            HOLDS,
            "`diffsteer toy`",
        ),
    ]


def noise(found: dict[str, Any]) -> list[Row]:
    """What refined noise changes."""
    if not (figures := found.get("refine-analysis")):
        return []
    band = figures["bands"]["0 to 0.1"]["latents"]
    low, high = (1 - x for x in reversed(band["interval"]))
    lacks = figures["trajectory: layout"]["1"]
    plain, refined = (lacks[way] for way in ("unrefined", "fully refined"))
    apart = refined["interval"][1] < plain["interval"][0]

    def share(x: dict[str, Any]) -> str:
        return f"{x['value']:.1%} ({x['interval'][0]:.1%} to {x['interval'][1]:.1%})"

    about = ("32", "95 % over seeds", "")
    return [
        (
            f"the lowest tenth of the frequencies of refined noise carries the result, {REFINED}",
            "by images",
            f"carried in latents: {1 - band['value']:.0%} ({low:.0%} to {high:.0%})",
            f"32, {figures['seeds']}",
            *about[1:],
            HOLDS if low > 0.5 else FAILS if high < 0.5 else UNDECIDED,
            "`refine analyse`",
        ),
        (
            f"with refined noise the layout is there from the first step, {REFINED}",
            "by images",
            f"lacking: {share(refined)} refined, {share(plain)} unrefined",
            f"32, {figures['seeds']}",
            *about[1:],
            HOLDS if apart else PART + ": with any noise",
            "`refine analyse`",
        ),
    ]


UNMEASURED: list[Row] = [
    (
        f"SAG improves an unconditional network of pixels, {SAG}",
        "FID 26.21 to 20.08 (ADM, 256)",
        "",
        *("", "", "", OPEN),
        "preset `critters-adm`, to be trained",
    ),
    (
        f"refined noise without guidance is as good as CFG, {REFINED}",
        "FID 42.71 unguided, 11.39 refined, 13.38 guided (SD 2.1)",
        "without a mask alone, below",
        *("", "", "", OPEN),
        "`pocket.py refined`",
    ),
    (
        f"adapters learn CFG at one evaluation a step, {AGD}",
        "FID as good as CFG or better",
        "",
        *("", "", "", OPEN),
        "`diffsteer train agd`",
    ),
]

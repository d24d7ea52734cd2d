"""An analysis of refined noise as one HTML page that loads nothing."""

from collections.abc import Mapping, Sequence
from html import escape

from diffsteer.io.seeds import format_seeds
from diffsteer.metrics.best_of_n import STRIDE
from diffsteer.report.html import document, table
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.cells import cell, cells, grid, key, side_by_side, spaces_of
from diffsteer_lab.noise_analysis.charts import Ratios, charts, growing, tenths
from diffsteer_lab.noise_analysis.experiments import FULLY, RANDOM, REFINED, STOPS, UNREFINED
from diffsteer_lab.noise_analysis.inversion import INVERSIONS
from diffsteer_lab.noise_analysis.rivals import BEST, NUDGED
from diffsteer_lab.noise_analysis.spectrum import band
from diffsteer_lab.noise_analysis.trajectory_page import trajectory_section
from diffsteer_lab.noise_analysis.verdict import share

STYLE = """
.verdict { background: #eef4fb; border-left: 4px solid #0b62a3; padding: .6em 1em; margin: 1em 0 }
p { max-width: 62em } .grid th { font-size: 12px; vertical-align: bottom }
.grid td, .grid th { width: 86px } .grid img { width: 86px }
.grid td:first-child { min-width: 10em; text-align: left }
"""


def page(found: Analysis) -> str:
    """HTML of an analysis."""
    drawn = charts(found)
    return document(
        "What refining changes in noise",
        [
            "<h1>What refining changes in noise</h1>",
            _head(found),
            _spectra(found, drawn),
            _inversions(found),
            _bands(found, drawn),
            _redraw(found),
            _strength(found, drawn),
            _prompts(found),
            _between(found),
            trajectory_section(found, drawn),
            _rivals(found),
            _settings(found),
        ],
        STYLE,
    )


def _head(found: Analysis) -> str:
    first = found.verdicts[0]
    answers = ", ".join(f"{v.answer} in {v.space}" for v in found.verdicts)
    rows = [
        f"<tr><th>{v.space}</th><td>{share(v.carried)}</td>"
        f"<td>{share(v.rival_carried)}<small>radii {v.rival}</small></td></tr>"
        for v in found.verdicts
    ]
    held = f"radii {first.band}: {first.coefficients} of {first.of} frequencies"
    moved = "Refining moves the result by " + ", ".join(
        f"{100 * v.moved.value:.2g}% in {v.space}" for v in found.verdicts
    )
    moved += " of what another noise does"
    moved += ", too little to say what carries it." if first.faint else "."
    return (
        "<p>A refiner changes the noise that sampling starts from, so that the image without "
        "guidance looks like one with it. This page shows what it changes, at which spatial "
        "frequencies, and which of them carry the result. Low frequencies are the layout: light "
        "here, dark there. High ones are grain.</p>"
        f'<div class="verdict"><p><b>Does the lowest band carry the result? {answers}.</b></p>'
        f"<p>The lowest tenth of frequencies ({held}) holds {first.energy:.0%} of the change. "
        "Refining it alone brings the result so much of the way from unrefined to fully refined "
        f"({len(found.seeds)} seeds, 95 % intervals in brackets):</p>"
        + table(["in", "the lowest tenth carries", "the best of the others"], rows)
        + "<p>Yes where the 95 % interval lies above one half, no where it lies below, else "
        f"undecided. {moved}</p></div>"
    )


def _spectra(found: Analysis, drawn: Mapping[str, str]) -> str:
    size = {name: f"{each.size():.3g}" for name, each in found.spectra.items()}
    sizes = ", ".join(f"{name} {value}" for name, value in size.items())
    pairs = ""
    if found.recipe["guidance"]:
        pairs = (
            f" The two inversions are of the guided images of the {len(found.seeds)} seeds that "
            "are sampled: the noise that would have become them without guidance."
        )
    return (
        "<h2>1. Which frequencies change</h2>"
        f"<p>The Fourier transform of each channel, averaged over rings of equal frequency, over "
        f"{found.count} noises. The reference is the difference of two unrelated noises.{pairs} "
        "What lies near the reference is replaced, what lies near 0 is kept.</p>"
        f"<p>{key(found.spectra)}</p>"
        + side_by_side(drawn, ("difference", "magnitude", "histogram", "energy"))
        + f"<p>Root mean square of the change by element: {escape(sizes)}.</p>"
    )


def _inversions(found: Analysis) -> str:
    errors = found.record.numbers("round trip")
    if not errors:
        return (
            "<h2>2. Inversion</h2><p>Not measured: there is no guidance, so no guided image to "
            "invert. Name one, such as <code>--guidance &quot;CFG(6)&quot;</code>.</p>"
        )
    steps = found.recipe["steps"]
    assert isinstance(steps, int)
    rows = [
        f"<tr><th>{escape(name)}</th><td>{cell(error)}</td>"
        f"<td>{steps * INVERSIONS[name].iterations}</td></tr>"
        for name, error in errors.items()
    ]
    return (
        "<h2>2. Inversion</h2><p>The guided image is taken back to noise without guidance, and "
        "sampled again without guidance. An exact inverse comes back to where it began. The error "
        "is the root mean square of what is lost over that of the latents.</p>"
        + table(["", "round-trip error", "rows of the network"], rows)
    )


def _bands(found: Analysis, drawn: Mapping[str, str]) -> str:
    ratios = found.record.ratios("bands")
    h, w = found.shape[-2:]
    energy = dict(zip(tenths(), found.spectra[REFINED].energy(), strict=True))
    ends = [UNREFINED, FULLY]
    counted = {n: int(band(h, w, *map(float, n.split(" to "))).sum()) for n in ratios}
    rows = []
    for name, held in counted.items():
        part = f"{energy[name]:.1%}" if name in energy else ""
        rows.append(f"<tr><th>{name}</th><td>{held}</td><td>{part}</td>{cells(ratios, name)}</tr>")
    head = [
        "radii",
        f"frequencies a channel, of {h * w}",
        "share of the change",
        *spaces_of(ratios),
    ]
    return (
        "<h2>3. Which band carries the result</h2>"
        "<p>Unrefined noise gets one band of refined noise and is sampled without guidance. The "
        "numbers are squared distances to the image from fully refined noise: 1 where the band "
        "carries nothing, as if nothing were refined, 0 where it carries all. In a sampler that "
        "were linear, what the tenths carry would add up to 1. Bars and brackets: 95 % intervals "
        f"over {len(found.seeds)} seeds.</p><p>{key(spaces_of(ratios))}</p>"
        + side_by_side(drawn, ("tenths", "growing"))
        + f"<p>{_half(ratios, counted)}</p>"
        + table(head, rows)
        + grid(found, "bands", [*ends, *(n for n in tenths() if n in ratios)])
        + grid(found, "bands", [*ends, *growing(ratios)])
    )


def _half(ratios: Ratios, counted: Mapping[str, int]) -> str:
    """From where on bands that grow carry half of the result."""
    enough = [n for n in growing(ratios) if ratios[n]["latents"].value <= 0.5]
    if not enough:
        return "None of the bands that grow from 0 carries half of the result in latents."
    return (
        f"Of the bands that grow from 0, the first that carries half of the result in latents is "
        f"{enough[0]}, with {counted[enough[0]]} frequencies a channel."
    )


def _redraw(found: Analysis) -> str:
    ratios = found.record.ratios("redraw")
    rows = [f"<tr><th>{name}</th>{cells(ratios, name)}</tr>" for name in ratios]
    return (
        "<h2>4. Keep a band of refined noise, draw the rest anew</h2>"
        "<p>All other frequencies come from other random noise. 1: as far from the fully refined "
        "image as one of that other noise; 0: the same image. Where low radii come out near 0 "
        "and high ones near 1, low ones decide the layout.</p>"
        + table(["kept radii", *spaces_of(ratios)], rows)
        + grid(found, "redraw")
    )


def _strength(found: Analysis, drawn: Mapping[str, str]) -> str:
    score = "" if "strength-score" in drawn else " No score was named (<code>--score</code>)."
    teacher = (
        "The guided image is of the same noise, unrefined. Dashed: the distance of the unrefined "
        "image from it; among scores, that of the guided images."
        if found.recipe["guidance"]
        else "Without a guidance there is no guided image to come near to."
    )
    ratios = found.record.ratios("strength: change")
    return (
        f"<h2>5. Strength</h2><p>The change of the noise times a factor. {teacher}{score}</p>"
        f"<p>{key(spaces_of(ratios))}</p>"
        + side_by_side(drawn, ("strength-teacher", "strength-change", "strength-score"))
        + grid(found, "strength")
    )


def _prompts(found: Analysis) -> str:
    layout = found.record.ratios("prompts: layout")
    result = found.record.ratios("prompts: result")
    spaces = spaces_of(layout)
    rows = [
        f"<tr><th>{escape(name)}</th>{cells(result, name, spaces)}{cells(layout, name, spaces)}"
        "</tr>"
        for name in layout
    ]
    head = ["sampled for", *(f"{s}<small>to refined for it</small>" for s in spaces)]
    head += [f"{s}<small>to the first prompt's</small>" for s in spaces]
    missing = ""
    if "similar" not in layout:
        missing = (
            " Similar and unrelated prompts are not measured: they are chosen from the prompts, of "
            "which there have to be three."
        )
    return (
        "<h2>6. Refined for one prompt, sampled for another</h2>"
        "<p>Similar: of the prompts, the one that shares most words with the first; unrelated: "
        "the one that shares fewest. On the left, the squared distance to what noise refined for "
        "the second prompt gives: 0 is as good as that, 1 no better than not refining, more is "
        "worse. On the right, to the first prompt's refined image: 0 where it is still there, 1 "
        f"where no more of it is there than without refining.{missing}</p>"
        + table(head, rows)
        + grid(found, "prompts")
    )


def _between(found: Analysis) -> str:
    even = found.record.numbers("between")
    said = "; ".join(f"{name} {value}" for name, value in even.items())
    return (
        "<h2>7. Between two noises</h2>"
        "<p>Noises on the arc from that of one seed to that of the next, for the first one's "
        "prompt, unrefined and refined. The paper takes gradual changes for a sign that "
        "refining did not learn images by heart. "
        f"The largest step, as a share of all {len(STOPS) - 1}, in latents: {escape(said)}; "
        f"{1 / (len(STOPS) - 1):.2g} where all are alike.</p>"
        f"<h3>{UNREFINED}</h3>{grid(found, f'between, {UNREFINED}')}"
        f"<h3>{REFINED}</h3>{grid(found, f'between, {REFINED}')}"
    )


def _rivals(found: Analysis) -> str:
    record, ratios = found.record, found.record.ratios("rivals: teacher")
    counts = {"rows of the network": record.numbers("rivals: rows")}
    counts["rows of the guide"] = record.numbers("rivals: rows of the guide")
    scores, spaces = record.numbers("rivals: score"), spaces_of(ratios)
    head = ["", *(name for name, each in counts.items() if each)]
    head += [f"{space}<small>distance to guided</small>" for space in spaces]
    head += ["score"] * bool(scores)
    rows = []
    for name in counts["rows of the network"]:
        costs = [
            f"{each[name].value:g}" if name in each else "0" for each in counts.values() if each
        ]
        said = "".join(f"<td>{cost}</td>" for cost in costs) + cells(ratios, name, spaces)
        judged = f"<td>{cell(scores[name])}</td>" if scores else ""
        rows.append(f"<tr><th>{name}</th>{said}{judged}</tr>")
    missing = "".join(f" Left out: {name}, since {why}." for name, why in found.left_out.items())
    return (
        "<h2>9. Rivals</h2>"
        "<p>What refining costs and brings, beside what else the same network can do. Rows of "
        f"networks are for an image, as counted. {NUDGED} is noise level guidance, which needs no "
        f"training; {BEST} takes that of so many Gaussian noises which the score prefers, and is "
        "then judged by the same score, which favours it. Distances are squared ones to the "
        "guided image of the same noise, that of the unrefined image 1; the best of other "
        f"noises has none.{escape(missing)}</p>" + table(head, rows) + grid(found, "rivals")
    )


def _settings(found: Analysis) -> str:
    said = {k: v for k, v in found.recipe.items() if v and k != "prompts"}
    listed = ", ".join(f"{k} <code>{escape(str(v))}</code>" for k, v in said.items())
    prompts = found.recipe["prompts"]
    assert isinstance(prompts, Sequence)
    hashes = f"weights <code>{found.weights[:16]}</code>"
    if found.refiner:
        hashes += f", refiner <code>{found.refiner[:16]}</code>"
    features = "" if any("features" in v.space for v in found.verdicts) else (
        "<p>Not measured: distances of features, which need the extra <code>eval</code>, or where "
        "images do not differ.</p>"
    )  # fmt: skip
    return (
        f"<h2>Settings</h2><p>{listed}; {len(prompts)} prompts. The guidance is of the guided "
        "images alone, all others are sampled without. Seeds "
        f"{format_seeds(found.seeds)}; spectra of refining: {found.count} noises. Noise of "
        f"{' x '.join(map(str, found.shape))}. {hashes}. "
        f"{RANDOM.capitalize()}: of seed + {STRIDE}.</p>"
        f"{features}<p>All numbers are in <code>analysis.json</code>.</p>"
    )

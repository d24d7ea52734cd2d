"""Table of what works on which network, measured on the tiny pipelines.

python -m families.table   # in tests/; writes models.csv of the package and docs/models.md
"""

import csv
from io import StringIO
from pathlib import Path

import torch

from diffsteer import steer
from diffsteer.core.errors import InputError
from diffsteer.hf.families import known_family
from diffsteer.hf.network import network_of, unwrap_compiled
from families import FAMILIES
from families.calls import first
from families.parts import TinyFamily
from families.unreached import UNREACHED

ROOT = Path(__file__).parents[2]
CSV, PAGE = ROOT / "src/diffsteer/hf/models.csv", ROOT / "docs/models.md"
GUIDANCES = {
    "CFG": "CFG(2)",
    "AutoNoise": "AutoNoise(2, noise=0.1)",
    "PAG": "PAG(1)",
    "SEG": "SEG(1)",
    "SAG": "SAG(0.5, on='cond')",
    "SLG": "SLG(1)",
    "TPG": "TPG(1)",
    "NAG": "NAG(4)",
}
"""Columns of the table, and the guidance that is tried."""
PATTERNS = {
    "A": "one call, both conditions in its batch",
    "B": "one call for each condition",
    "C": "one call for each condition of its guider",
    "D": "a second network for the null prompt",
    "E": "one call, no null prompt",
}
HEAD = ["network", "pipeline", "calls", *GUIDANCES, "note"]
INTRODUCTION = """# Models

What works on which network of diffusers, measured on a tiny pipeline of random weights each:
{guided} of {all} networks can be guided, {attention} of them by perturbed attention.

`CFG` equals the pipeline's own guidance; pipelines that bring the norm of the sum back (Qwen-Image,
Lumina 2, LongCat, JoyImage, NucleusMoE) do not when they are steered. `Auto` works wherever `CFG`
does (but for QwenImage21), with a second network for the same latents and conditions. "no" means
that the guidance is refused before anything is guided, with the reason in the note.
`diffsteer models` prints the table.
[Networks of published size](published-sizes.md) has the cost beside the pipelines' own guidance.

"""


def tried(family: TinyFamily, guidance: str) -> str:
    """Empty where a guidance works on a tiny pipeline, else the reason why not."""
    pipe = family.build()
    torch.manual_seed(0)
    call = family.kwargs(pipe) | (family.guided(pipe) if family.guided else {})
    try:
        with steer(pipe, guidance):
            sample = first(pipe(**call))
    except InputError as error:
        return str(error)
    return "" if sample.isfinite().all() else "not finite"


def row(family: TinyFamily) -> list[str]:
    """Row of the table for a pipeline."""
    reasons = {name: tried(family, guidance) for name, guidance in GUIDANCES.items()}
    if all(reasons.values()):
        marks, note = ["no"] * len(reasons), short(next(iter(reasons.values())))
    else:
        marks = ["no" if reason else "yes" for reason in reasons.values()]
        note = "; ".join(dict.fromkeys(short(reason) for reason in reasons.values() if reason))
    known = known_family(unwrap_compiled(network_of(family.build()))) is not None
    calls = PATTERNS[family.pattern] + (" (refiners, max_rows)" if known else "")
    return [family.network, family.pipeline, calls, *marks, note]


def short(reason: str) -> str:
    """Reason in few words."""
    for words, text in REASONS.items():
        if words in reason:
            return text
    return reason.partition(":")[0]


REASONS = {
    "no attention layer": "no attention map of the image",
    "linear attention": "linear attention: no SEG, no SAG",
    "SAG blurs images": "packed samples or sound: no SAG",
    "neither height nor width is known": "height and width of its tokens unknown: no blur",
    "no betas": "a noise schedule of its own",
    "asks for the condition 'null'": "no null prompt",
    "neither sends nor encodes": "no null prompt",
    "to encode it": "its tiny pipeline has no text encoder",
    "it is not certain how": "told its time by a rule of its own: no other noise level",
    "keeps a cache": "keeps keys and values between calls: no skipped blocks, no guide",
    "are not known, so they cannot be shuffled": "places of the image's tokens unknown: no TPG",
    "where it was measured with": "places of the image's tokens unknown: no TPG",
    "reads a text": "reads no text: no NAG",
    "tells the image from the text": "attends to one sample after another: no NAG",
    "a row of tokens for each sample": "texts of several layers or frames: no NAG",
    "evaluates both prompts in one batch": "texts of two lengths: no NAG",
    "more than 2 times a step": "with guidance of its own switched on (skipped layers, modalities)",
    "several outputs": "answers with a cache as well",
}
"""Words of an error and what the table says of it."""


def rows() -> list[list[str]]:
    """The whole table, sorted."""
    made = {tuple(row(family)) for family in FAMILIES}
    made |= {(name, "", "", *["no"] * len(GUIDANCES), reason) for name, reason in UNREACHED}
    return sorted(map(list, made))


def written(table: list[list[str]]) -> tuple[str, str]:
    """The table as CSV and as a page."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *table])
    lines = ["| " + " | ".join(cells) + " |" for cells in [HEAD, ["---"] * len(HEAD), *table]]
    guided = {cells[0] for cells in table if "yes" in cells}
    attention = {cells[0] for cells in table if cells[HEAD.index("PAG")] == "yes"}
    counts = {"guided": len(guided), "all": len({cells[0] for cells in table})}
    page = INTRODUCTION.format(**counts, attention=len(attention)) + "\n".join(lines) + "\n"
    return text.getvalue(), page


if __name__ == "__main__":
    for path, content in zip((CSV, PAGE), written(rows()), strict=True):
        path.write_text(content)

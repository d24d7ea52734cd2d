"""An analysis of refined noise on disk: a page, its numbers, its charts and its images."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.io.atomic import atomic_write
from diffsteer.io.seeds import format_seeds
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.charts import charts
from diffsteer_lab.noise_analysis.experiments import RANDOM
from diffsteer_lab.noise_analysis.page import page
from diffsteer_lab.noise_analysis.results import Estimate
from diffsteer_lab.noise_analysis.spectrum import BINS, REACH, TENTHS
from diffsteer_lab.noise_analysis.trajectory import ALL, LAYOUT, TEACHER

if TYPE_CHECKING:
    from PIL.Image import Image

STRENGTH, PROMPTS = (
    ("strength: change", "strength: teacher"),
    ("prompts: layout", "prompts: result"),
)
RATIOS = ("bands", "redraw", *STRENGTH, *PROMPTS, ALL, LAYOUT, TEACHER, "rivals: teacher")
RIVALS = ("rivals: rows", "rivals: rows of the guide", "rivals: score")
NUMBERS = ("round trip", "strength: score", "between", *RIVALS)
GAP = 2
"""Pixels between images of a sheet."""


def write(found: Analysis, out: Path) -> None:
    """Write `index.html`, `analysis.json`, an SVG a chart and a PNG an experiment to a folder."""
    for name, svg in charts(found).items():
        with atomic_write(out / f"{name}.svg") as file:
            file.write(svg.encode())
    for name, columns in found.record.pictures.items():
        if any(columns.values()):
            with atomic_write(out / f"{name.replace(',', '').replace(' ', '-')}.png") as file:
                sheet([[s.image for s in each] for each in columns.values()]).save(file, "PNG")
    with atomic_write(out / "analysis.json") as file:
        file.write((json.dumps(numbers(found), indent=2, ensure_ascii=False) + "\n").encode())
    with atomic_write(out / "index.html") as file:
        file.write(page(found).encode())


def sheet(columns: "list[list[Image]]") -> "Image":
    """Pictures side by side, a column each; white where one has less."""
    from PIL import Image

    every = [picture for column in columns for picture in column]
    w, h = (max(p.size[i] for p in every) + GAP for i in (0, 1))
    rows = max(len(column) for column in columns)
    whole_sheet = Image.new("RGB", (w * len(columns), h * rows), "white")
    for x, column in enumerate(columns):
        for y, picture in enumerate(column):
            whole_sheet.paste(picture, (x * w + GAP // 2, y * h + GAP // 2))
    return whole_sheet


def numbers(found: Analysis) -> dict[str, Any]:
    """All numbers, in plain values; a measured one is its value and both ends of its interval."""
    record = found.record
    return {
        "recipe": found.recipe,
        "weights": found.weights,
        "refiner": found.refiner,
        "seeds": format_seeds(found.seeds),
        "spectra of": found.count,
        "shape": list(found.shape),
        "verdicts": [
            {"text": str(v), **{k: _plain(x) for k, x in vars(v).items()}} for v in found.verdicts
        ],
        "spectra": {
            name: {
                "rings": list(each.edges),
                "difference": _plain(each.difference()),
                "magnitude": _plain(each.magnitude()),
                "tenths": list(TENTHS),
                "energy": each.energy(),
                "size": each.size(),
                "histogram": {"from": 0, "to": REACH, "bins": BINS, "density": each.histogram()},
            }
            for name, each in found.spectra.items()
        },
        "random": RANDOM,
        **{name: _plain(record.ratios(name)) for name in RATIOS},
        **{name: _plain(record.numbers(name)) for name in NUMBERS},
        "left out": found.left_out,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {"value": value.value, "interval": list(value.interval)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value

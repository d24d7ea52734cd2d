"""Files of a noise analysis: page, numbers, charts and contact sheets."""

import json
from pathlib import Path
from typing import Any

from diffsteer.io.atomic import atomic_write, put
from diffsteer.io.seeds import format_seeds
from diffsteer.io.sheet import sheet
from diffsteer.metrics.bootstrap import Estimate
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.charts import charts
from diffsteer_lab.noise_analysis.experiments import RANDOM
from diffsteer_lab.noise_analysis.page import grid, page
from diffsteer_lab.noise_analysis.spectrum import BINS, REACH, TENTHS
from diffsteer_lab.noise_analysis.trajectory import ALL, LAYOUT, TEACHER

STRENGTH, PROMPTS = (
    ("strength: change", "strength: teacher"),
    ("prompts: layout", "prompts: result"),
)
RATIOS = ("bands", "redraw", *STRENGTH, *PROMPTS, ALL, LAYOUT, TEACHER, "rivals: teacher")
RIVALS = ("rivals: rows", "rivals: rows of the guide", "rivals: score")
NUMBERS = ("round trip", "strength: score", "between", *RIVALS)


def write(analysis: Analysis, out: Path) -> None:
    """Write `index.html`, `analysis.json`, an SVG a chart and a PNG an experiment to a folder."""
    drawn = charts(analysis)
    for name, svg in drawn.items():
        put(out / f"{name}.svg", svg.encode())
    for name in analysis.results.images:
        images = grid(analysis, {"": name})
        if images.rows:
            thumbnails = [[each.image for each in row] for *_, row in images.rows]
            labels = [f"{label}: {prompt}" for label, prompt, _ in images.rows]
            with atomic_write(out / f"{name.replace(',', '').replace(' ', '-')}.png") as file:
                sheet(thumbnails, images.columns, labels).save(file, "PNG")
    text = json.dumps(numbers(analysis), indent=2, ensure_ascii=False)
    put(out / "analysis.json", f"{text}\n".encode())
    put(out / "index.html", page(analysis, drawn).encode())


def numbers(analysis: Analysis) -> dict[str, Any]:
    """All numbers in plain values; an estimate is its value and both ends of its interval."""
    results = analysis.results
    return {
        "recipe": analysis.recipe.to_dict(),
        "weights": analysis.weights,
        "refiner": analysis.refiner,
        "seeds": format_seeds(analysis.seeds),
        "spectra of": analysis.count,
        "shape": list(analysis.shape),
        "verdicts": [
            {"text": str(v), **{name: _plain(value) for name, value in vars(v).items()}}
            for v in analysis.verdicts
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
            for name, each in analysis.spectra.items()
        },
        "random": RANDOM,
        **{name: _plain(results.ratios(name)) for name in RATIOS},
        **{name: _plain(results.numbers(name)) for name in NUMBERS},
        "left out": analysis.left_out,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {"value": value.value, "interval": list(value.interval)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value

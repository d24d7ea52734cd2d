"""The tables of docs/choosing-a-guidance.md against the code."""

import re
from pathlib import Path

import diffusers
import pytest
import torch

from diffsteer import EDM, Guidance, Recipe, V, parse, plan
from diffsteer.core.errors import InputError
from diffsteer.core.parse import subclasses
from diffsteer.guidance import GuidanceState
from diffsteer.guidance.defaults import FAMILIES, defaults

PAGE = Path(__file__).parents[2] / "docs" / "choosing-a-guidance.md"
WRAPPERS = {"Sum", "Scaled", "Within", "Over", "Rescaled", "Clamped"}


def rows(title: str) -> list[list[str]]:
    """Cells of the table under a title, without its head."""
    part = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def nfe(guidance: Guidance) -> str:
    """Evaluations of a step as the table says them."""
    edm = EDM()
    x, now, ahead = torch.zeros(1, 4, 8, 8), edm.at(2.0), edm.at(1.0)
    at = GuidanceState(x, now, V(), 1, edm, next=ahead)
    counts = dict(plan(guidance.guided(at), at).rows)
    others = "".join(f" + {n} {net}" for net, n in counts.items() if net != "main")
    return f"{counts['main']}{others}"


def test_each_registered_guidance_is_in_the_table_with_its_nfe() -> None:
    classes = {c.__name__ for c in subclasses(Guidance) if c.__module__.startswith("diffsteer.")}
    listed = set()
    for cell, _, cost, _, _, _, published, measured in rows("All guidances"):
        guidance = parse(cell.strip("`"), Guidance)
        assert nfe(guidance) == cost.removesuffix(" at most"), cell
        assert published and measured
        listed.add(type(guidance).__name__)
    assert listed == classes - WRAPPERS
    assert all(re.search(rf"\b{name}\b", Recipe.__doc__) for name in listed), "help of --guidance"


def test_values_by_model_are_those_of_the_code() -> None:
    told, family = [], ""
    for name, guidance, note, source in rows("By model"):
        family = name or family
        told.append((family, guidance.strip("`"), source, note))
    assert told == [(each.name, *start) for each in FAMILIES for start in each.starts]
    for each in FAMILIES:
        assert defaults(each.name) == each.starts
        for start in each.starts:
            parse(start.guidance, Guidance)


def test_defaults_of_a_pipeline() -> None:
    assert defaults("StableDiffusionXLControlNetPipeline")[0].guidance == "CFG(5)"
    assert defaults("StableDiffusionPipeline")[0].guidance == "CFG(7.5)"
    assert defaults("WanImageToVideoPipeline") == defaults("Wan 2.1")
    assert defaults("ShapEPipeline") == ()
    assert all(
        hasattr(diffusers, name) or any(n.startswith(name) for n in dir(diffusers))
        for each in FAMILIES
        for name in each.pipelines
    )
    with pytest.raises(InputError, match=r"did you mean 'Stable Diffusion XL'\?"):
        defaults("stable diffusion xl")


def test_recommendations_are_guidances() -> None:
    cells = [row[1] for row in rows("By need")] + [row[1] for row in rows("By model")]
    texts = [text for cell in cells for text in re.findall(r"`([A-Z][^`]*\))`", cell)]
    assert len(texts) > 35
    for text in texts:
        parse(text, Guidance)

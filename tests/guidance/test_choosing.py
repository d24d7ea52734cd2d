"""The tables of docs/choosing-a-guidance.md against the code."""

import csv
import inspect
import re
from importlib.resources import files
from pathlib import Path

import diffusers
import diffusers.guiders
import pytest
import torch

from diffsteer import EDM, Guidance, Recipe, V, parse, plan
from diffsteer.core.errors import InputError
from diffsteer.core.parse import subclasses
from diffsteer.guidance import GuidanceState
from diffsteer.guidance.defaults import EACH, FAMILIES, defaults, plainest, start
from diffsteer.studio.catalogue import entries, name_of

PAGE = Path(__file__).parents[2] / "docs" / "choosing-a-guidance.md"
PLAIN = [
    *("StableDiffusion", "StableDiffusionXL", "PixArtAlpha", "Sana"),
    *("CogVideoX", "Mochi", "LTX", "Wan"),
]
"""Pipelines whose default weight is that of a family."""
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
        name = type(guidance).__name__
        assert cell.strip("`") == EACH[name].guidance
        listed.add(name)
    assert listed == classes - WRAPPERS
    assert EACH.keys() == classes - {"Sum", "Scaled"} | {"Auto with a LoRA"}
    missing = [name for name in listed if not re.search(rf"\b{name}\b", Recipe.__doc__)]
    assert not missing, "name them in the docstring of Recipe, which is the help of --guidance"


def test_values_by_model_are_those_of_the_code() -> None:
    told, family = [], ""
    for name, guidance, note, source in rows("By model"):
        family = name or family
        told.append((family, guidance.strip("`"), source, note))
    starts = {each.name: each.starts for each in FAMILIES} | {"any other": EACH.values()}
    assert told == [(name, *one) for name, each in starts.items() for one in each]
    for each in FAMILIES:
        assert defaults(each.name) == each.starts
    for name, one in EACH.items():
        parts = [type(part).__name__ for part in parse(one.guidance, Guidance).parts()]
        assert name.split()[0] in parts and one.source


def test_values_of_diffusers_are_those_of_the_installed_one() -> None:
    for name in PLAIN:
        first, own = defaults(f"{name}Pipeline")[0], getattr(diffusers, f"{name}Pipeline")
        weight = inspect.signature(own.__call__).parameters["guidance_scale"].default
        assert first.source == "diffusers' default"
        assert parse(first.guidance, Guidance).scale == weight
    named = [(re.match(r"diffusers, `(\w+)`", one.source), one) for one in EACH.values()]
    guiders = [(found[1], one) for found, one in named if found]
    assert len(guiders) == 8
    for name, one in guiders:
        made = getattr(diffusers.guiders, name, None) or getattr(diffusers, name).__call__
        values = [p.default for p in inspect.signature(made).parameters.values()]
        values += [each for value in values if isinstance(value, list) for each in value]
        weights = re.match(r"\w+\(([\d., ]+\d)", one.guidance)[1].split(", ")
        assert all(float(weight) in values for weight in weights), one


def test_start_of_one_guidance() -> None:
    assert start("CFG", "StableDiffusionXLPipeline").guidance == "CFG(5)"
    assert start("NAG", "WanPipeline").guidance == "CFG(5) + NAG(8)"
    assert start("PAG", "WanPipeline") == start("PAG") == EACH["PAG"]
    with pytest.raises(InputError, match=r"did you mean 'TCFG'\?"):
        start("TCGF")


def test_the_doctor_advises_by_the_same_values() -> None:
    head = next(csv.reader(files("diffsteer.hf").joinpath("models.csv").open()))
    assert {*head[3:-1]} <= EACH.keys()
    for pipeline, flow, text in [
        ("StableDiffusionPipeline", False, "CFG(7.5)"),
        ("StableDiffusionXLPipeline", False, "CFG(5)"),
        ("WanPipeline", True, "CFG(5)"),
        ("AuraFlowPipeline", True, "CFG(4.5)"),  # of no family
        ("AnimateDiffPipeline", False, "CFG(7.5)"),
        ("Mine", False, "CFG(7.5)"),
    ]:
        assert plainest(pipeline, flow)[0].guidance == text


def test_the_studio_offers_the_same_values() -> None:
    known = {each.guidance for family in FAMILIES for each in family.starts}
    known |= {each.guidance for each in EACH.values()}
    for name, scheduler, unet in [
        ("StableDiffusionPipeline", diffusers.DDIMScheduler(), True),
        ("StableDiffusion3Pipeline", diffusers.FlowMatchEulerDiscreteScheduler(), False),
        ("AuraFlowPipeline", diffusers.FlowMatchEulerDiscreteScheduler(), False),
    ]:
        pipe = type(name, (), {"scheduler": scheduler, "unet": unet or None})()
        menu = {e.name: e.text for e in entries(pipe, guide=True, known={"PAG": "PAG(0.5)"})}
        assert menu.pop("No guidance") == "" and menu.pop("PAG") == "PAG(0.5)"
        assert len(menu) > 24 and {*menu.values()} <= known
        assert menu["CFG"] == plainest(name, not unet)[0].guidance
        assert menu["Auto"] == EACH["Auto"].guidance and ("SMC" in menu) == (not unet)
        assert menu["TPG"] == ('TPG(3, "down_blocks")' if unet else "TPG(3)")
    assert name_of("CFG(5).within(0, 2) + 2 * PAG(3)") == "CFG in an interval + PAG"


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
    known = {one.guidance for each in FAMILIES for one in each.starts}
    assert len(texts) > 35 and {*texts} <= known | {one.guidance for one in EACH.values()}
    for text in texts:
        parse(text, Guidance)

"""Every Python block of the README and the docs runs, and links lead to files."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from families import FAMILIES

import diffsteer
from diffsteer import SPACINGS, Recipe, Sampler
from diffsteer.cli.main import schedule
from diffsteer.core.parse import subclasses
from diffsteer.core.sampler import NAMED

ROOT = Path(__file__).parent.parent
PAGES = (
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "lab/README.md", "comfyui/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
)
BLOCKS = [
    pytest.param(
        match.group(1), id=f"{page.name}:{page.read_text('utf-8')[: match.start()].count(chr(10))}"
    )
    for page in PAGES
    for match in re.finditer(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
]


GENERATED = {"cli.md", "contributing.md", "changelog.md", "comfyui.md"}  # by tools/mkdocs_hooks.py
STAND_INS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "UNet2DCondition-StableDiffusion",
    "ByteDance/sd2.1-base-zsnr-laionaes5": "UNet2DCondition-StableDiffusion",
    "stabilityai/stable-diffusion-xl-base-1.0": "UNet2DCondition-StableDiffusionXL",
    "stabilityai/stable-diffusion-3.5-medium": "SD3Transformer2D-StableDiffusion3",
    "black-forest-labs/FLUX.1-dev": "FluxTransformer2D-Flux-distilled",
    "Qwen/Qwen-Image": "QwenImageTransformer2D-QwenImage",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "WanTransformer3D-Wan",
    "google/ddpm-celebahq-256": "UNet2D-DDIM",
}
"""Tiny pipelines of random weights for the models that the docs name by their hub id."""


def stand_in(model: str, *dtype: Any) -> Any:
    """A tiny pipeline in place of the model; it is called with its own embeddings."""
    if model not in STAND_INS:
        from diffsteer.hf.load import load

        return load(model, *dtype)
    family = next(family for family in FAMILIES if family.name == STAND_INS[model])
    pipe = family.build()
    call = type(pipe).__call__
    options = family.kwargs(pipe) | (family.guided(pipe) if family.guided else {})

    class StandIn(type(pipe)):  # type: ignore[misc]
        def __call__(self, *prompt: str, **asked: Any) -> Any:
            return call(self, **options | {"num_inference_steps": 2})

    pipe.__class__ = StandIn
    return pipe


@pytest.mark.parametrize("code", BLOCKS)
def test_block(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diffsteer, "load", stand_in)
    with patch.dict(SPACINGS):  # blocks add to it
        exec(compile(code, "<docs>", "exec"), {"__name__": "docs"})


def test_docs_show_what_the_command_prints() -> None:
    from diffsteer.cli.schedule import show

    printed = show("sd", 10, "trailing", True, None).splitlines()
    text = (ROOT / "docs/zero-snr.md").read_text("utf-8")
    block = re.search(r"^```text\n(.*?)^\.\.\.\n```", text, re.M | re.S)
    assert block and block.group(1).splitlines() == printed[:5]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_and_benchmarks_that_are_named_are_there(page: Path) -> None:
    names = re.findall(r"\b(?:tests|benchmarks|examples)/[a-z0-9_/]*\.py", page.read_text("utf-8"))
    assert [name for name in names if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    files = [target for target in targets if "://" not in target and target not in GENERATED]
    assert [target for target in files if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    docs = ROOT / "docs"
    pages = [page.relative_to(docs).as_posix() for page in PAGES if docs in page.parents]
    hidden = ("plans/", "results/")
    assert [p for p in pages if not p.startswith(hidden) and f": {p}" not in text] == []


def test_samplers_and_spacings_are_in_the_docs() -> None:
    """In the page on choosing, in the reference and in the help of options."""
    samplers = {c.__name__ for c in subclasses(Sampler) if c.__module__.startswith("diffsteer.")}
    page, reference = (
        (ROOT / "docs" / name).read_text("utf-8")
        for name in ("choosing-a-sampler.md", "reference/core.md")
    )
    asked = schedule.__doc__, Recipe.__doc__, page.partition("## Spacings")[2]
    for words, names in {
        (page, reference): {*samplers, *NAMED},
        asked: SPACINGS.keys(),
    }.items():
        for text in words:
            assert [n for n in names if not re.search(rf"\b{n}\b", str(text))] == []


def test_facts_are_where_the_internals_say() -> None:
    """Each row names files that are there, and names of a row are words of one of its files."""
    table = (ROOT / "docs/internals.md").read_text("utf-8").split("## Each fact in one place")[1]
    for row in re.findall(r"^\|.*\|$", table, re.M)[2:]:
        codes = re.findall(r"`([^`]+)`", row.split("|")[2])
        files = [code for code in codes if code.endswith(".py")]
        text = "\n".join((ROOT / "src/diffsteer" / file).read_text("utf-8") for file in files)
        for name in (code for code in codes if re.fullmatch(r"\.?[A-Za-z_.]+", code)):
            word = name.rpartition(".")[2]
            assert word in ("py", "repr") or re.search(rf"\b{word}\b", text), (row, name)

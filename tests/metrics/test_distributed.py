"""One, two and four processes, as of torchrun, make the same images and the same figures."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from interrupt import together
from torch import Tensor

from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.io.distributed import launched
from diffsteer.metrics.features import Custom, Origin
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.sampled import sampled
from diffsteer.metrics.statistics import Statistics

PIXELS = Custom(lambda x: x.flatten(1).float(), Origin("pixels", "all", "none", "0"))
"""Features that are the image, so that statistics show every pixel."""
SEEDS = range(13)


def measured(recipe: Recipe, out: Path, batch: int) -> Statistics:
    with launched(), open_pipeline(recipe, "cpu") as images:
        return sampled(images, SEEDS, PIXELS, out, images.key, batch).statistics


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("model")
    prompts = ("a cat", "a dog", "a tree")
    return Recipe(tiny.saved(folder), "", prompts, guidance="CFG(3)", sampler="UniPC()", steps=2)


def in_each(recipe: Recipe, out: Path, batch: int) -> None:
    """Run in each process."""
    measured(recipe, out, batch).save(out / f"statistics{os.environ['RANK']}.npz")


def grid(features: Tensor) -> Tensor:
    return features.to(torch.int)


def never(seeds: list[int]) -> Tensor:
    raise AssertionError(f"{seeds} were measured already")


@pytest.mark.parametrize(
    ("processes", "batch"), [(2, 3), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_figures_do_not_depend_on_processes(
    recipe: Recipe, tmp_path: Path, processes: int, batch: int
) -> None:
    """Pictures agree within a grey level, and so do figures within what that can do to them.

    A pixel off by one grey level in 768, here and there, moves the distance below by under 1e-3 of
    its value; equal images leave 1e-9. Every process has the same statistics. What one process
    measured before is not measured again, nor what they did, by one.
    """
    alone = measured(recipe, tmp_path / "alone", batch=5)
    out = tmp_path / "shared"
    with open_pipeline(recipe, "cpu") as images:
        sampled(images, SEEDS[:5], PIXELS, out, images.key)
        key = images.key
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    together(processes, lambda: in_each(recipe, out, batch))
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("*.npz")}.items()
    found = [Statistics.load(path) for path in sorted(out.glob("statistics*.npz"))]
    assert len(found) == processes and found[0].n == len(SEEDS)
    for each in found[1:]:
        assert torch.equal(each.features, found[0].features)
        assert torch.equal(each.gaussian.cov, found[0].gaussian.cov)
    again = sampled(never, SEEDS, PIXELS, out, key).statistics
    assert torch.equal(again.features, found[0].features)
    off = (grid(found[0].features) - grid(alone.features)).abs()
    assert off.max() <= 1 and off.sum() < off.numel() / 100
    target = Gaussian(torch.zeros(768), torch.eye(768))
    figures = [frechet(statistics.gaussian, target) for statistics in (alone, found[0])]
    assert figures[1] == pytest.approx(figures[0], rel=1e-9 if off.max() == 0 else 1e-3)

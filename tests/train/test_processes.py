"""One, two and four processes leave the same: figures, targets, runs of every kind.

Samples and targets are made one at a time, so that they are equal bit for bit; figures and
gradients are sums, which differ by rounding.
`python -m pytest -m slow tests/train/test_processes.py` takes some ten minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_killed_training import folder, written  # noqa: F401

from diffsteer.io.strict import read_npz

WORLDS = (1, 2, 4)
KINDS = ("autoencoder", "edm2", "text-to-image", "lora", "refiner")
SAMPLING = ("--guidance", "CFG(2)", "--sampler", "DDIM()", "--steps", "2", "--seeds", "0-9")


def run(world: int, *command: str) -> None:
    """Run a command of diffsteer in so many processes of torchrun."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "diffsteer.cli", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def by_seed(out: Path) -> dict[int, list[float]]:
    """Features or latents of each seed in a folder of shards."""
    rows: dict[int, list[float]] = {}
    for path in out.rglob("chunk-*.npz"):
        arrays = read_npz(path)
        rows |= zip(arrays["seeds"].tolist(), arrays["features"].tolist(), strict=True)
    return rows


@pytest.mark.slow
def test_targets(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "prompts.txt").write_text("a cat\na dog")
    command = "refine", "targets", str(folder / "pipe"), "--prompts", str(tmp_path / "prompts.txt")
    results = []
    for world in WORLDS:
        out = tmp_path / str(world)
        run(world, *command, *SAMPLING, "--batch", "1", "--out", str(out))
        assert len(list(out.glob("chunk-*.npz"))) == world
        results.append((by_seed(out), (out / "manifest.json").read_bytes()))
    assert len(results[0][0]) == 10 and results[1] == results[0] == results[2]


@pytest.mark.slow
def test_evaluate(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    rng = np.random.RandomState(0)
    (tmp_path / "real").mkdir()
    for i in range(12):
        image = rng.randint(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"real/{i}.png")
    recipe = {"model": str(folder / "pipe"), "prompt": "cat", "guidance": "CFG(2)", "steps": 2}
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "sampler": "DDIM()"}))
    images = "--size", "32", "--keep", "10", "--seeds", "0-9", "--at-once", "1"
    command = "evaluate", str(tmp_path / "recipe.json"), "--reference", str(tmp_path / "real")
    features, figures = [], []
    for world in WORLDS:
        out = tmp_path / str(world)
        places = "--work", str(out), "--out", str(out / "figures.json")
        run(world, *command, *images, "--resamples", "20", *places)
        features.append(by_seed(out))
        figures.append(json.loads((out / "figures.json").read_text())["figures"])
    assert len(features[0]) == 10 and features[1] == features[0] == features[2]
    for other in figures[1:]:
        same(other, figures[0])


def same(a: Any, b: Any) -> None:
    """Compare values of JSON, numbers within the rounding of sums in another order."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-6)
    else:
        assert a == b


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training(folder: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    """Adam amplifies rounding where gradients are near 0, so that moments of one step compare."""
    path, states, files = written(folder, kind), [], []
    changes = ("training.images=4", "training.rows=1", "training.checkpoint=4")
    for world in WORLDS:
        out = tmp_path / str(world)
        run(world, "train", path, "--out", str(out), *(x for c in changes for x in ("--set", c)))
        moments = load_file(out / "checkpoints/0000000004/optimizer.safetensors")
        (line,) = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        files.append(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()))
        states.append((moments, line, (out / "run.json").read_bytes()))
    moments, line, settings = states[0]
    assert any(name.startswith("model/") for name in files[0])
    for (other, other_line, other_settings), names in zip(states[1:], files[1:], strict=True):
        assert names == files[0] and other_settings == settings and other.keys() == moments.keys()
        assert other_line.keys() == line.keys()
        for name in line.keys() - {"images_per_second"}:
            assert other_line[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
        for name in moments:
            torch.testing.assert_close(other[name], moments[name], atol=1e-6, rtol=1e-3)

"""Adapter guidance distillation: a LoRA that learns what guidance makes of its network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_train import begun, preset
from torch import Tensor

from diffsteer.core.noise import Noise
from diffsteer.generate.from_noise import sample_from_noise
from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.load import load
from diffsteer.train.agd import AGDSettings, AGDTask
from diffsteer.train.refiner.targets import Targets, make

PROMPTS = ("a cat", "a red dog", "owl")
LENGTHS = {"images": 24, "batch": 4, "rate": 1e-3, "precision": "no", "checkpoint": 8, "log": 8}
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def teacher(model: str, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Autoguidance by the same network with another last layer, which a LoRA of it can be."""
    guide = load(model, torch.float32)
    with torch.no_grad():
        guide.unet.conv_out.weight.mul_(0.5)
    guide.save_pretrained(folder := tmp_path_factory.mktemp("guide"))
    more = {"sampler": "DDIM()", "steps": 3, "guide": str(folder)}
    return Recipe(model, prompts=PROMPTS, guidance="Auto(3)", **more)


@pytest.fixture(scope="module")
def stored(teacher: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("targets")
    make(teacher, range(6), out, batch=4, trajectory=True)
    return out


def written(folder: Path, model: str, stored: Path, **training: Any) -> str:
    settings = {"start": model, "targets": str(stored), "rank": 4}
    return preset(folder, {"task": "agd", "settings": settings, "training": LENGTHS | training})


def ends(recipe: Recipe, n: int = 6) -> Tensor:
    """Latents of the first seeds, and the network evaluations of an image."""
    with open_pipeline(recipe) as images:
        shape = images.pipe.unet.config.in_channels, 8, 8
        noise = Noise(range(n))(torch.empty(n, *shape))
        texts = [recipe.for_seed(seed).prompt for seed in range(n)]
        latents, _ = sample_from_noise(images.pipe, recipe, texts, noise)
        assert images.nfe() == {"rows": n * recipe.steps}
    return latents


def test_a_lora_that_is_the_guided_network_has_no_loss_and_samples_as_guidance_does(
    model: str, teacher: Recipe, stored: Path, tmp_path: Path
) -> None:
    """Auto(3) by half of the last layer's weight is that weight once more: W + 2 (W - W / 2)."""
    task = AGDTask(AGDSettings(model, str(stored), rank=4))
    batch = {
        k: torch.stack([task.example(i, i, task.source[i], 0)[k] for i in range(18)])
        for k in ("x", "x0", "time", "prompt")
    }
    assert len(task.source) == 18 and batch["time"].tolist() == 6 * [999, 666, 332]
    before = task(**batch)["loss"].item()
    layer = task.pipe.unet.conv_out
    with torch.no_grad():
        layer.lora_B["default"].weight.copy_(torch.eye(4)[:, :, None, None])
        layer.lora_A["default"].weight.copy_(layer.base_layer.weight)
    assert before > 1e-4 and task(**batch)["loss"].item() < 1e-10 * before
    task.save(tmp_path)
    plain = replace(teacher, guidance="", guide="")
    guided, want = ends(replace(plain, lora=(str(tmp_path),))), Targets.at(stored).latents
    torch.testing.assert_close(guided, want, atol=1e-4, rtol=1e-4)  # kernels by batch
    assert (ends(plain) - want).abs().mean() > 0.1


def test_each_step_keeps_the_sample_and_what_the_guided_network_made_of_it(
    teacher: Recipe, stored: Path
) -> None:
    """DDIM leads from each step to the next by the x0 that is stored, and from the last to it."""
    found = Targets.at(stored)
    x, x0 = found.trajectory.double().unbind(2)
    with open_pipeline(replace(teacher, guidance="", guide="")) as images:
        alpha = images.pipe.scheduler.alphas_cumprod.double().sqrt()[found.times[0].long()]
    sigma = (1 - alpha**2).sqrt()
    noise = Noise(range(6))(torch.empty(6, 4, 8, 8))
    torch.testing.assert_close(x[:, 0], noise.double(), atol=1e-6, rtol=0)
    for i in (0, 1):
        eps = (x[:, i] - alpha[i] * x0[:, i]) / sigma[i]
        want = alpha[i + 1] * x0[:, i] + sigma[i + 1] * eps
        torch.testing.assert_close(x[:, i + 1], want, atol=1e-4, rtol=1e-4)
    assert torch.equal(x0[:, -1].float(), found.latents)


def test_training_reaches_the_guided_output(
    model: str, teacher: Recipe, stored: Path, tmp_path: Path
) -> None:
    more = {"images": 240, "batch": 12, "rate": 1e-2, "checkpoint": 240, "log": 120}
    begun(written(tmp_path, model, stored, **more), tmp_path / "run").fit()
    want, plain = Targets.at(stored).latents, replace(teacher, guidance="", guide="")
    lora = str(tmp_path / "run/model")
    first, last = ((ends(replace(plain, lora=x)) - want).square().mean() for x in ((), (lora,)))
    assert last < 0.2 * first
    assert sorted(p.name for p in Path(lora).iterdir()) == [FILE]


def test_a_stopped_run_ends_as_one_that_nothing_stopped(
    model: str, stored: Path, tmp_path: Path
) -> None:
    for out, lengths in (("whole", (16,)), ("parts", (8, 16))):
        for images in lengths:
            begun(written(tmp_path, model, stored, images=images), tmp_path / out).fit()
    a, b = (load_file(tmp_path / out / "model" / FILE) for out in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_flow_in_packed_tokens_learns_too(tmp_path: Path) -> None:
    tiny.flux(tmp_path).save_pretrained(tmp_path / "flux")
    model = str(tmp_path / "flux")
    teacher = Recipe(model, prompts=PROMPTS, guidance="CFG(4)", steps=3, width=32, height=24)
    make(teacher, range(3), tmp_path / "t", trajectory=True)
    path = written(tmp_path, model, tmp_path / "t", images=96, batch=8, rate=1e-2)
    trainer = begun(path, tmp_path / "run")
    task = trainer.task
    batch = {k: v[None] for k, v in task.example(0, 4, task.source[4], 0).items()}
    before = task(**batch)["loss"].item()
    trainer.fit()
    assert task(**batch)["loss"].item() < 0.5 * before
    again = replace(teacher, guidance="", prompts=(), prompt="owl")
    drawn = []
    for lora in ((), (str(tmp_path / "run/model"),)):
        with open_pipeline(replace(again, lora=lora)) as images:
            drawn.append(images([0]))
    assert not torch.equal(*drawn)


def test_what_cannot_be_learned_from_is_refused(
    model: str, teacher: Recipe, stored: Path, tmp_path: Path
) -> None:
    make(replace(teacher, guidance="CFG(2)", guide=""), range(2), tmp_path / "ends")
    with pytest.raises(ValueError, match=r"the ends of its samplings alone.*--trajectory"):
        AGDTask(AGDSettings(model, str(tmp_path / "ends")))
    with pytest.raises(ValueError, match=r"settings.targets=''"):
        AGDSettings(model)
    with pytest.raises(ValueError, match="rank=0"):
        AGDSettings(model, str(stored), rank=0)
    with pytest.raises(ValueError, match=r"another teacher: guidance was 'Auto\(3\)'"):
        AGDTask(AGDSettings(model, str(stored), teacher={"guidance": "CFG(3)"}))
    with pytest.raises(ValueError, match="trajectory was True and is None"):
        make(teacher, range(6), stored)
    (tmp_path / "other").mkdir()
    other = load(model, torch.float32)
    with torch.no_grad():
        other.unet.conv_in.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="targets of another network"):
        AGDTask(AGDSettings(str(tmp_path / "other"), str(stored)))
    _, classes = tiny.saved_dit(tmp_path / "dit")
    with pytest.raises(ValueError, match="DiTPipeline takes no LoRA"):
        AGDTask(AGDSettings(classes, str(stored)))

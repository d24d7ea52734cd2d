"""Targets of a guided teacher, and training on them: resumed, bound to their origin, exact."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from interrupt import command, together
from safetensors.torch import load_file
from torch import Tensor

from diffsteer import grid
from diffsteer.cli.refine import targets
from diffsteer.cli.sample import sample
from diffsteer.cli.train import train
from diffsteer.core.errors import InputError
from diffsteer.core.noise import Noise
from diffsteer.core.sampler import DDIM
from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe, recipe_of_png
from diffsteer.io.shards import Shard, ShardFolder
from diffsteer.metrics import sampled as sampling
from diffsteer.metrics.best_of_n import BestOf
from diffsteer.refine.refiner import NoiseRefiner
from diffsteer.steering import steer
from diffsteer.train.refiner.targets import Targets, make
from diffsteer.train.registry import begin
from diffsteer.train.settings import Pictures, Run, presets

PROMPTS = ("a cat", "a red dog", "owl")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def teacher(model: str) -> Recipe:
    return Recipe(model, prompts=PROMPTS, guidance="CFG(4)", sampler="DDIM()", steps=4)


@pytest.fixture(scope="module")
def stored(teacher: Recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("targets")
    make(teacher, range(8), out, batch=3)
    return out


# ------------------------------------------------------------------ targets


def test_targets_are_the_teachers_samples_of_the_seeds(teacher: Recipe, stored: Path) -> None:
    """In diffusers' own hands: CFG of the pipeline from the noise of each seed."""
    found = Targets.at(stored)
    assert found.seeds == tuple(range(8)) and found.latents.shape == (8, 4, 8, 8)
    assert [found.prompt(i) for i in (0, 4, 5)] == ["a cat", "a red dog", "owl"]
    with open_pipeline(replace(teacher, guidance="")) as images:
        noise = Noise([4, 5])(torch.empty(2, 4, 8, 8))
        want = images.pipe(
            ["a red dog", "owl"],
            latents=noise,
            num_inference_steps=4,
            guidance_scale=4.0,
            output_type="latent",
        ).images
    torch.testing.assert_close(found.latents[4:6], want, atol=1e-4, rtol=1e-4)


def test_targets_go_on_and_do_not_depend_on_batch(
    teacher: Recipe, stored: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(sampling, "ROWS", 2)
    make(teacher, range(3), tmp_path, batch=1)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("chunk-*")}
    make(teacher, range(8), tmp_path, batch=2)
    assert {n: (tmp_path / n).read_bytes() for n in before} == before
    a, b = Targets.at(tmp_path), Targets.at(stored)
    assert a.seeds == b.seeds
    torch.testing.assert_close(a.latents, b.latents, atol=1e-4, rtol=1e-4)  # kernels by batch


def test_a_flipped_bit_of_a_chunk_is_told_to_training_and_mended_by_targets(
    teacher: Recipe, stored: Path, tmp_path: Path
) -> None:
    """Training does not go on with fewer targets; the command makes what was lost."""
    shutil.copytree(stored, tmp_path / "t")
    whole, (path,) = Targets.at(stored), (tmp_path / "t").glob("chunk-*")
    data = bytearray(path.read_bytes())
    data[data.index(b"features.npy") + 200] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is broken.*refine targets. again"):
        Targets.at(tmp_path / "t")
    with pytest.warns(UserWarning, match=r"set aside as .*\.broken"):
        make(teacher, range(8), tmp_path / "t", batch=3)
    again = Targets.at(tmp_path / "t")
    assert again.seeds == whole.seeds and torch.equal(again.latents, whole.latents)


def test_targets_and_a_manifest_that_disagree_are_refused(stored: Path, tmp_path: Path) -> None:
    """A chunk of other latents, which says that it is of this folder."""
    folder = ShardFolder(tmp_path, Targets.at(stored).key)
    folder.bind()
    folder.add(Shard((0, 1), {"features": torch.zeros(2, 5)}))
    with pytest.raises(InputError, match=r"of 5 numbers, and its manifest.json says shape=\[4"):
        Targets.at(tmp_path)
    folder.add(Shard((2,), {"features": torch.zeros(1, 6)}))
    with pytest.raises(InputError, match=r"targets of 5 and 6 numbers"):
        Targets.at(tmp_path)


def test_targets_of_an_ancestral_teacher_do_not_depend_on_batch(
    teacher: Recipe, tmp_path: Path
) -> None:
    ancestral = replace(teacher, sampler="DDIM(eta=1.0)")
    make(ancestral, range(3), tmp_path / "a", batch=1)
    make(ancestral, range(3), tmp_path / "b", batch=3)
    a, b = Targets.at(tmp_path / "a").latents, Targets.at(tmp_path / "b").latents
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)  # kernels by batch


def test_targets_are_bound_to_every_weight_that_decides_them(
    teacher: Recipe, stored: Path, monkeypatch
) -> None:
    """Here to another text encoder under the same name of the model."""
    from diffsteer.generate import pipelines as render

    pipe, scheduler, _ = render._loaded(teacher.model, "cpu")
    monkeypatch.setattr(render, "_loaded", lambda *_: (pipe, scheduler, "other"))
    with pytest.raises(ValueError, match="weights was .* and is 'other'"):
        make(teacher, range(9), stored)


def test_a_target_that_is_no_number_is_not_kept_and_those_before_it_are(
    teacher: Recipe, tmp_path: Path, monkeypatch
) -> None:
    from diffsteer.train.refiner import targets as module

    def broken(seeds: list[int]) -> Any:
        return lambda x: Noise(seeds)(x) * (1e38 if 1 in seeds else 1)

    monkeypatch.setattr(module, "Noise", broken)
    with pytest.raises(ValueError, match="seeds 1 are not finite"):
        make(teacher, range(3), tmp_path, batch=1)
    assert Targets.at(tmp_path).seeds == (0,)


def test_processes_share_the_seeds(teacher: Recipe, stored: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), "utf-8")
    words = ["refine", "targets", teacher.model, "--prompts", str(prompts), "--guidance", "CFG(4)"]
    words += ["--sampler", "DDIM()", "--steps", "4", "--seeds", "0-7", "--out", str(tmp_path / "t")]
    together(2, lambda: command(*words))
    a, b = Targets.at(tmp_path / "t"), Targets.at(stored)
    assert (
        a.key == b.key and a.seeds == b.seeds and len(list((tmp_path / "t").glob("chunk-*"))) == 2
    )
    torch.testing.assert_close(a.latents, b.latents, atol=1e-4, rtol=1e-4)


def brightness(pictures: Tensor, prompts: list[str]) -> Tensor:
    assert pictures.dtype == torch.uint8 and len(prompts) == len(pictures)
    return pictures.double().mean((1, 2, 3))


def test_a_score_leaves_out_the_worse(teacher: Recipe, tmp_path: Path, monkeypatch) -> None:
    make(teacher, range(6), tmp_path, score=brightness, scorer="brightness")
    with open_pipeline(teacher) as images:  # the same seeds: noise of a seed is diffusers' own
        scores = brightness(images(range(6)), ["x"] * 6)
    middle = float(scores.median()) + 1e-6
    found = Targets.at(tmp_path, least=middle)
    assert found.seeds == tuple(i for i in range(6) if scores[i] >= middle)
    torch.testing.assert_close(found.latents, Targets.at(tmp_path).latents[list(found.seeds)])
    with pytest.raises(ValueError, match="the best has"):
        Targets.at(tmp_path, least=1e9)


def test_bad_targets(teacher: Recipe, stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="guidance was 'CFG.4.' and is 'CFG.5.'"):
        make(replace(teacher, guidance="CFG(5)"), range(8), stored)
    with pytest.raises(ValueError, match="no guidance"):
        make(replace(teacher, guidance=""), range(8), tmp_path)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        make(replace(teacher, prompts=("a", "")), range(8), tmp_path)
    with pytest.raises(ValueError, match="there is no prompt"):
        make(replace(teacher, prompts=()), range(8), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no targets"):
        Targets.at(tmp_path)
    with pytest.raises(ValueError, match="no scores"):
        Targets.at(stored, least=1)
    with pytest.raises(ValueError, match="batch=0: give at least 1, and each seed once"):
        make(teacher, range(8), tmp_path, batch=0)
    twice = Path(shutil.copytree(stored, tmp_path / "twice"))
    (chunk,) = twice.glob("chunk-*.npz")
    shutil.copy(chunk, twice / "chunk-9.npz")
    with pytest.raises(ValueError, match="twice holds a seed twice: remove one of its chunks"):
        Targets.at(twice)
    for path in twice.glob("chunk-*.npz"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no targets yet: run"):
        Targets.at(twice)
    prompts = tmp_path / "p.txt"
    prompts.write_text("a\n\nb", "utf-8")
    with pytest.raises(ValueError, match="line 2 is empty"):
        targets(replace(teacher, prompts=()), prompts=prompts, out=tmp_path)
    prompts.write_text("a", "utf-8")
    with pytest.raises(ValueError, match="MODULE:FUNCTION"):
        targets(replace(teacher, prompts=()), prompts=prompts, out=tmp_path, score="math")


# ------------------------------------------------------------------ training


def preset(folder: Path, model: str, stored: Path | None, lines: str = "", **training: Any) -> str:
    said = {"images": 24, "batch": 4, "rate": 1e-3, "precision": "no", "checkpoint": 8, "log": 8}
    said |= {"channels_last": False} | training
    source = f"targets = {json.dumps(str(stored))}\n" if stored else ""
    path = folder / "small.toml"
    path.write_text(
        f'task = "refiner"\n[settings]\nstart = {json.dumps(model)}\n{source}rank = 4\nsteps = 3\n'
        + lines
        + "\n[training]\n"
        + "\n".join(f"{k} = {json.dumps(v)}" for k, v in said.items()),
        "utf-8",
    )
    return str(path)


def run(folder: Path, model: str, stored: Path | None, out: str = "run", *args: Any, **more: Any):
    return begin(Run.named(preset(folder, model, stored, *args, **more)), folder / out)


def lines_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def distance(model: str, stored: Path, refiner: Path | None) -> float:
    """Mean squared distance of unguided samples from the targets, by the pipeline itself."""
    found = Targets.at(stored)
    recipe = Recipe(model, sampler="DDIM()", steps=3)
    texts = [found.prompt(i) for i in range(8)]
    with open_pipeline(recipe) as images:
        more = {"latents": Noise(range(8))(found.latents), "output_type": "latent"}
        call = {"num_inference_steps": 3, "guidance_scale": 1.0, **more}
        if refiner is None:
            got = images.pipe(texts, **call).images
        else:
            with steer(images.pipe, refiner=refiner):
                got = images.pipe(texts, **call).images
    return float((got - found.latents).square().mean())


def test_training_brings_unguided_samples_to_the_targets(
    model: str, stored: Path, tmp_path: Path
) -> None:
    """By the trainer's loss and by the pipeline with the saved refiner, which have to agree."""
    trainer = run(tmp_path, model, stored, images=160, batch=8, rate=6e-3, checkpoint=160, log=40)
    frozen = {n: p.clone() for n, p in trainer.task.pipe.unet.named_parameters() if "lora" not in n}
    trainer.fit()
    seen = lines_of(tmp_path / "run")
    before = distance(model, stored, None)
    after = distance(model, stored, tmp_path / "run/model")
    assert after < 0.8 * before and seen[-1]["loss"] < 0.8 * before
    assert seen[0]["change"] < seen[-1]["change"]
    now = dict(trainer.task.pipe.unet.named_parameters())
    assert all(torch.equal(now[n], p) and now[n].grad is None for n, p in frozen.items())
    said = json.loads((tmp_path / "run/model/refiner.json").read_text())
    assert said["made"]["teacher"]["guidance"] == "CFG(4)" and said["made"]["steps"] == 3


@pytest.mark.parametrize(
    ("gradient", "head"),
    [("msd", "difference"), ("full", "difference"), ("msd", "low_frequency")],
)
def test_the_task_learns_by_the_gradient_that_it_says(
    model: str, stored: Path, tmp_path: Path, gradient: str, head: str
) -> None:
    """Its loss and gradients are those of autograd through the chain, with outputs held or not."""
    lines = f'head = "{head}"\ngradient = "{gradient}"'
    task = run(tmp_path, model, stored, "run", lines).task
    batch = {k: v[None] for k, v in task.example(0, 2, task.source[2], 0).items()}
    parameters = list(task.trained().values())
    loss = task(**batch)["loss"]
    got = torch.autograd.grad(loss, parameters)
    model_, cond = task.refiner.model, None

    from diffsteer.hf.prompt_conditions import conditions

    cond = {"cond": conditions(task.pipe, [task.source[2].caption])}
    x = task.refiner(batch["noise"], cond)
    levels = grid(model_.schedule, 3, "trailing")
    slope = 1.0

    def denoise(x: Tensor, level: Any) -> Tensor:
        out = model_(x, level, cond["cond"])
        return model_.prediction.x0(x, out.detach() if gradient == "msd" else out, level)

    *_, end = DDIM()(x, levels, denoise)
    if gradient == "msd":  # unit slope: without the chain's own, which is 1 / alpha for eps
        slope = float(1 / levels[0].alpha)
    distance = (end - batch["target"]).square().mean()
    torch.testing.assert_close(loss, distance, atol=0, rtol=1e-3)
    want = torch.autograd.grad(distance / slope, parameters)
    assert any(w.abs().max() > 0 for w in want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-6 * float(w.abs().max()) + 1e-7, rtol=2e-3)


def test_a_flow_of_another_size_is_trained_as_it_is_sampled(tmp_path: Path) -> None:
    """The shift of its levels is that of the image's size, and so is what the network is told."""
    pipe = tiny.flux(tmp_path)
    pipe.save_pretrained(tmp_path / "flux")
    model = str(tmp_path / "flux")
    teacher = Recipe(model, prompts=PROMPTS, guidance="CFG(4)", steps=4, width=32, height=24)
    make(teacher, range(4), tmp_path / "targets", batch=2)
    trainer = run(tmp_path, model, tmp_path / "targets", batch=2, images=8, checkpoint=4, log=4)
    trainer.fit()
    task = trainer.task
    assert task.pictures(Pictures(prompts=("an owl",))).shape == (1, 3, 24, 32)
    batch = {k: v[None] for k, v in task.example(0, 1, task.source[1], 0).items()}
    with open_pipeline(replace(teacher, guidance="", steps=3)) as images:
        latents = batch["noise"]
        call = {"height": 24, "width": 32, "num_inference_steps": 3, "guidance_scale": 1.0}
        pipe = images.pipe
        want = pipe("a red dog", latents=latents, output_type="latent", **call).images
        shifted = pipe.scheduler.sigmas.double()
    sigmas = torch.stack([level.sigma for level in task.levels])
    torch.testing.assert_close(sigmas, shifted, atol=1e-6, rtol=0)  # kept in float32 there
    for p in task.trained().values():
        torch.nn.init.zeros_(p)
    error = (want - batch["target"]).square().mean()
    torch.testing.assert_close(task(**batch)["loss"].detach(), error, atol=1e-6, rtol=1e-3)


def test_fresh_noise_of_a_network_of_classes_is_of_each_sample(tmp_path: Path) -> None:
    """DiT hands its scheduler no generators; targets are the same again, and in any batch."""
    _, model = tiny.saved_dit(tmp_path)
    classes, settings = ("golden retriever", "208"), {"sampler": "DDIM(eta=1.0)", "steps": 4}
    teacher, made = Recipe(model, prompts=classes, guidance="CFG(4)", **settings), []
    for batch in (3, 1):
        make(teacher, range(3), tmp_path / str(batch), batch=batch)
        made.append(Targets.at(tmp_path / str(batch)).latents)
    torch.testing.assert_close(made[0], made[1], atol=1e-3, rtol=1e-3)
    task = run(tmp_path, model, tmp_path / "1", batch=2, images=8).task
    task.settings = replace(task.settings, sampler="DDIM(eta=1.0)")
    assert torch.equal(task.pictures(Pictures()), task.pictures(Pictures()))


@pytest.mark.parametrize("sampler", ["", "DDIM()"])
def test_a_network_of_classes_is_trained_from_the_noise_that_it_would_not_take(
    tmp_path: Path, sampler: str
) -> None:
    """DiT draws its noise itself, in both halves of a batch; targets are of the noise of seeds."""
    (pipe, model), texts = tiny.saved_dit(tmp_path), ("golden retriever", "208")
    teacher = Recipe(model, prompts=texts, guidance="CFG(4)", sampler=sampler, steps=4)
    make(teacher, range(4), tmp_path / "targets", batch=3)
    found = Targets.at(tmp_path / "targets")
    drawn = [torch.Generator().manual_seed(seed) for seed in range(4)]
    noise = Noise(range(4))(found.latents)
    again = torch.stack([torch.randn(4, 8, 8, generator=g) for g in drawn])
    torch.testing.assert_close(noise, again)  # so that a call by seeds is the same
    seen = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *a, **k: seen.append(step(*a, **k)) or seen[-1]
    drawn = [torch.Generator().manual_seed(seed) for seed in range(4)]
    call = {"guidance_scale": 4.0, "num_inference_steps": 4, "generator": drawn}
    pipe.scheduler.config.timestep_spacing = "trailing" if sampler else "leading"
    pipe(class_labels=[207, 208, 207, 208], **call)
    rounding = 4e-6 * float(found.latents.abs().max())  # float32 at latents of a thousand
    torch.testing.assert_close(found.latents, seen[-1][0][:4], atol=rounding, rtol=0)

    trainer = run(tmp_path, model, tmp_path / "targets", batch=2, images=8, checkpoint=4, log=4)
    trainer.fit()
    assert trainer.task.pictures(Pictures()).shape == (2, 3, 16, 16)
    before = Recipe(model, prompt="208", steps=2, sampler="DDIM()")
    after = replace(before, refiner=str(tmp_path / "run/model"))
    with open_pipeline(before) as images:
        plain = images([1])
    with open_pipeline(after) as images:
        assert not torch.equal(images([1]), plain) and images.nfe() == {"rows": 3}


def test_a_small_network_learns_low_frequencies_and_is_sampled_by_the_command(
    model: str, stored: Path, tmp_path: Path
) -> None:
    """Stopped in the middle; it has no layer of the denoiser, and no evaluation of it."""
    lines = 'head = "low_frequency"\n'
    more: dict[str, Any] = {"batch": 8, "rate": 1e-2, "checkpoint": 40}
    run(tmp_path, model, stored, "run", lines, images=40, **more).fit()
    trainer = run(tmp_path, model, stored, "run", lines, images=80, **more)
    trainer.fit()
    assert not any("lora" in n for n, _ in trainer.task.pipe.unet.named_parameters())
    before = distance(model, stored, None)
    assert distance(model, stored, tmp_path / "run/model") < 0.97 * before
    about = json.loads((tmp_path / "run/model/refiner.json").read_text())
    assert 0 < about["made"]["nfe"] < 1
    recipe = Recipe(model, prompt="a cat", steps=2, refiner=str(tmp_path / "run/model"))
    with open_pipeline(replace(recipe, refiner="")) as images:
        plain = images([1])
    with open_pipeline(recipe) as images:
        assert not torch.equal(images([1]), plain) and images.nfe() == {"rows": 2}


def test_the_penalty_pulls_the_change_back(model: str, stored: Path, tmp_path: Path) -> None:
    """Its part of the gradient is that of penalty times the mean squared change."""
    parts = {}
    for penalty in (0.0, 0.5):
        task = run(tmp_path, model, stored, f"run{penalty}", f"penalty = {penalty}").task
        with torch.no_grad():  # away from no change, whose penalty is flat
            for i, p in enumerate(task.trained().values()):
                p.copy_(0.05 * Noise([i])(torch.empty(1, *p.shape))[0])
        batch = {k: v[None] for k, v in task.example(0, 2, task.source[2], 0).items()}
        losses, parameters = task(**batch), list(task.trained().values())
        parts[penalty] = (losses, torch.autograd.grad(losses["loss"], parameters))
    from diffsteer.hf.prompt_conditions import conditions

    cond = {"cond": conditions(task.pipe, [task.source[2].caption])}
    change = (task.refiner(batch["noise"], cond) - batch["noise"]).square().mean()
    (plain, without), (losses, got) = parts.values()
    assert change.detach() > 1e-4 and plain["loss"] == plain["distance"] == losses["distance"]
    torch.testing.assert_close(losses["loss"], losses["distance"] + 0.5 * change)
    torch.testing.assert_close(losses["change"], change.sqrt())
    for g, w, pull in zip(got, without, torch.autograd.grad(change, parameters), strict=True):
        torch.testing.assert_close(g, w + 0.5 * pull, atol=1e-6, rtol=1e-3)
    with pytest.raises(ValueError, match="penalty=-1"):
        run(tmp_path, model, stored, "bad", "penalty = -1.0")


def test_a_stopped_run_ends_as_one_that_nothing_stopped(
    model: str, stored: Path, tmp_path: Path
) -> None:
    run(tmp_path, model, stored, "whole", images=16).fit()
    run(tmp_path, model, stored, "parts", images=8).fit()
    run(tmp_path, model, stored, "parts", images=16).fit()
    a, b = (load_file(tmp_path / out / "model/refiner.safetensors") for out in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_run_goes_on_with_the_targets_that_it_began_with(
    model: str, teacher: Recipe, tmp_path: Path
) -> None:
    make(teacher, range(4), tmp_path / "t")
    run(tmp_path, model, tmp_path / "t", images=8)
    run(tmp_path, model, tmp_path / "t", images=16)
    make(teacher, range(5), tmp_path / "t")
    with pytest.raises(ValueError, match="contents.samples was 4 and is 5"):
        run(tmp_path, model, tmp_path / "t", images=16)
    (tmp_path / "p.txt").write_text("a\nb", "utf-8")
    lines = f'prompt_file = "{tmp_path}/p.txt"\n[settings.teacher]\nguidance = "CFG(4)"\n'
    run(tmp_path, model, None, "other", lines)
    (tmp_path / "p.txt").write_text("b\na", "utf-8")
    with pytest.raises(ValueError, match="contents.digest was"):
        run(tmp_path, model, None, "other", lines)


def test_targets_made_meanwhile(model: str, teacher: Recipe, tmp_path: Path) -> None:
    """The loss of the first step is the distance of teacher and student, sampled by hand."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    lines = f'prompt_file = "{tmp_path}/prompts.txt"\n'
    lines += '[settings.teacher]\nguidance = "CFG(4)"\nsampler = "DDIM()"\nsteps = 4\n'
    lines += '[pictures]\nevery = 8\nprompts = ["a cat"]\n'
    trainer = run(tmp_path, model, None, "run", lines, images=8, batch=8)
    task = trainer.task
    example = task.example(0, 1, task.source[1], 77)
    loss = task(**{k: v[None] for k, v in example.items()})["loss"]
    with open_pipeline(teacher) as images:
        call = {"latents": Noise([77])(torch.empty(1, 4, 8, 8)), "output_type": "latent"}
        target = images.pipe(PROMPTS[1], num_inference_steps=4, guidance_scale=2.0, **call).images
    with open_pipeline(replace(teacher, guidance="")) as images:
        student = images.pipe(PROMPTS[1], num_inference_steps=3, guidance_scale=1.0, **call).images
    want = (target - student).square().mean()
    torch.testing.assert_close(loss, want, rtol=1e-3, atol=0)
    trainer.fit()
    assert (tmp_path / "run/pictures/0000000008.png").exists()


def test_the_command_says_model_and_targets(model: str, stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('task = "refiner"\n[settings]\n[training]\n', "utf-8")
    sets = ("training.images=4", "training.batch=4", "training.rate=1e-3", "settings.steps=2")
    sets += ("training.precision=no",)
    with pytest.raises(ValueError, match="--model"):
        train(str(path), targets=str(stored), changes=sets)
    with pytest.raises(ValueError, match="--targets"):
        train(str(path), model=model, changes=sets)
    train(str(path), model=model, targets=str(stored), changes=sets, out=tmp_path / "run")
    assert (tmp_path / "run/model/refiner.safetensors").exists()
    with pytest.raises(ValueError, match="name the preset"):
        train(model=model)
    with pytest.raises(ValueError, match="no setting 'targets'"):
        train("critters", targets=str(stored))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ('guidance = "CFG(4)"\nfoo = 1', "settings.teacher has no setting 'foo': there are model"),
        ('guidance = "CFG(4)"\nsteps = "9"', "settings.teacher: steps must be a whole number"),
        ('guidance = "CFG(4)"\nmodel = "x"', "settings.teacher says model: that is said by"),
        ('guidance = "CFG"', "CFG"),
        ('guidance = "CFG(4)"\nlora = ["x"]', "settings.teacher says lora: the teacher is the"),
    ],
)
def test_teachers_that_cannot_be_are_refused_before_a_run_begins(
    model: str, tmp_path: Path, teacher: str, message: str
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n", "utf-8")
    lines = f'prompt_file = "{tmp_path}/p.txt"\n[settings.teacher]\n{teacher}\n'
    with pytest.raises(ValueError, match=message):
        run(tmp_path, model, None, "run", lines)
    assert not (tmp_path / "run").exists()


def test_bad_runs(model: str, stored: Path, tmp_path: Path) -> None:
    other = tiny.saved(tmp_path / "other")
    weights = load_file(Path(other) / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"] += 1
    from safetensors.torch import save_file

    save_file(weights, Path(other) / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="another network"):
        run(tmp_path, other, stored)
    targets = Targets.at(stored)
    adapted = replace(targets, key={**targets.key, "lora": ["style"]})
    with pytest.raises(ValueError, match="a teacher with adapters, style: fuse them"):
        adapted.require(targets.key["networks"], {})
    with pytest.raises(ValueError, match="steps was 4 and is 9"):
        run(tmp_path, model, stored, "run", '[settings.teacher]\nguidance = "CFG(4)"\nsteps = 9\n')
    with pytest.raises(ValueError, match="give one of both"):
        run(tmp_path, model, None)
    with pytest.raises(ValueError, match="msd, full"):
        run(tmp_path, model, stored, "run", 'gradient = "some"')
    (tmp_path / "p.txt").write_text("a", "utf-8")
    with pytest.raises(ValueError, match="teacher has no guidance"):
        run(tmp_path, model, None, "run", f'prompt_file = "{tmp_path}/p.txt"')
    with pytest.raises(ValueError, match=r"leave \[data\] out"):
        begin(Run.named(preset(tmp_path, model, stored), "data.drop=0.1"), tmp_path / "run")


def test_presets_are_there() -> None:
    assert {"refiner", "critters-refiner"} <= presets().keys()
    assert Run.named("refiner", "settings.start=m", "settings.targets=t").task == "refiner"


# ------------------------------------------------------------------ on the command line


def test_sample_with_a_refiner_says_so(model: str, tmp_path: Path, monkeypatch) -> None:
    with open_pipeline(Recipe(model)) as images:
        made = NoiseRefiner(images.pipe, rank=2)
        with torch.no_grad():
            for p in made.parameters.values():
                p.fill_(0.02)
        made.save(tmp_path / "r")
        made.remove()
    recipe = Recipe(model, prompt="a cat", steps=2, refiner=str(tmp_path / "r"), strength=0.5)
    sample(recipe, seeds="3", out=tmp_path / "a")
    assert recipe_of_png(tmp_path / "a/000003.png")[0] == recipe
    sample(like=tmp_path / "a/000003.png", out=tmp_path / "b")
    sample(replace(recipe, strength=1.0), seeds="3", out=tmp_path / "c")
    sample(replace(recipe, refiner="", strength=1.0), seeds="3", out=tmp_path / "d")
    a, b, c, d = ((tmp_path / n / "000003.png").read_bytes() for n in "abcd")
    assert a == b and len({a, c, d}) == 3
    with pytest.raises(ValueError, match="was made otherwise: .*strength"):
        sample(replace(recipe, strength=1.0), seeds="3", out=tmp_path / "a")
    with (
        open_pipeline(recipe) as one,
        open_pipeline(replace(recipe, refiner="", strength=1.0)) as none,
    ):
        assert one.weights != none.weights


def test_rows_of_recipes(model: str, tmp_path: Path) -> None:
    """N + 1 with a refiner, 2 N with CFG, N + 2 rounds with noise level guidance."""
    with open_pipeline(Recipe(model)) as images:
        made = NoiseRefiner(images.pipe, rank=2)
        made.save(tmp_path / "r")
        made.remove()
    recipe = Recipe(model, prompt="a cat", steps=5)
    for change, rows in (
        ({}, 5),
        ({"refiner": str(tmp_path / "r")}, 6),
        ({"guidance": "CFG(4)"}, 10),
        ({"guidance": "CFG(4)", "refiner": str(tmp_path / "r")}, 11),
        ({"refiner": "NLG(3)"}, 5 + 6),
    ):
        with open_pipeline(replace(recipe, **change)) as images:
            images([0, 1])
            assert images.nfe() == {"rows": 2.0 * rows}, change


def test_recipes_of_refiners_that_cannot_be(model: str, tmp_path: Path) -> None:
    recipe = Recipe(model, prompt="a cat", steps=2)
    with (
        pytest.raises(ValueError, match="of no refiner"),
        open_pipeline(replace(recipe, strength=0.5)),
    ):
        pass
    absent = replace(recipe, refiner=str(tmp_path))
    with pytest.raises(ValueError, match="without refiner.json"), open_pipeline(absent):
        pass
    nlg = replace(recipe, refiner="NLG(1)", negative="bad")
    with pytest.warns(UserWarning, match="acts by guidance alone"), open_pipeline(nlg):
        pass
    empty = replace(recipe, refiner="NLG(1)", prompt="")
    with pytest.warns(UserWarning, match="there is no prompt"), open_pipeline(empty):
        pass
    with open_pipeline(recipe) as images:  # and the pipeline that is kept is free again
        images([0])


def test_best_of_n_is_the_best_of_its_candidates(model: str) -> None:
    recipe = Recipe(model, prompts=PROMPTS, steps=2)
    with open_pipeline(recipe) as images:
        best = BestOf(images, brightness, 3, PROMPTS)
        chosen = best.chosen([1, 4])
        draws = [[s + k * best.stride for s in (1, 4)] for k in range(3)]
        every = torch.stack([brightness(images(part), ["", ""]) for part in draws])
        assert chosen == [draws[k][i] for i, k in enumerate(every.argmax(0))]
        assert len({Noise([part[0]])(torch.empty(1, 4)).sum() for part in draws}) == 3
        assert all(recipe.for_seed(part[0]).prompt == PROMPTS[1] for part in draws)
        want = images(chosen)
        images.nfe()
        assert torch.equal(best([1, 4]), want)
        assert images.nfe() == {"rows": 3 * 2 * 2}  # candidates, steps, images
        assert BestOf(images, brightness, 1, PROMPTS).chosen([1, 4]) == [1, 4]
        for score in (lambda p, t: torch.zeros(1), lambda p, t: torch.full((2,), float("nan"))):
            with pytest.raises(ValueError, match="the score gave"):
                BestOf(images, score, 2, PROMPTS)([1, 4])
    with pytest.raises(ValueError, match="n=0"):
        BestOf(images, brightness, 0, PROMPTS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"targets": "absent"}, "holds no targets"),
        ({"prompt_file": "absent.txt", "teacher": {"guidance": "CFG(2)"}}, "no file absent.txt"),
        ({"prompt_file": "p.txt", "teacher": {"guidance": "Cfg(2)"}}, "did you mean 'CFG'"),
        ({"prompt_file": "p.txt", "teacher": {"guidance": "CFG(2)", "n": 1}}, "no setting 'n'"),
        ({"prompt_file": "p.txt", "teacher": {"guidance": "CFG(2)"}, "least": 1.0}, "least=1.0 is"),
        ({"targets": "t", "sampler": "ddim"}, "did you mean 'DDIM'"),
        ({"targets": "t", "head": "none"}, "settings.head='none': there are"),
        ({"targets": "t", "rank": 0}, "settings.rank=0"),
    ],
)
def test_settings_are_checked_before_the_model_is_loaded(
    teacher: Recipe, tmp_path: Path, monkeypatch, changes: dict[str, Any], reason: str
) -> None:
    from diffsteer.train.refiner import task

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(task, "load", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "p.txt").write_text("a cat", "utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        task.RefinerTask(task.RefinerSettings(teacher.model, **changes))

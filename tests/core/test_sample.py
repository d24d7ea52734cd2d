"""`diffsteer sample` on a tiny pipeline from disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from diffsteer.cli.sample import sample
from diffsteer.generate import pipelines as render
from diffsteer.generate.recipe import Recipe, recipe_of_png
from diffsteer.hf.conditioning import conditioning_kwargs
from diffsteer.hf.load import load
from diffsteer.io.seeds import parse_seeds

CAT = Recipe(prompt="a cat", guidance="CFG(3) + SAG(0.5)", sampler="UniPC()", steps=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    model = tiny.saved(folder)
    guide = tiny.unet()
    tiny._perturb(guide)
    guide.save_pretrained(folder / "guide")
    tiny.unconditional(diffusers.DDPMScheduler(clip_sample=False)).save_pretrained(folder / "plain")
    return model


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def test_a_seed_is_a_picture_at_any_batch(model: str, tmp_path: Path) -> None:
    for batch, seeds in ((3, "0-2"), (1, "1"), (2, "2,0")):
        sample(replace(CAT, model=model), seeds, tmp_path / str(batch), batch=batch)
    whole = tmp_path / "3"
    assert sorted(p.name for p in whole.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    for other in (tmp_path / "1", tmp_path / "2"):
        for path in other.iterdir():
            a, b = (torch.frombuffer(bytearray(pixels(p)), dtype=torch.uint8).int()
                    for p in (path, whole / path.name))  # fmt: skip
            assert (a - b).abs().max() <= 1
    assert pixels(whole / "000000.png") != pixels(whole / "000001.png")


def test_from_repeats_a_picture(model: str, tmp_path: Path) -> None:
    sample(replace(CAT, model=model), "5", tmp_path)
    assert recipe_of_png(tmp_path / "000005.png") == (replace(CAT, model=model), 5)
    sample(like=tmp_path / "000005.png", out=tmp_path / "again")
    assert pixels(tmp_path / "again" / "000005.png") == pixels(tmp_path / "000005.png")


def test_goes_on_where_it_stopped(model: str, tmp_path: Path, capsys) -> None:
    sample(replace(CAT, model=model), "0-1", tmp_path)
    before = (tmp_path / "000001.png").stat().st_mtime_ns
    sample(replace(CAT, model=model), "1-2", tmp_path)
    assert "1 of 2 images were there, 1 made" in capsys.readouterr().out
    assert (tmp_path / "000001.png").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="was made otherwise.*Give another --out"):
        sample(Recipe(model, prompt="a dog"), "1-3", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_processes_share_the_seeds(model: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in ((0, {"000000.png", "000002.png"}), (1, {"000001.png"})):
        monkeypatch.setenv("RANK", str(rank))
        sample(replace(CAT, model=model), "0-2", tmp_path / str(rank))
        assert {p.name for p in (tmp_path / str(rank)).iterdir()} == names


def test_many_prompts_by_seed(model: str, tmp_path: Path) -> None:
    """An image holds the recipe of its own prompt, and is that image."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n", "utf-8")
    recipe = replace(CAT, model=model, prompt="")
    sample(recipe, "0-3", tmp_path / "many", prompts=prompts)
    one, seed = recipe_of_png(tmp_path / "many" / "000003.png")
    assert (one, seed) == (replace(recipe, prompt="a dog"), 3)
    sample(one, "3", tmp_path / "one")
    a, b = (Image.open(tmp_path / f / "000003.png") for f in ("many", "one"))
    off = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))
    assert off.max() <= 1


def test_guidance_sampler_and_guide_act(model: str, tmp_path: Path) -> None:
    guide = str(Path(model).parent / "guide")
    recipes = [
        Recipe(prompt="a cat", steps=3),
        Recipe(prompt="a cat", steps=3, guidance="CFG(3)"),
        Recipe(prompt="a cat", steps=3, guidance="CFG(3)", negative="a dog"),
        Recipe(prompt="a cat", steps=3, guidance="CFG(3)", sampler="DDIM(eta=1.0)"),
        Recipe(prompt="a cat", steps=3, guidance="CFG(3)", sampler="DDIM", spacing="logsigma"),
        Recipe(prompt="a cat", steps=3, guidance="Auto(3.0)", guide=guide),
    ]
    for i, recipe in enumerate(recipes):
        sample(replace(recipe, model=model), "0", tmp_path / str(i))
    assert len({pixels(tmp_path / str(i) / "000000.png") for i in range(len(recipes))}) == len(
        recipes
    )


def image_bytes(output: Any) -> torch.Tensor:
    """Images of a pipeline's output, uint8 `(N, 3, H, W)`."""
    images = [np.array(image.convert("RGB")) for image in output.images]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def test_classes_are_prompts_by_name_or_number(tmp_path: Path) -> None:
    pipe, model = tiny.saved_dit(tmp_path)
    recipe = Recipe(model, prompts=("golden retriever", "208", ""), steps=2)
    with render.open_pipeline(recipe) as images:
        got = images([3, 1, 2])
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 1, 2)]
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "generator": generators}
    want = pipe(class_labels=[207, 208, 1000], **call)
    assert torch.equal(got, image_bytes(want))
    guided = Recipe(model, prompt="Labrador retriever", guidance="CFG(3)", steps=2)
    with render.open_pipeline(guided) as images:
        got = images([5])
    call = {"num_inference_steps": 2, "guidance_scale": 3.0}
    want = pipe(class_labels=[208], **call, generator=[torch.Generator().manual_seed(5)])
    assert (got.int() - image_bytes(want).int()).abs().max() <= 1  # rounding of a level
    for text, message in (
        ("golden retriver", "'golden retriver' is no class .* 'golden retriever', "),
        ("1000", "'1000' is no class .* give a number below 1000, or nothing"),
        ("tench, golden retriever", "is no class"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(Recipe(model, prompt=text), "0", tmp_path / "out")
    for name in ("tench, Tinca tinca", "TENCH", " Tinca  tinca"):
        assert conditioning_kwargs(load(model, None), [name]) == {"class_labels": [0]}
    with pytest.raises(ValueError, match="takes no height, width: leave it out"):
        sample(Recipe(model, prompt="1", width=64, height=64), "0", tmp_path / "out")
    pipe.transformer.register_to_config(num_embeds_ada_norm=10)
    with pytest.raises(ValueError, match="10 classes has not: sample it without"):
        conditioning_kwargs(pipe, ["3"], guided=True)
    noisy = Recipe(model, prompts=("207", "208"), sampler="DDIM(eta=1.0)", guidance="CFG(2)")
    with render.open_pipeline(replace(noisy, steps=3)) as images:
        both = images([3, 4])
        assert torch.equal(images([3, 4]), both)
        assert (images([4]).int() - both[1:].int()).abs().max() <= 1
    with pytest.raises(ValueError, match="takes no negative prompt"):
        sample(Recipe(model, prompt="1", negative="2", guidance="CFG(2)"), "0", tmp_path / "out")


def test_pipelines_of_other_classes_are_sampled_as_they_are(tmp_path: Path) -> None:
    """Consistency models take class labels too, of networks that may have none."""
    pipe = tiny.unconditional(
        diffusers.CMStochasticIterativeScheduler(), "ConsistencyModelPipeline"
    )
    pipe.save_pretrained(tmp_path / "cm")
    sample(Recipe(str(tmp_path / "cm"), steps=1), "0", tmp_path / "out")
    assert (tmp_path / "out/000000.png").exists()


def test_a_guide_that_was_exchanged_is_seen_and_two_renderings_may_share_one(
    model: str, tmp_path: Path
) -> None:
    guide = tiny.unet()
    guide.save_pretrained(tmp_path / "guide")
    recipe = Recipe(
        model, prompt="a cat", steps=1, guidance="Auto(2)", guide=str(tmp_path / "guide")
    )
    with render.open_pipeline(recipe) as images:
        before = images.weights
    pipes = [tiny.stable_diffusion(diffusers.DDIMScheduler(), tmp_path) for _ in range(2)]
    with render.configured(pipes[0], recipe, guide=guide) as outer:
        with render.configured(pipes[1], recipe, guide=guide) as inner:
            inner([0])
        outer([0])
        assert outer.nfe()["rows of the guide"] >= 1
    assert "forward" not in vars(guide)
    tiny._perturb(guide)
    guide.save_pretrained(tmp_path / "guide")
    with render.open_pipeline(recipe) as images:
        assert images.weights != before


def test_a_guide_may_be_a_pipeline(model: str, tmp_path: Path) -> None:
    """Of which nothing is loaded but the network: the rest is not there."""
    pipe, guide = tmp_path / "pipe", Path(model).parent / "guide"
    shutil.copytree(guide, pipe / "unet")
    shutil.copy(Path(model) / "model_index.json", pipe)
    one = Recipe(model, "a cat", guidance="Auto(3)", steps=2)
    for i, name in enumerate((guide, pipe)):
        sample(replace(one, guide=str(name)), "0", tmp_path / str(i))
    assert pixels(tmp_path / "0" / "000000.png") == pixels(tmp_path / "1" / "000000.png")
    with pytest.raises(OSError, match="nowhere"):
        sample(replace(one, guide=str(tmp_path / "nowhere")), "0", tmp_path / "out")


def test_networks_without_prompts(model: str, tmp_path: Path) -> None:
    plain = str(Path(model).parent / "plain")
    sample(
        Recipe(plain, guidance='SAG(0.5, on="cond")', sampler="DDIM()", steps=3), "0-1", tmp_path
    )
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="takes no prompt"):
        sample(Recipe(plain, prompt="a cat"), "0", tmp_path / "other")


def test_seeds() -> None:
    assert parse_seeds("7") == [7] and parse_seeds("0-3,8") == [0, 1, 2, 3, 8]
    for text in ("", "a", "3-", "1,1", "5-2", "-1"):
        with pytest.raises(ValueError, match="seed"):
            parse_seeds(text)


def test_bad_input(model: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.png"
    Image.new("RGB", (4, 4)).save(foreign)
    with pytest.raises(ValueError, match="holds no recipe"):
        sample(like=foreign, out=tmp_path)
    with pytest.raises(ValueError, match="give no model, recipe or seeds"):
        sample(Recipe(model), like=foreign, out=tmp_path)
    with pytest.raises(ValueError, match="name a model"):
        sample(out=tmp_path)
    with pytest.raises(ValueError, match="batch=0"):
        sample(replace(CAT, model=model), "0", tmp_path, batch=0)
    with pytest.raises(ValueError, match="belong to a sampler of ours"):
        Recipe(zero_snr=True)
    with pytest.raises(ValueError, match="'epsilon' with zero terminal SNR"):
        sample(Recipe(model, sampler="DDIM()", zero_snr=True), "0", tmp_path / "zero")
    with pytest.raises(ValueError, match="unknown Guidance 'Magic'"):
        sample(Recipe(model, guidance="Magic(1)"), "0", tmp_path / "magic")
    assert not list((tmp_path / "magic").glob("*.png"))


def test_metadata_are_plain_json(model: str, tmp_path: Path) -> None:
    sample(replace(CAT, model=model), "0", tmp_path)
    said = json.loads(Image.open(tmp_path / "000000.png").info["diffsteer"])
    assert said["recipe"]["guidance"] == "CFG(3) + SAG(0.5)" and said["seed"] == 0
    assert said["versions"]["diffusers"] == diffusers.__version__

"""The models that ship."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from diffsteer_lab.emoji import BACKGROUNDS, Emoji

from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.load import guide_beside, load, network
from diffsteer.metrics.background import errors, nearest
from diffsteer.steering import steer

FOLDER = files("diffsteer_lab") / "assets" / "pocket"
NAMES = ("pocket", "pocket-eps", "pocket-guide")
THINGS = ("grinning face", "owl", "rocket", "cat face", "alarm clock", "red apple", "man", "bus")
PROMPTS = tuple(
    f"{thing}, noto style, on a {colour} background"
    for thing, colour in zip(THINGS, BACKGROUNDS, strict=True)
)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    with open_pipeline(Recipe("pocket", prompts=PROMPTS, sampler="UniPC()", steps=8)) as images:
        return images(range(8))


def test_backgrounds_are_obeyed(pictures: torch.Tensor) -> None:
    """Without guidance, in eight steps; one may be lost, and colours are off by the autoencoder."""
    said = nearest(pictures, BACKGROUNDS)
    assert sum(a == b for a, b in zip(said, BACKGROUNDS, strict=True)) >= 7
    assert errors(pictures, list(BACKGROUNDS.values())).median() < 12


def test_the_network_knows_its_prompt(pictures: torch.Tensor) -> None:
    """The same noise with the prompts in another order gives other images."""
    turned = Recipe("pocket", prompts=PROMPTS[1:] + PROMPTS[:1], sampler="UniPC()", steps=8)
    with open_pipeline(turned) as images:
        assert (images(range(8)).int() - pictures.int()).abs().float().mean() > 30


def test_autoguidance_finds_the_guide_that_belongs_to_a_model() -> None:
    pipe = load("pocket", torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def drawn(**guide: object) -> object:
        with steer(pipe, "Auto(2)", **guide):
            noise = torch.Generator().manual_seed(0)
            return pipe(PROMPTS[0], num_inference_steps=2, generator=noise, output_type="np").images

    own = drawn()
    assert (own == drawn(guide="pocket-guide")).all()
    assert (own == drawn(guide=network("pocket-guide", torch.float32))).all()
    recipe = Recipe("pocket", prompt=PROMPTS[0], guidance="Auto(2)", steps=2)
    with open_pipeline(recipe, "cpu") as images:
        assert images.recipe.guide == "pocket-guide"
        assert (images([0])[0].permute(1, 2, 0).numpy() == (own[0] * 255).round()).all()
    assert guide_beside(load("pocket-eps", torch.float32), None) is None


def test_what_ships() -> None:
    from diffusers import StableDiffusionPipeline

    pipe, flawed = (load(name, torch.float32) for name in NAMES[:2])
    assert isinstance(pipe, StableDiffusionPipeline)
    repaired = pipe.scheduler.config
    assert repaired.prediction_type == "v_prediction" and repaired.rescale_betas_zero_snr
    assert repaired.timestep_spacing == "trailing" and repaired.set_alpha_to_one
    assert flawed.scheduler.config.prediction_type == "epsilon"
    assert not flawed.scheduler.config.get("rescale_betas_zero_snr")
    sizes = [
        sum(p.numel() for p in net.parameters())
        for net in (pipe.unet, flawed.unet, network("pocket-guide", torch.float32))
    ]
    assert sizes[0] == sizes[1] > 3 * sizes[2]


def test_refined_noise_leads_where_guidance_does() -> None:
    """Things of the test split: nearer to the guided image of the same noise than unrefined."""
    source = Emoji("test")
    prompts = tuple(source.caption(i) for i in range(0, len(source), len(source) // 8))[:8]
    base = Recipe("pocket", prompts=prompts, sampler="UniPC()", steps=8)
    made = {}
    for name, how in {
        "none": {},
        "refined": {"refiner": "pocket-refiner"},
        "half": {"refiner": "pocket-refiner", "strength": 0.5},
        "guided": {"guidance": "CFG(2)"},
    }.items():
        with open_pipeline(replace(base, **how)) as images:
            made[name] = images(range(8)).double()
            rows = images.nfe()["rows"] / 8
        assert rows == {"none": 8, "refined": 9, "half": 9, "guided": 16}[name]
    far = {name: float((x - made["guided"]).square().mean()) for name, x in made.items()}
    assert far["refined"] < 0.7 * far["none"]
    assert far["refined"] < far["half"] < far["none"]


def test_cards_and_size() -> None:
    for name in (*NAMES, "pocket-refiner"):
        card = (FOLDER / name / "README.md").read_text("utf-8")
        for word in (f"diffsteer train {name}", "Apache-2.0", "CC-BY 4.0", "320,000"):
            assert word in card, (name, word)
    weights = [f for f in _files(FOLDER) if f.name.endswith(".safetensors")]
    assert len(weights) == 6  # network, text encoder, autoencoder, two more networks, adapter
    assert sum(len(f.read_bytes()) for f in weights) < 45e6


def _files(folder):
    for one in folder.iterdir():
        yield from _files(one) if one.is_dir() else (one,)

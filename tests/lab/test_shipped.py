"""The models that ship."""

import warnings
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from diffsteer_lab.critters.images import Critters
from diffsteer_lab.critters.judge import right

from diffsteer.cli.main import main
from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import require_consistent
from diffsteer.hf.load import guide_beside, load, network
from diffsteer.hf.shipped import shipped
from diffsteer.io.model_folder import INDEX, require_model
from diffsteer.steering import steer

FOLDER = files("diffsteer_lab") / "assets" / "critters"
NAMES = ("critters", "critters-eps", "critters-guide")
HELD_OUT = Critters("test", 16, seed=7)
PROMPTS = tuple(HELD_OUT.caption(i) for i in range(16))
BASE = Recipe("critters", prompts=PROMPTS, sampler="UniPC()", steps=8)


def drawn(recipe: Recipe, count: int = 16) -> tuple[torch.Tensor, dict[str, float]]:
    with open_pipeline(recipe) as images:
        return images(range(count)), images.nfe()


@pytest.fixture(scope="module")
def unguided() -> torch.Tensor:
    return drawn(BASE)[0]


@pytest.fixture(scope="module")
def guided() -> torch.Tensor:
    return drawn(replace(BASE, guidance="CFG(2)"))[0]


def test_guidance_raises_obedience_to_held_out_prompts(
    unguided: torch.Tensor, guided: torch.Tensor
) -> None:
    """Of 200 images 55 % have all attributes right without guidance, 87 % with it."""
    plain, steered = (right(images, PROMPTS).double() for images in (unguided, guided))
    assert plain.mean() > 0.8 and steered.mean() > 0.9
    assert steered.all(1).sum() >= plain.all(1).sum() + 2


def test_the_network_knows_its_prompt(unguided: torch.Tensor) -> None:
    """The same noise with the prompts in another order gives other images."""
    turned, _ = drawn(replace(BASE, prompts=PROMPTS[1:] + PROMPTS[:1]), 4)
    assert (turned.int() - unguided[:4].int()).abs().float().mean() > 30


def test_autoguidance_finds_the_guide_that_belongs_to_a_model() -> None:
    pipe = load("critters", torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def made(**guide: object) -> object:
        with steer(pipe, "Auto(2)", **guide):
            noise = torch.Generator().manual_seed(0)
            return pipe(PROMPTS[0], num_inference_steps=2, generator=noise, output_type="np").images

    own = made()
    assert (own == made(guide="critters-guide")).all()
    assert (own == made(guide=network("critters-guide", torch.float32))).all()
    recipe = Recipe("critters", prompt=PROMPTS[0], guidance="Auto(2)", steps=2)
    with open_pipeline(recipe, "cpu") as images:
        assert images.recipe.guide == "critters-guide"
        assert (images([0])[0].permute(1, 2, 0).numpy() == (own[0] * 255).round()).all()
    assert guide_beside(load("critters-eps", torch.float32), None) is None


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
        for net in (pipe.unet, flawed.unet, network("critters-guide", torch.float32))
    ]
    assert sizes[0] == sizes[1] > 3 * sizes[2]


def test_refined_noise_leads_where_guidance_does(
    unguided: torch.Tensor, guided: torch.Tensor
) -> None:
    """Held-out prompts: nearer to the guided image of the same noise than unrefined."""
    made = {"none": unguided, "guided": guided}
    for name, strength in (("refined", 1.0), ("half", 0.5)):
        recipe = replace(BASE, refiner="critters-refiner", strength=strength)
        made[name], nfe = drawn(recipe)
        assert nfe["rows"] / 16 == 9
    target = guided.double()
    far = {name: float((x.double() - target).square().mean()) for name, x in made.items()}
    assert far["refined"] < 0.7 * far["none"]
    assert far["refined"] < far["half"] < far["none"]


def test_a_lora_holds_guidance_at_one_evaluation_a_step(
    unguided: torch.Tensor, guided: torch.Tensor
) -> None:
    made, nfe = drawn(replace(BASE, lora=("critters-agd",)))
    assert nfe["rows"] / 16 == 8
    far = [(x.double() - guided.double()).square().mean() for x in (made, unguided)]
    assert far[0] < 0.5 * far[1]


def test_a_prompt_outside_of_the_grammar_warns_with_its_words() -> None:
    for prompt, expected in (("an owl", True), (PROMPTS[0], False), ("a red critter", False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            require_consistent(Recipe("critters", prompt=prompt, steps=1))
        told = [str(w.message) for w in caught if "does not know this prompt" in str(w.message)]
        assert bool(told) == expected
        assert all("three-eyed" in text and "antennae" in text for text in told)


def test_a_folder_of_images_does_not_hide_the_model_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # `diffsteer sample critters --out critters`
    Path("critters").mkdir()
    Path("critters/000000.png").touch()
    require_model("critters", (INDEX,))
    model = shipped("critters")
    assert model is not None and model.folder.is_absolute()
    Path("critters/config.json").write_text("{}")
    assert shipped("critters") is None
    with pytest.raises(ValueError, match="a folder without model_index.json"):
        require_model("critters", (INDEX,))


def test_a_command_warns_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = f"diffsteer sample pocket --prompt x --steps 1 --out {tmp_path}"
    monkeypatch.setattr("sys.argv", words.split())
    with warnings.catch_warnings():
        main()
    told = capsys.readouterr().err
    assert told.count("pocket is critters now") == 1 and told.count("does not know") == 1


def test_former_names_warn_that_the_model_is_another() -> None:
    with pytest.warns(UserWarning, match="pocket-guide is critters-guide now"):
        assert sum(p.numel() for p in network("pocket-guide", torch.float32).parameters()) > 1e6


def test_cards_and_size() -> None:
    for name in (*NAMES, "critters-refiner", "critters-lowfreq-refiner", "critters-agd"):
        card = (FOLDER / name / "README.md").read_text("utf-8")
        for word in (f"diffsteer train {name}", "Apache-2.0", "DiceBear", "CC0"):
            assert word in card, (name, word)
    weights = [f for f in _files(FOLDER) if f.name.endswith(".safetensors")]
    assert (
        len(weights) == 9
    )  # network, text encoder, autoencoder, two networks, three adapters, judge
    assert sum(len(f.read_bytes()) for f in weights) < 45e6


def _files(folder):
    for one in folder.iterdir():
        yield from _files(one) if one.is_dir() else (one,)

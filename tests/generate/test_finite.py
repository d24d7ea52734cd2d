"""No image is made of what is not finite, whichever path and model makes it."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from PIL import Image

from diffsteer.cli.options import Features, Samples
from diffsteer.core.errors import InputError
from diffsteer.generate import pipelines
from diffsteer.generate.base import NotFinite, require_finite
from diffsteer.generate.generator import open_generator
from diffsteer.generate.options import EDM2Options
from diffsteer.generate.pipelines import PipelineGenerator, configured
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.seed_images import HOPELESS, SeedImages
from diffsteer.models.adm.checkpoint import convert
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.unet import ADM
from diffsteer.models.edm2.model import EDM2, Checkpoint

NAN = float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, and EDM2 and ADM networks; one EDM2 network makes latents."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tiny.saved(folder)
    size = "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2"
    flags = Flags.parse(f"{size} --learn_sigma True")
    torch.save(ADM(flags).state_dict(), folder / "adm.pt")
    convert(folder / "adm.pt", folder / "adm", flags)
    network: dict[str, Any] = {"channel_mult": [1], "num_blocks": 1, "channels_per_head": 8}
    EDM2(8, 3, 0, model_channels=8, **network).save(folder / "edm2")
    latent = EDM2(8, 4, 0, model_channels=8, **network)
    encoder = {"kind": "vae", "vae_name": "vae", "scale": [0.1] * 4, "bias": [0.0] * 4}
    Checkpoint(latent.config, latent.state_dict(), {"encoder": encoder}).save(folder / "latent")
    tiny.vae().save_pretrained(folder / "vae")
    return folder


def broken(net: torch.nn.Module) -> None:
    """Set one weight of the last layer to NaN."""
    with torch.no_grad():
        last = list(net.parameters())[-1]
        last[(0,) * last.ndim] = NAN


BREAK: dict[str, tuple[str, Callable[[Any], torch.nn.Module]]] = {
    "network": ("pipe", lambda g: g.pipe.unet),
    "autoencoder": ("pipe", lambda g: g.pipe.vae.decoder),
    "ADM": ("adm", lambda g: g.main.net),
    "EDM2": ("edm2", lambda g: g._main.unet),
    "EDM2, latents": ("latent", lambda g: g._main.unet),
    "EDM2, autoencoder": ("latent", lambda g: g._decode.vae.decoder),
}


@pytest.mark.parametrize("case", BREAK)
def test_weights_that_are_not_finite_make_no_image(folder: Path, tmp_path: Path, case: str) -> None:
    name, part = BREAK[case]
    options = EDM2Options() if name in ("edm2", "latent") else None
    pipelines._loaded.cache_clear()
    with open_generator(Recipe(str(folder / name), steps=2, options=options), "cpu") as generate:
        assert generate([3, 4]).dtype == torch.uint8
        broken(part(generate))
        with pytest.raises(NotFinite, match="seeds 3-4 are not finite"):
            generate([3, 4])
        with pytest.raises(NotFinite):
            SeedImages(tmp_path, generate).fill(range(3), 2)
    pipelines._loaded.cache_clear()
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance": "CFG(1e30)"},
        {"guidance": "CFG(1e300)", "sampler": "DDIM()"},
        {"guidance": "CFG(1e30)", "sampler": "DDPM"},
        {"guidance": "SAG(1e36)"},
        {"refiner": "NLG(20)", "strength": 1e308},
    ],
    ids=repr,
)
def test_settings_that_overflow_make_no_image(folder: Path, fields: dict[str, Any]) -> None:
    recipe = Recipe(str(folder / "pipe"), prompt="a cat", steps=3, **fields)
    with open_generator(recipe, "cpu") as generate, pytest.raises(NotFinite):
        generate([0])


class Blackens(diffusers.image_processor.VaeImageProcessor):
    """Hides what is not finite, as some pipelines do."""

    def postprocess(self, image: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().postprocess(image.nan_to_num(), *args, **kwargs)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_pipeline_that_hides_what_is_not_finite(tmp_path: Path, part: str) -> None:
    pipe = tiny.stable_diffusion(diffusers.DDIMScheduler(), tmp_path)
    pipe.image_processor = Blackens(vae_scale_factor=pipe.vae_scale_factor)
    broken(getattr(pipe, part))
    with configured(pipe, Recipe("m", steps=2)) as generate, pytest.raises(NotFinite):
        generate([0])


class Sometimes(PipelineGenerator):
    """A generator whose samples of some seeds are not finite."""

    bad: frozenset[int] = frozenset()
    tried = 0

    def __call__(self, seeds: Any) -> torch.Tensor:
        self.tried += len(seeds)
        images = torch.zeros(len(seeds), 3, 4, 4, dtype=torch.uint8)
        floats = torch.tensor([NAN if seed in self.bad else 0.0 for seed in seeds])
        return require_finite(seeds, images, torch.cat([floats, floats])[:, None])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_images_of_the_other_seeds_are_kept(tmp_path: Path, batch: int) -> None:
    generator = Sometimes(Recipe("m"), None, "")
    generator.bad = frozenset({0, 3})
    with pytest.raises(NotFinite, match="seeds 0,3 are not finite"):
        SeedImages(tmp_path, generator).fill(range(6), batch)
    assert sorted(p.stem[-1] for p in tmp_path.glob("*.png")) == ["1", "2", "4", "5"]
    generator.bad = frozenset(range(1000))
    generator.tried = 0
    with pytest.raises(NotFinite):
        SeedImages(tmp_path / "none", generator).fill(range(1000), batch)
    assert HOPELESS <= generator.tried < HOPELESS + batch
    with pytest.raises(NotFinite) as other:
        require_finite([1, 2], torch.zeros(2, 3, 4, 4), torch.full((3, 1), NAN))
    assert other.value.seeds == (1, 2)


def test_a_model_that_changed_on_the_disk_is_loaded_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, images = Recipe("pipe", prompt="a cat", steps=1), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True))
        for change in (False, True):
            if change:
                tiny.vae().save_pretrained("pipe/vae")
                shutil.rmtree("pipe/text_encoder")
            with contextlib.suppress(InputError), open_generator(recipe, "cpu") as generate:
                images.append(generate([0]))
    assert len(images) == 2  # without a text encoder there is none


def test_nothing_that_is_not_finite_is_measured(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(str(folder / "pipe"), prompt="a", guidance="CFG(1e30)", steps=2)
    features, samples = Features(size=32), Samples("0-3", 2, tmp_path / "work")
    with pytest.raises(NotFinite):
        samples.measure(recipe, features, features.build(), tmp_path / "shown", 2)
    assert not list(tmp_path.rglob("chunk-*")) and not list(tmp_path.rglob("*.png"))


def test_an_image_has_the_size_that_was_asked_or_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one side is given: Stable Diffusion takes no notice of one alone."""
    recipe = Recipe(str(folder / "pipe"), prompt="a cat", steps=1)
    for size in ({"width": 32, "height": 16}, {"width": 32}, {"height": 8}, {}):
        with open_generator(replace(recipe, **size), "cpu") as generate:
            images = generate([0, 1])
            assert images.shape == (2, 3, size.get("height", 16), size.get("width", 16))
    odd = open_generator(replace(recipe, width=20), "cpu")
    with odd as generate, pytest.raises(InputError, match="refuses this call.*divisible by 8"):
        generate([0])
    less = [Image.new("RGB", (4, 4))]
    with open_generator(replace(recipe, width=24), "cpu") as generate:
        monkeypatch.setattr(generate.pipe, "numpy_to_pil", lambda images: less)
        with pytest.raises(InputError, match="1 images of 4 x 4 pixels for 2 of height 16, width"):
            generate([0, 1])

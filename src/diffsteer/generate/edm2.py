"""Images of EDM2 networks, in folders of `diffsteer convert edm2` and `train`, and of presets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.generate.base import Generator, require_finite
from diffsteer.generate.options import EDM2Options, class_number
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import guidance_of
from diffsteer.hf.weights import complete_weights
from diffsteer.io.hashing import digest, weights_hash
from diffsteer.models.edm2.config import read_config
from diffsteer.models.edm2.generate import decode_latents, decoded_bytes, generate, pixels
from diffsteer.models.edm2.model import EDM2, Checkpoint
from diffsteer.models.edm2.presets import Net, Preset
from diffsteer.models.edm2.snapshot import read

SAMPLING = {"sampler": "Heun()", "schedule": "EDM()", "steps": 32}
"""Of all presets, as their images say it."""


@dataclass(frozen=True)
class Decoder:
    """From samples to bytes of images, `(B, 3, H, W)`.

    Attributes:
        encoder: How images became what the network works on, as its folder says.
        vae: Decodes latents; None where samples are pixels.
    """

    encoder: Mapping[str, Any]
    vae: Any = None

    @classmethod
    def find(cls, about: Mapping[str, Any], model: Path, models: Path, device: str) -> "Decoder":
        """Look for the decoder where a run recorded it, then beside the model, then in models."""
        encoder = about.get("encoder", {})
        if encoder.get("kind") != "vae":
            return cls(encoder)
        from diffusers import AutoencoderKL

        recorded = Path(str(encoder.get("vae_name") or "sd-vae-ft-mse"))
        beside = model.absolute().parent / recorded.name
        places = list(dict.fromkeys((recorded, beside, models / recorded.name)))
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise FileNotFoundError(
                f"{model} samples latents, and what decodes them is in none of "
                f"{', '.join(map(str, places))}: put diffusers' AutoencoderKL folder there"
            )
        with complete_weights(bar=False):
            vae = AutoencoderKL.from_pretrained(folder).to(device).eval()
        vae.requires_grad_(False)
        return cls(encoder, vae)

    def __call__(self, seeds: Sequence[int], x: Tensor) -> Tensor:
        """Bytes of the samples of seeds, on the CPU."""
        if self.vae is None:
            return require_finite(seeds, pixels(x).cpu(), x)
        floats = decode_latents(x, self.vae, self.encoder["scale"], self.encoder["bias"])
        return require_finite(seeds, decoded_bytes(floats), x, floats)

    def weights(self, main: EDM2, guide: EDM2 | None) -> str:
        """Hash of all weights that decide images: of the networks, and its own."""
        own = {"decoder": weights_hash(self.vae)} if self.vae is not None else {}
        return digest({"main": weights_hash(main), "guide": guide and weights_hash(guide), **own})


class EDM2Generator(Generator):
    """Makes images by the official sampling loop; opened by `open_generator`."""

    def __init__(
        self,
        recipe: Recipe,
        options: EDM2Options,
        nets: tuple[EDM2, EDM2 | None],
        decode: Decoder,
    ) -> None:
        super().__init__(recipe, decode.weights(*nets))
        self._options, self._guidance, self._decode = options, guidance_of(recipe), decode
        self._main, self._guide = nets

    @override
    def rehearse(self) -> None:
        self._samples([0], 2)

    @override
    def sampled(self, seeds: Sequence[int]) -> Tensor:
        return self._decode(seeds, self._samples(seeds, self.recipe.steps))

    def _samples(self, seeds: Sequence[int], steps: int) -> Tensor:
        loop, label = replace(self._options.loop, steps=steps), self._options.label
        assert not isinstance(label, str)  # `open_edm2` looks up its number
        return generate(self._main, seeds, self._guidance, self._guide, loop, label)

    @property
    @override
    def key(self) -> dict[str, Any]:
        options, recipe = self._options, self.recipe
        if not options.preset:
            return super().key
        names = {"main": recipe.model, "guide": recipe.guide}
        stems = {name: Path(path).name.removesuffix(".pkl") for name, path in names.items()}
        settings: dict[str, Any] = {**stems, "guidance": recipe.guidance, "class": options.label}
        settings |= {"precision": options.precision, **SAMPLING}
        return {"model": options.preset, "recipe": settings, "weights": self.weights}

    @override
    def metadata(self, seed: int) -> dict[str, Any]:
        return self.key if self._options.preset else super().metadata(seed)


@contextmanager
def open_edm2(recipe: Recipe, device: str) -> Iterator[EDM2Generator]:
    """Load an EDM2 network, its guide and its decoder, and make images until closed."""
    options, path = recipe.options or EDM2Options(), Path(recipe.model)
    assert isinstance(options, EDM2Options)
    if not options.preset and options.models != EDM2Options.models:
        encoder = read_config(path).get("encoder", {})
        if encoder.get("kind") != "vae":
            raise InputError(f"{path} samples pixels: --models, which decodes latents, is not used")
    if options.label is not None:
        classes = [] if options.preset else read_config(path).get("classes")
        options = replace(options, label=class_number(options.label, classes, path))
    main, about = _network(path, options.precision, device)
    guide = _network(Path(recipe.guide), options.precision, device)[0] if recipe.guide else None
    decode = Decoder.find(about, path, options.models, device)
    generator = EDM2Generator(recipe, options, (main, guide), decode)
    with generator.counting([main.unet], guide and guide.unet):
        yield generator


def _network(path: Path, precision: str, device: str) -> tuple[EDM2, Mapping[str, Any]]:
    """Network of a folder or of an official .pkl, and what else is known of it."""
    stored = read(path) if path.suffix == ".pkl" else Checkpoint.load(path)
    return stored.network(precision, device), stored.about


def recipe_of_preset(
    preset: Preset,
    models: Path,
    label: int | str | None = None,
    precision: Literal["", "official-bit", "f32-clean"] = "",
) -> Recipe:
    """Recipe of a published configuration, with networks and decoder in the folder `models`."""
    options = EDM2Options(label, precision or "official-bit", preset=preset.name, models=models)
    return Recipe(
        str(_path(models, preset.main)),
        guidance=preset.guidance(),
        steps=32,
        guide=str(_path(models, preset.guide)) if preset.guide else "",
        options=options,
    )


def _path(models: Path, net: Net) -> Path:
    folder, pickle = models / net.stem, models / f"{net.stem}.pkl"
    if folder.is_dir():
        return folder
    if pickle.exists():
        return pickle
    raise FileNotFoundError(
        f"neither {folder}/ nor {pickle.name} is in {models}: nothing is downloaded, as no hash of "
        "the published files is known here; put the file there, or --models FOLDER"
    )

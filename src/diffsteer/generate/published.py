"""`diffsteer sample --preset`: images of published networks; importable without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from diffsteer.generate.seed_images import Numbered, share
from diffsteer.io.hashing import digest
from diffsteer.models.edm2.presets import Net, Preset, preset

if TYPE_CHECKING:
    from torch import Tensor

    from diffsteer.generate.seed_images import Make
    from diffsteer.models.edm2.model import EDM2, Checkpoint


@dataclass(frozen=True)
class Published:
    """A published configuration, such as edm2-img64-s-autog-fid, or how to sample a network.

    Attributes:
        preset: Its name.
        models: Folder with its networks, as .pkl files or folders of `diffsteer convert`, and with
            the decoder of latents; nothing is downloaded.
        weight: Of guidance, instead of the preset's.
        ema: Relative width of the main network's average, instead of the preset's.
        guide_ema: The same of the guide.
        label: Class of all images; without, each seed draws one.
        subdirs: Sort images into folders of a thousand seeds.
        precision: "official-bit" rounds gains as official sampling did, "f32-clean" does not; empty
            for the first with a preset and the second without.
    """

    preset: str = ""
    models: Path = Path("models")
    weight: float | None = None
    ema: float | None = None
    guide_ema: float | None = None
    label: Annotated[int | None, arg(name="class")] = None
    subdirs: Annotated[bool, FlagCreatePairsOff] = False
    precision: Literal["", "official-bit", "f32-clean"] = ""


NOTHING_PUBLISHED = Published()


def sample(said: Published, seeds: Sequence[int], out: Path, batch: int, device: str) -> None:
    """Sample a preset; an image that is there already is not made again.

    Under torchrun each process takes every WORLD_SIZE-th seed. Networks are read even where all
    images are there: others under the same names would have made others.

    Raises:
        ValueError: there is no such preset, settings are missing, or images were made otherwise.
        FileNotFoundError: a network is not among the models.
    """
    from diffsteer.io.device import device_of

    chosen = preset(said.preset).varied(said.weight, said.ema, said.guide_ema)
    decides = {"model": said.preset, "recipe": _recipe(said, chosen)}
    make, decides["weights"] = _maker(said, chosen, device_of(device))
    pictures = Numbered(out, lambda seed: decides, subdirs=said.subdirs)
    mine = share(seeds)
    todo = pictures.missing(mine)
    print(f"{out}: {len(mine) - len(todo)} of {len(mine)} images are there, {len(todo)} to do")
    pictures.fill(todo, make, batch)


def _recipe(said: Published, chosen: Preset) -> dict[str, Any]:
    """All that decides how an image comes out, but its seed."""
    return {
        "main": chosen.main.stem,
        "guide": chosen.guide.stem if chosen.guide else "",
        "guidance": chosen.guidance(),
        "class": said.label,
        "precision": said.precision or "official-bit",
        **{"sampler": "Heun()", "schedule": "EDM()", "steps": 32},
    }


def _maker(said: Published, chosen: Preset, device: str) -> "tuple[Make, str]":
    """From seeds to bytes of images, `(B, 3, H, W)`, and a hash of all weights that decide."""
    from diffsteer.core.parse import parse
    from diffsteer.guidance import Guidance
    from diffsteer.models.edm2.generate import generate

    stored = _found(said.models, chosen.main)
    guide = _found(said.models, chosen.guide).network() if chosen.guide else None
    nets = [stored.network(), *([guide] if guide else [])]
    main, *rest = [
        (net.float() if said.precision == "f32-clean" else net.half()).to(device) for net in nets
    ]
    guidance = parse(chosen.guidance(), Guidance) if chosen.guidance() else None
    # a file and a folder of it lie beside the same things
    decode = Decoder.found(stored.about, said.models / chosen.main.stem, said.models, device)

    def make(seeds: Sequence[int]) -> "Tensor":
        return decode(generate(main, seeds, guidance, rest[0] if rest else None, label=said.label))

    return make, decode.weights(main, rest[0] if rest else None)


def _found(models: Path, net: Net) -> "Checkpoint":
    """Read a network from the folder of models."""
    from diffsteer.models.edm2.model import Checkpoint
    from diffsteer.models.edm2.snapshot import read

    folder, pickle = models / net.stem, models / f"{net.stem}.pkl"
    if folder.is_dir():
        return Checkpoint.load(folder)
    if pickle.exists():
        return read(pickle)
    raise FileNotFoundError(
        f"neither {folder}/ nor {pickle.name} is in {models}: nothing is downloaded, as no hash of "
        "the published files is known here; put the file there, or --models FOLDER"
    )


@dataclass(frozen=True)
class Decoder:
    """From what a network samples to bytes of images, `(B, 3, H, W)`.

    Attributes:
        encoder: How images became what the network works on, as its folder says.
        vae: Decodes latents; None where samples are pixels.
    """

    encoder: Mapping[str, Any]
    vae: Any = None

    @classmethod
    def found(cls, about: Mapping[str, Any], model: Path, models: Path, device: str) -> "Decoder":
        """Look for the decoder where a run recorded it, then beside the model, then in models.

        Raises:
            FileNotFoundError: it is in none of them.
        """
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
        vae = AutoencoderKL.from_pretrained(folder).to(device).eval()
        vae.requires_grad_(False)
        return cls(encoder, vae)

    def __call__(self, x: "Tensor") -> "Tensor":
        """Bytes of samples, on the CPU."""
        from diffsteer.models.edm2.generate import decoded, pixels

        if self.vae is None:
            return pixels(x).cpu()
        return decoded(x, self.vae, self.encoder["scale"], self.encoder["bias"])

    def weights(self, main: "EDM2", guide: "EDM2 | None") -> str:
        """Hash of all weights that decide pictures: of the networks, and its own."""
        from diffsteer.io.hashing import weights_hash

        own = {"decoder": weights_hash(self.vae)} if self.vae is not None else {}
        return digest({"main": weights_hash(main), "guide": guide and weights_hash(guide), **own})

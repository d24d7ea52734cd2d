"""`diffsteer sample --preset`: pictures of published networks; importable without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from diffsteer.commands.numbered import Numbered, share
from diffsteer.presets.edm2 import Net, Preset, preset

if TYPE_CHECKING:
    from torch import Tensor

    from diffsteer.nets.edm2_files import Stored


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
        label: Class of all pictures; without, each seed draws one.
        subdirs: Sort pictures into folders of a thousand seeds.
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
    """Sample a preset; a picture that is there already is not made again.

    Under torchrun each process takes every WORLD_SIZE-th seed.

    Raises:
        ValueError: there is no such preset, settings are missing, or pictures were made otherwise.
        FileNotFoundError: a network is not among the models.
    """
    chosen = preset(said.preset).varied(said.weight, said.ema, said.guide_ema)
    decides = {"model": said.preset, "recipe": _recipe(said, chosen)}
    pictures = Numbered(out, lambda seed: decides, subdirs=said.subdirs)
    mine = share(seeds)
    todo = pictures.missing(mine)
    print(f"{out}: {len(mine) - len(todo)} of {len(mine)} pictures are there, {len(todo)} to do")
    if not todo:
        return
    from diffsteer.eval.features import device_of

    pictures.fill(todo, _maker(said, chosen, device_of(device)), batch)


def _recipe(said: Published, chosen: Preset) -> dict[str, Any]:
    """All that decides how a picture comes out, but its seed."""
    return {
        "main": chosen.main.stem,
        "guide": chosen.guide.stem if chosen.guide else "",
        "guidance": chosen.guidance(),
        "class": said.label,
        "precision": said.precision or "official-bit",
        **{"sampler": "Heun()", "schedule": "EDM()", "steps": 32},
    }


def _maker(said: Published, chosen: Preset, device: str) -> Any:
    """From seeds to bytes of pictures, `(B, 3, H, W)`."""
    from diffsteer.guidance import Guidance
    from diffsteer.nets.edm2_sample import generate, pixels
    from diffsteer.text import parse

    stored = _found(said.models, chosen.main)
    guide = _found(said.models, chosen.guide).network() if chosen.guide else None
    nets = [stored.network(), *([guide] if guide else [])]
    main, *rest = [
        (net.float() if said.precision == "f32-clean" else net.half()).to(device) for net in nets
    ]
    guidance = parse(chosen.guidance(), Guidance) if chosen.guidance() else None
    decode = decoder(stored.about.get("encoder", {}), said.models, device)

    def make(seeds: Sequence[int]) -> "Tensor":
        x = generate(main, seeds, guidance, rest[0] if rest else None, label=said.label)
        return pixels(x).cpu() if decode is None else decode(x)

    return make


def _found(models: Path, net: Net) -> "Stored":
    """Read a network from the folder of models."""
    from diffsteer.checkpoints.edm2 import read
    from diffsteer.nets.edm2_files import Stored

    folder, pickle = models / net.stem, models / f"{net.stem}.pkl"
    if folder.is_dir():
        return Stored.load(folder)
    if pickle.exists():
        return read(pickle)
    raise FileNotFoundError(
        f"neither {folder}/ nor {pickle.name} is in {models}: nothing is downloaded, as no hash of "
        "the published files is known here; put the file there, or --models FOLDER"
    )


def decoder(encoder: dict[str, Any], models: Path, device: str) -> Any:
    """From latents to bytes of pictures; None where samples are pixels."""
    if encoder.get("kind") != "vae":
        return None
    from diffusers import AutoencoderKL

    from diffsteer.nets.edm2_sample import decoded

    folder = models / str(encoder.get("vae_name", "sd-vae-ft-mse")).rpartition("/")[2]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: put diffusers' AutoencoderKL folder there")
    vae = AutoencoderKL.from_pretrained(folder).to(device).eval()
    return lambda x: decoded(x, vae, encoder["scale"], encoder["bias"])

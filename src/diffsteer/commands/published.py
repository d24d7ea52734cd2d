"""`diffsteer sample --preset`: pictures of published networks; importable without torch."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from diffsteer.presets.edm2 import Net, Preset, preset
from diffsteer.recipe import KEY, metadata

if TYPE_CHECKING:
    from torch import Tensor

    from diffsteer.nets.edm2_files import Stored


@dataclass(frozen=True)
class Published:
    """A published configuration, such as edm2-img64-s-autog-fid.

    Attributes:
        preset: Its name.
        models: Folder with its networks, as .pkl files or folders of `diffsteer convert`; nothing
            is downloaded.
        weight: Of guidance, instead of the preset's.
        ema: Relative width of the main network's average, instead of the preset's.
        guide_ema: The same of the guide.
        label: Class of all pictures; without, each seed draws one.
        subdirs: Sort pictures into folders of a thousand seeds.
        precision: "official-bit" rounds gains as official sampling did, "f32-clean" does not.
    """

    preset: str = ""
    models: Path = Path("models")
    weight: float | None = None
    ema: float | None = None
    guide_ema: float | None = None
    label: Annotated[int | None, arg(name="class")] = None
    subdirs: Annotated[bool, FlagCreatePairsOff] = False
    precision: Literal["official-bit", "f32-clean"] = "official-bit"


NOTHING_PUBLISHED = Published()


def sample(said: Published, seeds: Sequence[int], out: Path, batch: int, device: str) -> None:
    """Sample a preset; a picture that is there already is not made again.

    Under torchrun each process takes every WORLD_SIZE-th seed.

    Raises:
        ValueError: there is no such preset, settings are missing, or pictures were made otherwise.
        FileNotFoundError: a network is not among the models.
    """
    chosen = preset(said.preset).varied(said.weight, said.ema, said.guide_ema)
    recipe = _recipe(said, chosen)
    rank, world = _share()
    paths = {seed: out / _name(seed, said.subdirs) for seed in list(seeds)[rank::world]}
    todo = [seed for seed, path in paths.items() if not _made(path, said.preset, recipe)]
    print(f"{out}: {len(paths) - len(todo)} of {len(paths)} pictures are there, {len(todo)} to do")
    if not todo:
        return
    from diffsteer.eval.features import device_of

    make = _maker(said, chosen, device_of(device))
    for seed, picture in _pictures(make, todo, batch):
        _save(picture, paths[seed], said.preset, recipe, seed)


def _share() -> tuple[int, int]:
    """Which process this is, and of how many."""
    rank, world = (int(os.environ.get(name, d)) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= rank < world:
        raise ValueError(f"RANK={rank} of WORLD_SIZE={world} processes cannot be: use torchrun")
    return rank, world


def _recipe(said: Published, chosen: Preset) -> dict[str, Any]:
    """All that decides how a picture comes out, but its seed."""
    return {
        "main": chosen.main.stem,
        "guide": chosen.guide.stem if chosen.guide else "",
        "guidance": chosen.guidance(),
        "class": said.label,
        "precision": said.precision,
        **{"sampler": "Heun()", "schedule": "EDM()", "steps": 32},
    }


def _name(seed: int, subdirs: bool) -> str:
    return f"{seed // 1000 * 1000:06d}/{seed:06d}.png" if subdirs else f"{seed:06d}.png"


def _made(path: Path, name: str, recipe: dict[str, Any]) -> bool:
    """Whether a picture is there; one of another recipe is in the way."""
    if not path.exists():
        return False
    said = metadata(path)
    if said is None or (said["model"], said["recipe"]) != (name, recipe):
        was = said and (said["model"], said["recipe"])
        raise ValueError(f"{path} was made otherwise: {was}. Give another --out, or remove it")
    return True


def _save(picture: "Tensor", path: Path, name: str, recipe: dict[str, Any], seed: int) -> None:
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from diffsteer.whole import whole

    versions = {"torch": torch.__version__}
    info = PngInfo()
    said = {"model": name, "recipe": recipe, "seed": seed, "versions": versions}
    info.add_text(KEY, json.dumps(said))
    with whole(path) as file:
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        image.save(file, format="png", pnginfo=info)


def _pictures(make: Any, seeds: Sequence[int], batch: int) -> Iterator[tuple[int, "Tensor"]]:
    from tqdm import tqdm

    with tqdm(total=len(seeds), unit="picture", disable=None) as bar:
        for start in range(0, len(seeds), batch):
            part = seeds[start : start + batch]
            yield from zip(part, make(part), strict=True)
            bar.update(len(part))


def _maker(said: Published, chosen: Preset, device: str) -> Any:
    """From seeds to bytes of pictures, `(B, 3, H, W)`."""
    from diffsteer.guidance import Guidance
    from diffsteer.nets.edm2_sample import generate, pixels
    from diffsteer.text import parse

    stored = _found(said.models, chosen.main)
    guide = _found(said.models, chosen.guide).network() if chosen.guide else None
    nets = [stored.network(), *([guide] if guide else [])]
    main, *rest = [
        (net.half() if said.precision == "official-bit" else net.float()).to(device) for net in nets
    ]
    guidance = parse(chosen.guidance(), Guidance) if chosen.guidance() else None
    decode = _decoder(stored.about.get("encoder", {}), said.models, device)

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


def _decoder(encoder: dict[str, Any], models: Path, device: str) -> Any:
    """From latents to bytes of pictures; None where samples are pixels."""
    if encoder.get("kind") != "vae":
        return None
    import torch
    from diffusers import AutoencoderKL

    from diffsteer.nets.edm2_sample import latents

    folder = models / str(encoder.get("vae_name", "sd-vae-ft-mse")).rpartition("/")[2]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: put diffusers' AutoencoderKL folder there")
    vae = AutoencoderKL.from_pretrained(folder).to(device).eval()
    vae.requires_grad_(False)

    def decode(x: "Tensor") -> "Tensor":
        raw = latents(x, encoder["scale"], encoder["bias"])
        shown: Tensor = vae.decode(raw).sample.clamp(0, 1) * 255
        return shown.to(torch.uint8).cpu()

    return decode

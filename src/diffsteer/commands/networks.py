"""`diffsteer sample FOLDER`: pictures of EDM2 and ADM networks; importable without torch.

A folder is what `diffsteer convert` writes, and `diffsteer train` of EDM2.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff

from diffsteer.commands.numbered import Numbered, share
from diffsteer.commands.published import NOTHING_PUBLISHED, Decoder, Published
from diffsteer.recipe import Recipe, digest

if TYPE_CHECKING:
    from torch import Tensor

    from diffsteer.commands.numbered import Make
    from diffsteer.render import Rendering, Rows

EDM2, ADM = "diffsteer.EDM2", "diffsteer adm 1"


@dataclass(frozen=True)
class Options:
    """Of an ADM or IDDPM network, a folder of `diffsteer convert adm`.

    Attributes:
        respacing: Its timesteps as the official --timestep_respacing says them, "250" or "ddim25",
            instead of steps and spacing.
        classifier: Folder of a classifier of noisy pictures, for "Classifier(1.0)" and
            "Ancestral(classifier=1.0)".
        official_head_split: Read attention maps as the official code of SAG does.
    """

    respacing: str = ""
    classifier: str = ""
    official_head_split: Annotated[bool, FlagCreatePairsOff] = False


NO_OPTIONS = Options()


@dataclass(frozen=True)
class Images:
    """Makes the pictures of a network, as `Rendering` does those of a pipeline.

    Attributes:
        recipe: What is made.
        key: All that decides the pictures, in plain values.
        make: From seeds to pictures.
        rows: How many rows of which network were evaluated.
    """

    recipe: Recipe
    key: dict[str, Any]
    make: "Make"
    rows: "Rows"

    def __call__(self, seeds: Sequence[int]) -> "Tensor":
        """One picture a seed, uint8 `(N, 3, H, W)`, the same alone and in any batch."""
        return self.make(seeds)

    def decides(self, seed: int) -> dict[str, Any]:
        """All that decides the picture of one seed, as it is written into the picture."""
        return self.key


def format_of(model: str) -> str:
    """Format of a folder of ours, EDM2 or ADM; empty for anything else."""
    path = Path(model) / "config.json"
    if not model or not path.is_file():
        return ""
    try:
        said = json.loads(path.read_text("utf-8"))
    except ValueError:
        return ""
    found = said.get("format") if isinstance(said, dict) else ""
    return found if found in (EDM2, ADM) else ""


def sample(
    recipe: Recipe,
    said: Published,
    options: Options,
    seeds: Sequence[int],
    out: Path,
    batch: int,
    device: str,
) -> None:
    """Sample a network; a picture that is there already is not made again.

    Args:
        recipe: Model, guidance, guide and steps, and of ADM sampler and spacing.
        said: Class, subdirs and precision, and where the decoder of latents is.
        options: Of ADM.
        seeds: One picture each; one that is given no class draws one, after the noise.
        out: Folder for the pictures.
        batch: Pictures at a time.
        device: Where it runs; empty for a GPU if there is one.

    Raises:
        ValueError: an option is of other models, or pictures were made otherwise.
    """
    with _images(recipe, said, options, device) as images:
        pictures = Numbered(out, images.decides, subdirs=said.subdirs)
        mine = share(seeds)
        todo = pictures.missing(mine)
        pictures.fill(todo, images, batch)
    print(f"{out}: {len(mine) - len(todo)} of {len(mine)} pictures were there, {len(todo)} made")


@contextmanager
def images_of(recipe: Recipe, device: str = "") -> "Iterator[Rendering | Images]":
    """Make the pictures of a recipe, of a pipeline or of such a folder, until closed.

    Args:
        recipe: What to make. Of a folder each seed draws its class.
        device: Where; empty for a GPU if there is one.

    Raises:
        ValueError: the recipe says what cannot be, or what does nothing here.
    """
    from diffsteer.render import rendering

    folder = format_of(recipe.model)
    with (
        _images(recipe, NOTHING_PUBLISHED, NO_OPTIONS, device)
        if folder
        else rendering(recipe, device) as images
    ):
        yield images


@contextmanager
def _images(recipe: Recipe, said: Published, options: Options, device: str) -> "Iterator[Images]":
    from diffsteer.eval.features import device_of
    from diffsteer.render import Rows

    edm2, rows = format_of(recipe.model) == EDM2, Rows()
    _require_meant(recipe, said, options, edm2)
    where = device_of(device)
    key, make, nets = _edm2(recipe, said, where) if edm2 else _adm(recipe, said, options, where)
    with ExitStack() as stack:
        for name, net in nets.items():
            stack.enter_context(rows.counting(net, name))
        yield Images(recipe, key, make, rows)


def _require_meant(recipe: Recipe, said: Published, options: Options, edm2: bool) -> None:
    """Refuse what would do nothing."""
    used = {"model", "guidance", "guide", "steps", *(() if edm2 else ("sampler", "spacing"))}
    unused = [n for n, v in asdict(recipe).items() if n not in used and v != getattr(Recipe, n)]
    mine = ("label", "subdirs", *(("precision", "models") if edm2 else ()))
    unused += [n for n, v in asdict(said).items() if n not in mine and v != getattr(Published, n)]
    if edm2:
        unused += [n for n, v in asdict(options).items() if v != getattr(Options, n)]
    if options.respacing and (recipe.steps, recipe.spacing) != (Recipe.steps, Recipe.spacing):
        unused += ["steps and spacing beside respacing"]
    if unused:
        kind = "EDM2" if edm2 else "ADM"
        raise ValueError(f"{recipe.model} is an {kind} network, which takes no {unused[0]}")


def _edm2(
    recipe: Recipe, said: Published, device: str
) -> "tuple[dict[str, Any], Make, dict[str, Any]]":
    """What decides, what makes, and the networks whose rows count."""
    from diffsteer.guidance import Guidance
    from diffsteer.nets.edm2 import EDM2
    from diffsteer.nets.edm2_files import described
    from diffsteer.nets.edm2_sample import Loop, generate
    from diffsteer.text import parse

    precision = said.precision or "f32-clean"
    main = EDM2.load(recipe.model, precision, device)
    guide = EDM2.load(recipe.guide, precision, device) if recipe.guide else None
    folder = Path(recipe.model)
    decode = Decoder.found(described(folder), folder, said.models, device)
    guidance = parse(recipe.guidance, Guidance) if recipe.guidance else None
    loop = Loop(recipe.steps)
    fields = ("model", "guidance", "guide", "steps")
    shown = {name: getattr(recipe, name) for name in fields}
    shown |= {"class": said.label, "precision": precision, "sampler": "Heun()"}

    def make(seeds: Sequence[int]) -> "Tensor":
        return decode(generate(main, seeds, guidance, guide, loop, said.label))

    nets = {"rows": main.unet, **({"rows of the guide": guide.unet} if guide else {})}
    return {"recipe": shown, "weights": decode.weights(main, guide)}, make, nets


def _adm(
    recipe: Recipe, said: Published, options: Options, device: str
) -> "tuple[dict[str, Any], Make, dict[str, Any]]":
    """What decides, what makes, and the networks whose rows count."""
    import torch

    from diffsteer.checkpoints.adm import AS_PUBLISHED, load, load_classifier
    from diffsteer.eval.features import weights_hash
    from diffsteer.guidance import Guidance
    from diffsteer.sampler import NAMED, Sampler, sample
    from diffsteer.spacing import grid, respaced
    from diffsteer.text import parse

    main = load(recipe.model)
    guide = load(recipe.guide) if recipe.guide else None
    classifier = load_classifier(options.classifier) if options.classifier else None
    nets = {
        "main": main.net,
        **({"guide": guide.net} if guide else {}),
        **({"classifier": classifier} if classifier else {}),
    }
    counted = {"rows": main.net, **({"rows of the guide": guide.net} if guide else {})}
    weights = digest({name: weights_hash(net.to(device)) for name, net in nets.items()})
    recipe = replace(recipe, sampler=recipe.sampler or "Ancestral()")
    sampler = parse(recipe.sampler, Sampler, named=NAMED)
    guidance = parse(recipe.guidance, Guidance) if recipe.guidance else AS_PUBLISHED
    if options.respacing:
        levels = respaced(main.schedule, options.respacing)
    else:
        levels = grid(main.schedule, recipe.steps, recipe.spacing)
    fields = ("model", "guidance", "guide", "sampler", "steps", "spacing")
    shown = {name: getattr(recipe, name) for name in fields}
    shown |= {"class": said.label, **asdict(options)}
    flags = main.net.flags
    shape = (3, flags.image_size, flags.image_size)
    known = flags.num_classes if flags.class_cond else classifier and classifier.flags.num_classes

    def classes(seeds: Sequence[int]) -> "Tensor | None":
        if not known:
            return None if said.label is None else torch.tensor([said.label] * len(seeds))
        drawn = []
        for seed in seeds:
            draws = torch.Generator().manual_seed(seed)
            torch.randn(shape, generator=draws)  # the noise that sampling begins with
            drawn.append(torch.randint(known, (), generator=draws))
        found = torch.stack(drawn)
        return (found if said.label is None else torch.full_like(found, said.label)).to(device)

    @torch.no_grad()
    def make(seeds: Sequence[int]) -> "Tensor":
        denoise = main.denoiser(
            guidance, classes(seeds), classifier, guide, options.official_head_split
        )
        *_, last = sample(denoise, levels, shape, seeds, sampler, device)
        return ((last.x + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu()

    return {"recipe": shown, "weights": weights}, make, counted

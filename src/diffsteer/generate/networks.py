"""Pictures of folders of EDM2 and ADM networks; importable without torch.

A folder is what `diffsteer convert` writes, and `diffsteer train` of EDM2.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError
from diffsteer.generate.options import (
    NO_OPTIONS,
    OFFICIAL_NOISE,
    Noise,
    Options,
    changed,
    told,
)
from diffsteer.generate.published import NOTHING_PUBLISHED, Decoder, Published
from diffsteer.generate.recipe import Recipe
from diffsteer.io.hashing import digest
from diffsteer.io.strict import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from diffsteer.generate.pipelines import Rendering, Rows
    from diffsteer.generate.seed_images import Make

EDM2, ADM = "diffsteer.EDM2", "diffsteer adm 1"


@dataclass(frozen=True)
class Images:
    """Makes the images of a network, as `Rendering` does those of a pipeline.

    Attributes:
        recipe: What is made.
        key: All that decides the images, in plain values.
        make: From seeds to images.
        rows: How many rows of which network were evaluated.
    """

    recipe: Recipe
    key: dict[str, Any]
    make: "Make"
    rows: "Rows"

    def __call__(self, seeds: Sequence[int]) -> "Tensor":
        """One image a seed, uint8 `(N, 3, H, W)`, the same alone and in any batch."""
        return self.make(seeds)

    def decides(self, seed: int) -> dict[str, Any]:
        """All that decides the image of one seed, as it is written into the image."""
        return self.key


def format_of(model: str) -> str:
    """Format of a folder of ours, EDM2 or ADM; empty for anything else."""
    path = Path(model) / "config.json"
    if not model or not path.is_file():
        return ""
    try:
        said = read_json(path)
    except InputError:
        return ""
    found = said.get("format") if isinstance(said, dict) else ""
    return found if found in (EDM2, ADM) else ""


@contextmanager
def images_of(recipe: Recipe, device: str = "") -> "Iterator[Rendering | Images]":
    """Make the images of a recipe, of a pipeline or of such a folder, until closed.

    Args:
        recipe: What to make. Of a folder each seed draws its class.
        device: Where; empty for a GPU if there is one.

    Raises:
        ValueError: the recipe says what cannot be, or what does nothing here.
    """
    from diffsteer.generate.pipelines import rendering

    folder = format_of(recipe.model)
    with (
        opened(recipe, NOTHING_PUBLISHED, NO_OPTIONS, OFFICIAL_NOISE, device)
        if folder
        else rendering(recipe, device) as images
    ):
        yield images


@contextmanager
def opened(
    recipe: Recipe, said: Published, options: Options, noise: Noise, device: str
) -> "Iterator[Images]":
    """Make the images of such a folder until closed.

    Args:
        recipe: Model, guidance, guide and steps, and of ADM sampler and spacing.
        said: Class and precision, and where the decoder of latents is. A seed that is given no
            class draws one, after the noise.
        options: Of ADM.
        noise: Of EDM2.
        device: Where it runs; empty for a GPU if there is one.

    Raises:
        ValueError: an option is of other models, or does nothing.
    """
    from diffsteer.generate.pipelines import Rows
    from diffsteer.io.device import device_of

    edm2, rows = format_of(recipe.model) == EDM2, Rows()
    _require_meant(recipe, said, options, noise, edm2)
    where = device_of(device)
    weights, make, nets = (
        _edm2(recipe, said, noise, where) if edm2 else _adm(recipe, said, options, where)
    )
    options_said = told(said, options, noise)
    key = {"recipe": recipe.said, "options": options_said, "weights": weights}
    with ExitStack() as stack:
        for name, net in nets.items():
            stack.enter_context(rows.counting(net, name))
        yield Images(recipe, key, make, rows)


def _require_meant(
    recipe: Recipe, said: Published, options: Options, noise: Noise, edm2: bool
) -> None:
    """Refuse what would do nothing."""
    used = {"model", "guidance", "guide", "steps", *(() if edm2 else ("sampler", "spacing"))}
    unused = [n for n, v in asdict(recipe).items() if n not in used and v != getattr(Recipe, n)]
    mine = ("label", "subdirs", *(("precision", "models") if edm2 else ()))
    unused += [n for n, v in asdict(said).items() if n not in mine and v != getattr(Published, n)]
    unused += changed(options if edm2 else noise)
    if options.respacing and (recipe.steps, recipe.spacing) != (Recipe.steps, Recipe.spacing):
        unused += ["steps and spacing beside respacing"]
    if not noise.s_churn:
        idle = [n for n in ("s_min", "s_max", "s_noise") if n in changed(noise)]
        unused += [f"{n} without s_churn" for n in idle]
    if unused:
        kind = "EDM2" if edm2 else "ADM"
        raise InputError(f"{recipe.model} is an {kind} network, which takes no {unused[0]}")
    _require_used(recipe, options)
    if edm2 and said.models != Published.models and not _latent(recipe.model):
        raise InputError(
            f"{recipe.model} samples pixels: --models, which decodes latents, is not used"
        )


def _latent(model: str) -> bool:
    from diffsteer.models.edm2.config import read_config

    kind: object = read_config(Path(model)).get("encoder", {}).get("kind")
    return kind == "vae"


def _require_used(recipe: Recipe, options: Options) -> None:
    """Refuse a network or switch that no guidance and no sampler here asks for."""
    from diffsteer.core.parse import parse
    from diffsteer.core.sampler import NAMED, Sampler
    from diffsteer.guidance import SAG, Guidance

    parts = list(parse(recipe.guidance, Guidance).parts()) if recipe.guidance else []
    nets = {getattr(part, "net", "") for part in parts}
    sampler = parse(recipe.sampler, Sampler, named=NAMED) if recipe.sampler else None
    if recipe.guide and "guide" not in nets:
        raise InputError(
            f"guide={recipe.guide} does nothing with guidance={recipe.guidance!r}: give one that "
            'asks it, such as --guidance "Auto(1.7)", or no guide'
        )
    if options.official_head_split and not any(isinstance(part, SAG) for part in parts):
        raise InputError(
            f"official_head_split does nothing with guidance={recipe.guidance!r}: it is of SAG"
        )
    if options.classifier and "classifier" not in nets and not getattr(sampler, "classifier", 0):
        raise InputError(
            f"classifier={options.classifier} does nothing here: give --guidance "
            '"Classifier(1.0)" or --sampler "Ancestral(classifier=1.0)", or no classifier'
        )


def _edm2(
    recipe: Recipe, said: Published, noise: Noise, device: str
) -> "tuple[str, Make, dict[str, Any]]":
    """Hash of the weights, what makes, and the networks whose rows count."""
    from diffsteer.core.parse import parse
    from diffsteer.guidance import Guidance
    from diffsteer.models.edm2.config import read_config
    from diffsteer.models.edm2.generate import Loop, generate
    from diffsteer.models.edm2.model import EDM2

    precision = said.precision or "f32-clean"
    main = EDM2.load(recipe.model, precision, device)
    guide = EDM2.load(recipe.guide, precision, device) if recipe.guide else None
    folder = Path(recipe.model)
    decode = Decoder.found(read_config(folder), folder, said.models, device)
    guidance = parse(recipe.guidance, Guidance) if recipe.guidance else None
    loop = Loop(recipe.steps, **asdict(noise))

    def make(seeds: Sequence[int]) -> "Tensor":
        return decode(generate(main, seeds, guidance, guide, loop, said.label))

    nets = {"rows": main.unet, **({"rows of the guide": guide.unet} if guide else {})}
    return decode.weights(main, guide), make, nets


def _adm(
    recipe: Recipe, said: Published, options: Options, device: str
) -> "tuple[str, Make, dict[str, Any]]":
    """Hash of the weights, what makes, and the networks whose rows count."""
    import torch

    from diffsteer.core.parse import parse
    from diffsteer.core.sampler import NAMED, Sampler, sample
    from diffsteer.core.spacing import grid, respaced
    from diffsteer.guidance import Guidance
    from diffsteer.io.hashing import weights_hash
    from diffsteer.models.adm.checkpoint import AS_PUBLISHED, load, load_classifier

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
    sampler = parse(recipe.sampler or "Ancestral()", Sampler, named=NAMED)
    guidance = parse(recipe.guidance, Guidance) if recipe.guidance else AS_PUBLISHED
    if options.respacing:
        levels = respaced(main.schedule, options.respacing)
    else:
        levels = grid(main.schedule, recipe.steps, recipe.spacing)
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

    return weights, make, counted

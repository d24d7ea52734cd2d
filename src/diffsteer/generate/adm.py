"""Images of ADM and IDDPM networks, in folders of `diffsteer convert adm`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.level import Level
from diffsteer.core.parse import parse
from diffsteer.core.sampler import Sampler, Step, sample
from diffsteer.core.schedule import Discrete
from diffsteer.core.spacing import grid, respaced
from diffsteer.generate.base import Generator, require_finite
from diffsteer.generate.options import ADMOptions, class_number
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import guidance_of
from diffsteer.io.hashing import digest, weights_hash
from diffsteer.io.model_folder import read_config
from diffsteer.models.adm.checkpoint import AS_PUBLISHED, load, load_classifier
from diffsteer.models.adm.files import FORMAT


class ADMGenerator(Generator):
    """Makes images with any sampler of ours; opened by `open_generator`."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        options = recipe.options or ADMOptions()
        assert isinstance(options, ADMOptions)
        self._options, self._device = options, device
        self._sampler = parse(recipe.sampler or "Ancestral()", Sampler)
        self._guidance = guidance_of(recipe) or AS_PUBLISHED
        self.main = load(recipe.model)
        self.guide = load(recipe.guide) if recipe.guide else None
        self._classifier = load_classifier(options.classifier) if options.classifier else None
        guide = self.guide and self.guide.net
        nets = {"main": self.main.net, "guide": guide, "classifier": self._classifier}
        hashes = {name: weights_hash(net.to(device)) for name, net in nets.items() if net}
        super().__init__(recipe, digest(hashes))
        size = self.main.net.flags.image_size
        self._shape = (3, size, size)
        self._levels = _levels(self.main.schedule, recipe, options)
        self._label = None if options.label is None else self._number(options.label)

    def _number(self, label: int | str) -> int:
        """Number of a class of the network, or else of the classifier."""
        own = self.main.net.flags.class_cond or not self._classifier
        folder = Path(self.recipe.model if own else self._options.classifier)
        return class_number(label, read_config(folder, FORMAT).get("classes"), folder)

    @override
    def rehearse(self) -> None:
        next(self._steps([0]))

    @override
    def sampled(self, seeds: Sequence[int]) -> Tensor:
        *_, last = self._steps(seeds)
        images = ((last.x + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu()
        return require_finite(seeds, images, last.x)

    @torch.no_grad()
    def _steps(self, seeds: Sequence[int]) -> Iterator[Step]:
        denoise = self.main.denoiser(
            self._guidance,
            self._classes(seeds),
            self._classifier,
            self.guide,
            self._options.official_head_split,
        )
        yield from sample(denoise, self._levels, self._shape, seeds, self._sampler, self._device)

    def _classes(self, seeds: Sequence[int]) -> Tensor | None:
        """Class of each seed, drawn after the noise that sampling begins with."""
        flags, label = self.main.net.flags, self._label
        count = flags.num_classes if flags.class_cond else 0
        count = count or (self._classifier.flags.num_classes if self._classifier else 0)
        if label is not None:
            return torch.tensor([label] * len(seeds)).to(self._device if count else "cpu")
        if not count:
            return None
        classes = []
        for seed in seeds:
            draws = torch.Generator().manual_seed(seed)
            torch.randn(self._shape, generator=draws)
            classes.append(torch.randint(count, (), generator=draws))
        return torch.stack(classes).to(self._device)


@contextmanager
def open_adm(recipe: Recipe, device: str) -> Iterator[ADMGenerator]:
    """Load an ADM network, its guide and its classifier, and make images until closed."""
    generator = ADMGenerator(recipe, device)
    with generator.counting([generator.main.net], generator.guide and generator.guide.net):
        yield generator


def _levels(schedule: Discrete, recipe: Recipe, options: ADMOptions) -> tuple[Level, ...]:
    if options.respacing:
        return respaced(schedule, options.respacing)
    return grid(schedule, recipe.steps, recipe.spacing)

"""The interface of what makes images from seeds, and its count of network evaluations."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.noise import checked_seeds
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.hooks import plain_forward, replaced
from diffsteer.io.seeds import format_seeds

SAMPLE = ("sample", "hidden_states")
"""Names of the noisy sample among the arguments of networks."""


class NotFinite(InputError):
    """Samples of some seeds hold NaN or infinity, which as bytes would be black images.

    Attributes:
        seeds: Those seeds.
        images: Of the other seeds, uint8 `(3, H, W)`.
    """

    def __init__(self, seeds: Sequence[int], images: Mapping[int, Tensor]) -> None:
        super().__init__(
            f"samples of seeds {format_seeds(seeds)} are not finite and are left out: lower the "
            "weight of the guidance or the strength of the refiner, or take float32; where all "
            "seeds fail, look at the weights of the model"
        )
        self.seeds, self.images = tuple(seeds), dict(images)


def require_finite(seeds: Sequence[int], images: Tensor, *stages: Tensor) -> Tensor:
    """Return images where all that they were made from is finite.

    Args:
        seeds: Of the images.
        images: One a seed, `(N, ...)`.
        stages: Samples, decoded images: `(k N, ...)` with row i of seed i mod N; of another number
            of rows, one that is not finite refuses all.

    Raises:
        NotFinite: a stage is not; it holds the images of the other seeds.
    """
    n = len(seeds)
    finite = torch.ones(n, dtype=torch.bool)
    for stage in stages:
        rows = stage.detach().flatten(1).isfinite().all(dim=1).cpu()
        finite &= rows.view(-1, n).all(dim=0) if len(rows) % n == 0 else rows.all()
    if finite.all():
        return images
    good = {seed: images[i] for i, seed in enumerate(seeds) if finite[i]}
    raise NotFinite([seed for seed in seeds if seed not in good], good)


class NFECounter:
    """Number of network evaluations; a forward pass of a batch of n counts n."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self) -> dict[str, float]:
        """Evaluations since the last call: "rows", and "rows of the guide" where there is one."""
        counts, self._counts = self._counts, dict.fromkeys(self._counts, 0)
        return {name: float(n) for name, n in counts.items()}

    @contextmanager
    def counting(self, module: Any, name: str) -> Iterator[None]:
        """Count the evaluations of a network, below any steering, until closed."""
        forward = plain_forward(module)
        self._counts.setdefault(name, 0)

        def counted(*args: Any, **kwargs: Any) -> Any:
            named = (kwargs[n] for n in (*SAMPLE, *kwargs) if n in kwargs)
            self._counts[name] += len(args[0] if args else next(named))
            return forward(*args, **kwargs)

        with replaced(module, "forward", counted):
            yield


class Generator(ABC):
    """Makes the images of a recipe; `open_generator` opens one. Define `sampled`.

    Attributes:
        recipe: Of the images.
        weights: Hash of all weights as they were loaded, and of a pipeline's scheduler config:
            another checkpoint under the same name, or another precision, makes other images.
        nfe: Network evaluations since it was last called, by network.
        closed: Whether it was closed, after which its pipeline has no guidance any more.
    """

    def __init__(self, recipe: Recipe, weights: str) -> None:
        self.recipe, self.weights = recipe, weights
        self.nfe = NFECounter()
        self.closed = False

    def __call__(self, seeds: Iterable[int]) -> Tensor:
        """One sample a seed, the same alone and in any batch but for the network's rounding.

        Returns:
            Images uint8 `(N, 3, H, W)`; of pipelines that make them videos uint8
            `(N, F, 3, H, W)`, sounds float32 `(N, C, T)`.

        Raises:
            InputError: a seed is no whole number of 64 bits, or the generator is closed.
            NotFinite: the sample of a seed is not finite.
        """
        if self.closed:
            raise InputError(
                "this generator is closed: call it inside of `with open_generator(...) as generate`"
            )
        return self.sampled(checked_seeds(seeds))

    @abstractmethod
    def sampled(self, seeds: Sequence[int]) -> Tensor:
        """Return the samples of seeds that were checked, as `__call__` does."""

    @abstractmethod
    def rehearse(self) -> None:
        """Make the first step of an image: all that the recipe asks of the networks is asked."""

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the images, as JSON holds it."""
        options = self.recipe.options.to_dict() if self.recipe.options else {}
        return {"recipe": self.recipe.to_dict(), "options": options, "weights": self.weights}

    def provenance(self, seed: int) -> dict[str, Any]:
        """All that decides the image of one seed, as JSON holds it."""
        return self.key

    @property
    def media(self) -> str:
        """What is made: "image", "video" or "audio"."""
        return "image"

    @property
    def rate(self) -> int:
        """Frames a second of a video, samples a second of a sound."""
        return 1

    def sound(self, seed: int) -> tuple[Tensor, int] | None:
        """Take the sound of a video made last, float32 `(C, T)`, and its samples a second."""
        return None

    @contextmanager
    def counting(self, main: Sequence[Any], guide: Any = None) -> Iterator[Self]:
        """Count the evaluations of the networks until closed."""
        with ExitStack() as stack:
            for network in main:
                stack.enter_context(self.nfe.counting(network, "rows"))
            if guide is not None:
                stack.enter_context(self.nfe.counting(guide, "rows of the guide"))
            yield self

    def metadata(self, seed: int) -> dict[str, Any]:
        """Provenance as it is written into the image, with the hash of the whole recipe."""
        whole = replace(self.recipe, options=None)  # options stand beside it
        return {**self.provenance(seed), "made_by": whole.hash}

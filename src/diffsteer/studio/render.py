"""Samplings that show each step and end at once when they are cancelled."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from diffsteer.generate.from_noise import predictions
from diffsteer.generate.pipelines import PipelineGenerator
from diffsteer.hf.time_arguments import Predicted

if TYPE_CHECKING:
    from PIL.Image import Image

STRIP, PAUSE = 12, 0.3
"""Most images of a strip, and seconds between two previews."""


class Cancelled(Exception):
    """A sampling was cancelled."""


@dataclass(frozen=True, eq=False)
class Preview:
    """What a step predicts.

    Attributes:
        step: Number of the step, from 1.
        time: Timestep of the scheduler.
        image: The predicted x0; None where latents cannot be decoded apart from their pipeline.
    """

    step: int
    time: float
    image: "Image | None"


@dataclass(frozen=True, eq=False)
class Sampled:
    """An image, and how it came about.

    Attributes:
        seed: Its seed.
        image: The image.
        pixels: The same as uint8, `(3, H, W)`.
        steps: Timestep and predicted x0 of each step, float32 on the CPU.
        seconds: That it took.
        nfe: Network evaluations, by network.
    """

    seed: int
    image: "Image"
    pixels: Tensor
    steps: tuple[tuple[float, Tensor], ...]
    seconds: float
    nfe: dict[str, float]


Report = Callable[[Preview], None]


def sampled(
    generator: PipelineGenerator, seed: int, cancelled: threading.Event, report: Report
) -> Sampled:
    """Sample one seed.

    Args:
        generator: Of the recipe.
        seed: Of the image.
        cancelled: Ends the sampling once it is set, before the next layer of any network.
        report: Called with a preview in a step, at most every PAUSE seconds.

    Raises:
        Cancelled: it was.
        InputError: as the generator.
    """
    watch = _Watch(generator.pipe, report, seed)
    generator.nfe()
    start = time.monotonic()
    with cancellable(cancelled), predictions(generator.pipe.scheduler, watch.note):
        pixels = generator([seed])[0]
    seconds = time.monotonic() - start
    return Sampled(seed, image_of(pixels), pixels, tuple(watch.steps), seconds, generator.nfe())


@torch.no_grad()
def strip(pipe: Any, steps: Sequence[tuple[float, Tensor]]) -> list[Preview]:
    """x0 of up to STRIP steps, evenly chosen, the last among them."""
    most = min(len(steps), STRIP)
    places = [i * (len(steps) - 1) / (most - 1) for i in range(most)] if most > 1 else [0]
    chosen = sorted({round(place) for place in places})
    return [Preview(i + 1, steps[i][0], decoded(pipe, steps[i][1])) for i in chosen]


@contextmanager
def cancellable(event: threading.Event) -> Iterator[None]:
    """Raise Cancelled before the next layer that this thread evaluates once an event is set."""
    thread = threading.get_ident()

    def check(*_: Any) -> None:
        if event.is_set() and threading.get_ident() == thread:
            raise Cancelled

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def image_of(pixels: Tensor) -> "Image":
    """Image of uint8 pixels `(3, H, W)`."""
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def decoded(pipe: Any, x0: Tensor) -> "Image | None":
    """Image of a predicted sample `(1, C, H, W)`; None where only its pipeline can decode it."""
    if x0.ndim != 4:
        return None
    image, vae = x0, getattr(pipe, "vae", None)
    if vae is not None:
        config = vae.config
        if config.get("latent_channels") != x0.shape[1] or "scaling_factor" not in config:
            return None
        latents = x0 / config.scaling_factor + (config.get("shift_factor") or 0.0)
        latents = latents.to(vae.device, vae.dtype)
        image = type(vae).decode(vae, latents, return_dict=False)[0]  # below whoever watches it
    if image.shape[1] != 3 or not image.isfinite().all():
        return None
    return image_of(((image[0].float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu())


class _Watch:
    """Keeps x0 of each step of a sampling, and reports some.

    Attributes:
        steps: Timestep and x0 so far.
    """

    def __init__(self, pipe: Any, report: Report, seed: int) -> None:
        self._pipe, self._report = pipe, report
        self.steps: list[tuple[float, Tensor]] = []
        self._last, self._cost = -PAUSE, 0.0

    def note(self, now: Predicted) -> None:
        """Keep a step, which is given guided outputs."""
        time_, x0 = float(now.timestep), now.x0[:1]
        self.steps.append((time_, x0.detach().to("cpu", torch.float32)))
        start = time.monotonic()
        if start - self._last < max(PAUSE, 4 * self._cost):
            return  # previews take a fifth of the time at most
        self._report(Preview(len(self.steps), time_, decoded(self._pipe, x0)))
        self._last = time.monotonic()
        self._cost = self._last - start

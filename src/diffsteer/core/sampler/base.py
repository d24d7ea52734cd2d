r"""Samplers: from noise to data along a grid of levels.

A sampler is one pure function of levels, a denoiser and the past. All of them solve

    d(x / alpha) = eps d(sigma / alpha)     or, the same,     d(x / sigma) = x0 d(alpha / sigma),

which holds for every schedule. The second form is finite where alpha = 0 and the first where
sigma = 0, which is all that zero terminal SNR asks for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import check_fields, offers
from diffsteer.core.level import Level, lincomb, upcast
from diffsteer.core.noise import Draw, Noise

Denoise = Callable[[Tensor, Level], Tensor]
"""A denoiser: the expected x0 of `x`, `(B, *D)`, at a level."""


class Denoised(NamedTuple):
    """Prediction of a denoiser; a plain tensor means `Denoised(x0)`.

    Attributes:
        x0: Expected data, `(B, *D)`.
        variance: Learned variance of the step, `(B, *D)`, or None: in logarithms from -1, the
            posterior's, to 1, that of the noise which the forward process adds.
        class_gradient: Evaluates the gradient of log p(class | x), `(B, *D)`; called only by
            samplers that use it.
    """

    x0: Tensor
    variance: Tensor | None = None
    class_gradient: Callable[[], Tensor] | None = None


AnyDenoise = Callable[[Tensor, Level], Tensor | Denoised]


@runtime_checkable
class Stepped(Protocol):
    """A denoiser that is told of the sampling that it serves, such as a guided one."""

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return the expected x0 of `x`, `(B, *D)`."""

    def for_seeds(self, seeds: Sequence[int]) -> "Stepped":
        """Return the denoiser that draws by these seeds, one for each sample."""

    def for_levels(self, levels: Sequence[Level]) -> "Stepped":
        """Return the denoiser of one sampling over these levels, with a memory of its own."""

    def at_step(self, step: int) -> AnyDenoise:
        """Return the denoiser of a step, 0 for the first, for all evaluations of that step."""


Past = Sequence[tuple[Level, Tensor]]
"""The levels so far and what was predicted there, the latest at the end."""


class Step(NamedTuple):
    """One step of a sampling, as it happens.

    Attributes:
        done: Steps taken so far, 1 for the first.
        level: The level of `x`, after the step; CLEAN at the end.
        x: The sample, `(B, *D)`, float32 or wider.
        x0: What the network made of the sample before the step: the preview, `(B, *D)`.
    """

    done: int
    level: Level
    x: Tensor
    x0: Tensor


class Sampler(ABC):
    """A way to step from one level to the next. Define `step`.

    Attributes:
        evaluations: Of the network in one step, at most.
        named: Samplers that are known by a name of their own, such as DDPM.
    """

    evaluations: int = 1
    named: ClassVar[dict[str, "Sampler"]] = {}
    example: ClassVar[str] = "UniPC() or DDIM(eta=0.5)"

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        """Return the sample at `nxt` and the x0 predicted at `now`, both `(B, *D)`.

        Args:
            x: Sample at `now`, `(B, *D)`.
            now: A level with sigma > 0.
            nxt: A level with less noise.
            denoise: The network.
            past: Earlier levels of this sampling and their x0, the last three at most.
            noise: Source of fresh noise.
        """

    def __call__(
        self,
        x: Tensor,
        levels: Sequence[Level],
        denoise: AnyDenoise,
        noise: Draw = torch.randn_like,
    ) -> Iterator[Tensor]:
        """Yield the sample after each step from `x` at `levels[0]`; stop iterating to cancel."""
        for step in trace(self, x, levels, denoise, noise):
            yield step.x


def trace(
    sampler: Sampler,
    x: Tensor,
    levels: Sequence[Level],
    denoise: AnyDenoise,
    noise: Draw = torch.randn_like,
) -> Iterator[Step]:
    """Yield every step of a sampling, for previews and progress; stop iterating to cancel.

    The state stays float32 (or float64): a network in half precision casts what it is given.
    Nothing here waits for the device. Gradients flow: sample under `torch.no_grad()` where you want
    none.

    Args:
        sampler: How to step.
        x: Sample at `levels[0]`, `(B, *D)`.
        levels: At least two, noise decreasing, as `grid` gives them.
        denoise: The network.
        noise: Source of fresh noise; by default torch's global generators.
    """
    _check(levels)
    if not offers(sampler, "step"):
        raise InputError(f"{brief(sampler)} is no sampler: give one, such as UniPC() or DDPM")
    x = upcast(x)

    stepped = denoise.for_levels(levels) if isinstance(denoise, Stepped) else None
    past: list[tuple[Level, Tensor]] = []
    for done, (now, nxt) in enumerate(pairwise(levels), start=1):
        checked = _Checked(denoise if stepped is None else stepped.at_step(done - 1))
        x, x0 = sampler.step(x, now, nxt, checked, past, noise)
        past = [*past[-2:], (now, x0)]
        yield Step(done, nxt, x, x0)


class _Checked:
    """A denoiser as a step calls it: its x0, in the shape and dtype of the sample."""

    def __init__(self, denoise: AnyDenoise) -> None:
        self.denoise = denoise

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        output = self.denoise(x, level)
        return like_sample(output.x0 if isinstance(output, Denoised) else output, x)


def denoised(denoise: AnyDenoise, x: Tensor, level: Level) -> Denoised:
    """Evaluate a denoiser with all that it predicts, in the shape and dtype of `x`."""
    output = (denoise.denoise if isinstance(denoise, _Checked) else denoise)(x, level)
    x0, variance, gradient = output if isinstance(output, Denoised) else Denoised(output)
    return Denoised(
        like_sample(x0, x), None if variance is None else like_sample(variance, x), gradient
    )


def like_sample(output: Tensor, x: Tensor) -> Tensor:
    """Cast an output to the dtype of the sample `x`; refuse another shape."""
    if not isinstance(output, Tensor):
        raise InputError(
            f"the denoiser returned a {type(output).__name__}: return x0 as a tensor, or `Denoised`"
        )
    if output.shape != x.shape:
        raise InputError(f"the denoiser returned shape {tuple(output.shape)} for {tuple(x.shape)}")
    return output.to(x.dtype)


def sample(
    denoise: AnyDenoise,
    levels: Sequence[Level],
    shape: Sequence[int],
    seeds: Sequence[int],
    sampler: Sampler,
    device: torch.device | str = "cpu",
) -> Iterator[Step]:
    """Sample from noise, one seed for each sample; yields every step.

    Args:
        denoise: The network.
        levels: From `grid`.
        shape: Of one sample, without the batch.
        seeds: One for each sample. Sample i depends on `seeds[i]` alone.
        sampler: How to step.
        device: Where the samples live.
    """
    _check(levels)
    noise = Noise(seeds)
    if isinstance(denoise, Stepped):
        denoise = denoise.for_seeds(noise.seeds)
    start = noise(torch.empty(len(noise.seeds), *shape, device=device))
    return trace(sampler, levels[0].sigma * start, levels, denoise, noise)


def _check(levels: Sequence[Level]) -> None:
    if len(levels) < 2:
        raise InputError(f"{len(levels)} levels make no step: grid(schedule, n) gives n + 1")
    alpha, sigma = (torch.stack(list(c)) for c in zip(*(lv[1:] for lv in levels), strict=True))
    if alpha.ndim != 1:
        raise InputError("levels of a sampling are for all rows alike: give 0-dim numbers")
    angle = torch.atan2(sigma, alpha)
    ok = (alpha >= 0) & (sigma >= 0) & alpha.isfinite() & sigma.isfinite()
    ok[1:] &= angle.diff() < 0
    if not ok.all():
        i = int((~ok).nonzero()[0])
        before = f" after alpha={alpha[i - 1]:g}, sigma={sigma[i - 1]:g}" if i else ""
        raise InputError(
            f"level {i} has alpha={alpha[i]:g}, sigma={sigma[i]:g}{before}: alpha and sigma must "
            "be finite and >= 0, and levels must lose noise at every step"
        )


def first_order(x: Tensor, x0: Tensor, now: Level, nxt: Level) -> Tensor:
    """Exact step where x0 is constant: DDIM, and Euler for EDM and for flow; finite at zero SNR."""
    keep = nxt.sigma / now.sigma
    return lincomb(keep, x, nxt.alpha - keep * now.alpha, x0)

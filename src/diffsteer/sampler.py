r"""Samplers: from noise to data along a grid of levels.

A sampler is one pure function of levels, a denoiser and the past. All of them solve

    d(x / alpha) = eps d(sigma / alpha)     or, the same,     d(x / sigma) = x0 d(alpha / sigma),

which holds for every schedule. The second form is finite where alpha = 0 and the first where
sigma = 0, which is all that zero terminal SNR asks for.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.level import Level, weighted, wide
from diffsteer.noise import Draw, Noise
from diffsteer.schedule import EDM, Schedule

Denoise = Callable[[Tensor, Level], Tensor]
"""A denoiser: the expected x0 of `x`, `(B, *D)`, at a level."""

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
    """

    evaluations: int = 1

    @abstractmethod
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        """Return the sample at `nxt` and the x0 predicted at `now`.

        Args:
            x: Sample at `now`, `(B, *D)`.
            now: A level with sigma > 0.
            nxt: A level with less noise.
            denoise: The network.
            past: Earlier levels of this sampling and their x0, the last three at most.
            noise: Source of fresh noise.
        """

    def __call__(
        self, x: Tensor, levels: Sequence[Level], denoise: Denoise, noise: Draw = torch.randn_like
    ) -> Iterator[Tensor]:
        """Yield the sample after each step from `x` at `levels[0]`; stop iterating to cancel."""
        for step in trace(self, x, levels, denoise, noise):
            yield step.x


def trace(
    sampler: Sampler,
    x: Tensor,
    levels: Sequence[Level],
    denoise: Denoise,
    noise: Draw = torch.randn_like,
) -> Iterator[Step]:
    """Yield every step of a sampling, for previews and progress; stop iterating to cancel.

    The state stays float32 (or float64) whatever the network computes in. Nothing here waits for
    the device.

    Args:
        sampler: How to step.
        x: Sample at `levels[0]`, `(B, *D)`.
        levels: At least two, noise decreasing, as `grid` gives them.
        denoise: The network.
        noise: Source of fresh noise; by default torch's global generators.

    Raises:
        ValueError: the levels do not lose noise, or the denoiser returns another shape.
    """
    _check(levels)
    x = wide(x)

    def denoised(x: Tensor, level: Level) -> Tensor:
        x0 = denoise(x, level)
        if x0.shape != x.shape:
            raise ValueError(f"the denoiser returned shape {tuple(x0.shape)} for {tuple(x.shape)}")
        return x0.to(x.dtype)

    past: list[tuple[Level, Tensor]] = []
    for done, (now, nxt) in enumerate(pairwise(levels), start=1):
        x, x0 = sampler.step(x, now, nxt, denoised, past, noise)
        past = [*past[-2:], (now, x0)]
        yield Step(done, nxt, x, x0)


def sample(
    denoise: Denoise,
    levels: Sequence[Level],
    shape: Sequence[int],
    seeds: Sequence[int],
    sampler: Sampler | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Step]:
    """Sample from noise, one seed for each sample; yields every step.

    Args:
        denoise: The network.
        levels: From `grid`.
        shape: Of one sample, without the batch.
        seeds: One for each sample. Sample i depends on `seeds[i]` alone.
        sampler: DDIM where None.
        device: Where the samples live.

    Raises:
        ValueError: as `trace`.
    """
    noise = Noise(seeds)
    start = noise(torch.empty(len(noise.seeds), *shape, device=device))
    return trace(sampler or DDIM(), levels[0].sigma * start, levels, denoise, noise)


def _check(levels: Sequence[Level]) -> None:
    if len(levels) < 2:
        raise ValueError(f"{len(levels)} levels make no step: grid(schedule, n) gives n + 1")
    alpha, sigma = (torch.stack(list(c)) for c in zip(*(lv[1:] for lv in levels), strict=True))
    if not (torch.cat([alpha, sigma]) >= 0).all():
        raise ValueError(
            f"levels need alpha, sigma >= 0, not alpha={alpha.tolist()}, sigma={sigma.tolist()}"
        )
    angle = torch.atan2(sigma, alpha)
    if not (angle.diff(dim=0) < 0).all():
        raise ValueError(
            f"levels must lose noise at every step, not sigma/alpha={angle.tan().tolist()}"
        )


def first_order(x: Tensor, x0: Tensor, now: Level, nxt: Level) -> Tensor:
    """Exact step where x0 is constant: DDIM, and Euler for EDM and for flow; finite at zero SNR."""
    keep = nxt.sigma / now.sigma
    return weighted(keep, x, nxt.alpha - keep * now.alpha, x0)


@dataclass(frozen=True)
class DDIM(Sampler):
    """First order, one evaluation a step, with as much fresh noise as wanted.

    Args:
        eta: Share of fresh noise: 0 is deterministic (Euler in sigma / alpha), 1 is ancestral
            (DDPM; Euler ancestral in sigma / alpha).

    Source: Song et al. 2021, eq. 12 and 16, https://arxiv.org/abs/2010.02502.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(
                f"eta={self.eta} is no share of fresh noise: give 0 (none) to 1 (ancestral)"
            )

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, now)
        if self.eta == 0 or nxt.sigma == 0:
            return first_order(x, x0, now, nxt), x0
        # Share of the variance at nxt that is drawn afresh: 1 at zero SNR, never negative.
        fresh = self.eta**2 * (1 - (nxt.ratio / now.ratio) ** 2)
        keep = nxt.sigma / now.sigma * (1 - fresh).sqrt()
        x = weighted(keep, x, nxt.alpha - keep * now.alpha, x0)
        return torch.add(x, noise(x), alpha=(nxt.sigma * fresh.sqrt()).item()), x0


Euler = DDIM()
"""Deterministic first order in sigma / alpha (Karras et al. 2022), which is DDIM."""

DDPM = DDIM(eta=1.0)
"""Ancestral sampling (Ho et al. 2020) with the posterior variance."""

EulerAncestral = DDPM
"""Ancestral sampling as written in sigma / alpha by k-diffusion: the same steps as DDPM."""


@dataclass(frozen=True)
class Heun(Sampler):
    """Trapezoidal rule in sigma / alpha with optional churn: the sampler of EDM, second order.

    Two evaluations a step, one where the step ends in data. At alpha = 0 the trapezoid is taken in
    alpha / sigma, which is finite there.

    Args:
        gamma: Share by which sigma / alpha is raised with fresh noise before a step, in
            [0, sqrt(2) - 1]: EDM's min(S_churn / N, sqrt(2) - 1). 0 is deterministic.
        lo: Churn where lo <= sigma / alpha <= hi (S_min).
        hi: S_max.
        swell: Standard deviation of the fresh noise (S_noise).
        schedule: The network's; tells the time of a raised level.

    Source: Karras et al. 2022, algorithm 2, https://arxiv.org/abs/2206.00364.
    """

    gamma: float = 0.0
    lo: float = 0.0
    hi: float = math.inf
    swell: float = 1.0
    schedule: Schedule = field(default_factory=EDM)
    evaluations = 2

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= math.sqrt(2) - 1:
            raise ValueError(
                f"gamma={self.gamma} must lie in [0, 0.4142]: it is the churn of one step, "
                "min(S_churn / steps, sqrt(2) - 1)"
            )

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        if self.gamma > 0 and now.alpha > 0 and self.lo <= now.ratio <= self.hi:
            x, now = self._raised(x, now, noise)
        x0 = denoise(x, now)
        y = first_order(x, x0, now, nxt)
        if nxt.sigma == 0:
            return y, x0
        y0 = denoise(y, nxt)
        if now.alpha == 0:
            return first_order(x, (x0 + y0) / 2, now, nxt), x0
        eps = ((x - now.alpha * x0) / now.sigma + (y - nxt.alpha * y0) / nxt.sigma) / 2
        return nxt.alpha / now.alpha * (x - now.sigma * eps) + nxt.sigma * eps, x0

    def _raised(self, x: Tensor, now: Level, noise: Draw) -> tuple[Tensor, Level]:
        """Add noise to reach a level with (1 + gamma) times the sigma / alpha."""
        if not torch.isclose(self._on(now.ratio).alpha, now.alpha):
            raise ValueError(
                f"{self.schedule!r} holds no level alpha={now.alpha:g}, sigma={now.sigma:g}: "
                "churn needs the schedule of the levels, Heun(schedule=...)"
            )
        up = self._on(now.ratio * (1 + self.gamma))
        fresh = now.alpha * (up.ratio**2 - now.ratio**2).sqrt() * self.swell
        return up.alpha / now.alpha * (x + fresh * noise(x)), up

    def _on(self, ratio: Tensor) -> Level:
        try:
            return self.schedule.at(self.schedule.time(ratio))
        except ValueError as error:
            raise ValueError(
                f"churn asks for a level beyond the schedule; lower `hi`: {error}"
            ) from error


@dataclass(frozen=True)
class DPMpp2M(Sampler):
    """DPM-Solver++(2M): second order for one evaluation a step.

    First order on the first step and on the last, where log-SNR is infinite. A start at zero SNR
    needs no special case: its weight in the next step, 1 / (2 r), is 0.

    Source: Lu et al. 2022, algorithm 2, https://arxiv.org/abs/2211.01095.
    """

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, now)
        return first_order(x, _ahead(x0, now, nxt, past), now, nxt), x0


def _ahead(x0: Tensor, now: Level, nxt: Level, past: Past) -> Tensor:
    """Effective x0 of a step if x0 goes on in log-SNR as it went in the last one."""
    if not past or nxt.sigma == 0:
        return x0
    before, x0_before = past[-1]
    r = (now.lam - before.lam) / (nxt.lam - now.lam)
    return torch.lerp(x0_before, x0, (1 + 0.5 / r).item())


@dataclass(frozen=True)
class UniPC(Sampler):
    """Unified predictor-corrector of order 2 (bh2): one evaluation a step, third-order accurate.

    Every evaluation serves twice: it corrects the step that led to its level, then predicts the
    next. The corrector needs no earlier sample, since it differs from the predictor only by a
    multiple of the x0's.

    Source: Zhao et al. 2023, algorithms 5 and 6, https://arxiv.org/abs/2302.04867.
    """

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, now)
        if past:
            x = _corrected(x, x0, now, past)
        return first_order(x, _ahead(x0, now, nxt, past), now, nxt), x0


def _corrected(x: Tensor, x0: Tensor, now: Level, past: Past) -> Tensor:
    """Redo the step that led to `x`, now that the x0 at its end is known.

    The published 2 x 2 system for the weights, solved by hand in terms of 1 / r, which is 0 where
    the earlier level has zero SNR.
    """
    before, x0_before = past[-1]
    gain = (now.alpha - now.sigma / before.sigma * before.alpha).item()
    if len(past) == 1:
        return torch.add(x, x0 - x0_before, alpha=gain / 2)
    earlier, x0_earlier = past[-2]
    h = (now.lam - before.lam).item()
    inv = h / (earlier.lam - before.lam).item()
    b1 = -1 / math.expm1(-h) - 1 / h
    b2 = -1 / math.expm1(-h) - 2 * b1 / h
    rho = (b2 - b1) * inv / (1 - inv)
    x = torch.add(x, x0 - x0_before, alpha=gain * (b1 - rho))
    return torch.add(x, x0_earlier - x0_before, alpha=gain * (rho - 0.5) * inv)


NAMED: dict[str, Sampler] = {"Euler": Euler, "DDPM": DDPM, "EulerAncestral": EulerAncestral}
"""Samplers that are known by a name of their own."""

"""Heun's method in r = sigma / alpha, the sampler of EDM: d(x / alpha) = eps dr.

    x' / alpha' = x / alpha + (r' - r) (eps(x, r) + eps(y', r')) / 2,    y' the Euler step

With churn, r is first raised to (1 + gamma) r by fresh noise of standard deviation S_noise.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite, NotNegative, Rule, renamed_fields
from diffsteer.core.level import Level
from diffsteer.core.noise import Draw
from diffsteer.core.sampler.base import Denoise, Past, Sampler, first_order
from diffsteer.core.schedule import EDM, Schedule

CHURN = Rule(
    "in [0, 0.4142], the churn of one step, min(S_churn / steps, sqrt(2) - 1)",
    lambda gamma: 0 <= gamma <= math.sqrt(2) - 1,
)


@renamed_fields(lo="s_min", hi="s_max", swell="s_noise")
@dataclass(frozen=True)
class Heun(Sampler):
    """Trapezoidal rule in sigma / alpha with optional churn: the sampler of EDM, second order.

    Two evaluations a step, one where the step ends in data. At alpha = 0 the trapezoid is taken in
    alpha / sigma, which is finite there.

    Args:
        gamma: Share by which sigma / alpha is raised with fresh noise before a step, in
            [0, sqrt(2) - 1]: EDM's min(S_churn / N, sqrt(2) - 1). 0 is deterministic.
        s_min: Churn where s_min <= sigma / alpha <= s_max.
        s_max: See `s_min`.
        s_noise: Standard deviation of the fresh noise.
        schedule: The network's; tells the time of a raised level.

    Source: Karras et al. 2022, algorithm 2, https://arxiv.org/abs/2206.00364.
    """

    gamma: Annotated[Finite, CHURN] = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: NotNegative = 1.0
    schedule: Schedule = field(default_factory=EDM)
    evaluations = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.s_min <= self.s_max:
            raise InputError(
                f"Heun: s_min and s_max must be 0 <= s_min <= s_max, got {self.s_min}, {self.s_max}"
            )
        if not isinstance(self.schedule, Schedule):
            raise InputError(f"Heun: schedule must be the network's, got {self.schedule!r}")

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        if self.gamma > 0 and now.alpha > 0 and self.s_min <= now.ratio <= self.s_max:
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
        on = self._on(now.ratio)
        if not all(torch.isclose(a, b, rtol=1e-4) for a, b in zip(on, now, strict=True)):
            raise InputError(
                f"{self.schedule!r} holds no level t={now.t:g}, alpha={now.alpha:g}, "
                f"sigma={now.sigma:g}: "
                "churn needs the schedule of the levels, Heun(schedule=...)"
            )
        up = self._on(now.ratio * (1 + self.gamma))
        fresh = now.alpha * (up.ratio**2 - now.ratio**2).sqrt() * self.s_noise
        return up.alpha / now.alpha * (x + fresh * noise(x)), up

    def _on(self, ratio: Tensor) -> Level:
        try:
            return self.schedule.at(self.schedule.time(ratio))
        except ValueError as error:
            raise InputError(
                f"churn asks for a level beyond the schedule; lower s_max: {error}"
            ) from error

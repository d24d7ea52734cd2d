"""EDM's sampling loop and its settings; importable without torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Suppress

from diffsteer.core.errors import InputError
from diffsteer.core.fields import (
    Finite,
    NotNegative,
    PositiveFinite,
    Rule,
    between,
    check_fields,
    is_number,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Guided = Callable[["Tensor", "Tensor", int], "Tensor"]
"""From x, a noise level, 0-dim, and the number of the step to the denoised x."""


@dataclass(frozen=True)
class Loop:
    """EDM's sampler under the names of its options that users know.

    Attributes:
        steps: Number of steps, >= 1; all but the last evaluate twice.
        sigma_min: Least noise.
        sigma_max: Most noise.
        rho: Emphasis on low noise; float32 holds the levels of 1 to 1000.
        s_churn: Noise that is added, over all steps; 0 is none.
        s_min: Add where the noise is at least this.
        s_max: And at most this.
        s_noise: Standard deviation of added noise.

    Source: Karras et al. 2022, algorithm 2, https://arxiv.org/abs/2206.00364.
    """

    # the command line has steps already
    steps: Annotated[int, Suppress, between(1, 10**6)] = 32
    sigma_min: PositiveFinite = 0.002
    sigma_max: PositiveFinite = 80.0
    rho: Annotated[Finite, Rule("in [1, 1000] (7 is usual)", lambda rho: 1 <= rho <= 1000)] = 7.0
    s_churn: Annotated[float, Rule("a number >= 0", lambda v: is_number(v) and v >= 0)] = 0.0
    s_min: NotNegative = 0.0
    s_max: float = math.inf
    s_noise: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.sigma_min < self.sigma_max and self.s_min <= self.s_max):
            raise InputError(f"{self}: need sigma_min < sigma_max and s_min <= s_max")

    def times(self, dtype: "torch.dtype") -> "Tensor":
        """Noise levels of the steps, and 0 at the end, `(steps + 1,)`."""
        import torch

        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        i = torch.arange(self.steps, dtype=dtype)
        times = (hi + i / max(self.steps - 1, 1) * (lo - hi)) ** self.rho
        return torch.cat([times, torch.zeros(1, dtype=dtype)])

    def __call__(
        self,
        x: "Tensor",
        denoise: Guided,
        noise: "Callable[[], Tensor]",
    ) -> "Tensor":
        """Sample.

        Args:
            x: Unit noise, `(B, *D)`, in the dtype to compute in.
            denoise: The guided network.
            noise: Draws unit noise in the shape, dtype and device of `x`.

        Returns:
            The sample, `(B, *D)`.
        """
        times = self.times(x.dtype)
        x = x * times[0]
        for i, (t, nxt) in enumerate(zip(times[:-1], times[1:], strict=True)):
            if self.s_churn > 0 and self.s_min <= t <= self.s_max:
                raised = t + min(self.s_churn / self.steps, math.sqrt(2) - 1) * t
                x = x + (raised**2 - t**2).sqrt() * self.s_noise * noise()
                t = raised
            d = (x - denoise(x, t, i)) / t
            y = x + (nxt - t) * d
            if i < self.steps - 1:
                e = (y - denoise(y, nxt, i)) / nxt
                y = x + (nxt - t) * (d / 2 + e / 2)
            x = y
        return x

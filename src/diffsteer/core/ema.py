"""Power-function averages of weights, and averages of any length reconstructed after training.

The average at time t weighs the weights of an earlier time tau by tau^gamma. Its relative width
sigma_rel, the standard deviation of tau over t, names it; gamma follows. Since the profiles of a
few stored averages span those of other lengths well, any length can be had afterwards as a weighted
sum of what was stored. Times are counts of training images.

Source: Karras et al. 2024, sec. 3 and app. C, https://arxiv.org/abs/2312.02696.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast

WIDEST = 12**-0.5
"""sigma_rel of gamma = 0, the plain mean of all weights so far."""

Profile = tuple[float, float]
"""An average: (count of images at which it ends, gamma)."""


def sigma_rel(gamma: float) -> float:
    """Relative width of the average with exponent `gamma` >= 0, in ]0, 12^-1/2]."""
    if not 0 <= gamma < math.inf:
        raise InputError(f"gamma={gamma} is no exponent of an average: give a number >= 0")
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma(sigma_rel: float) -> float:
    """Exponent of the average of relative width `sigma_rel`; the inverse of `sigma_rel`."""
    if not 0 < sigma_rel <= WIDEST * (1 + 1e-12):
        raise InputError(
            f"sigma_rel={sigma_rel} is no width of an average: it lies above 0 and reaches "
            f"{WIDEST:.4f}, the mean of all weights"
        )
    # Largest root of g^3 + 7 g^2 + (16 - v) g + (12 - v), which is convex for g >= 0 and positive
    # at 1 / sigma_rel, so that Newton's method descends to it.
    v, g = sigma_rel**-2, 1 / sigma_rel
    for _ in range(100):
        step = (((g + 7) * g + 16 - v) * g + 12 - v) / ((3 * g + 14) * g + 16 - v)
        g -= step
        if step <= 1e-15 * g:
            break
    return max(g, 0.0)


def decay(count: int, batch: int, gamma: float) -> float:
    """What is kept of the average in an update, beta in [0, 1[; 0 in the first.

    Args:
        count: Images seen after the step, >= `batch`.
        batch: Images of the step, >= 1.
        gamma: Exponent of the average.
    """
    if not 0 < batch <= count:
        raise InputError(
            f"after a step of {batch} images {count} cannot be all so far: count includes the batch"
        )
    return math.pow(1 - batch / count, gamma + 1)


def inner(a: Profile, b: Profile) -> float:
    """Inner product of two profiles, the integral of their product over time."""
    (s, f), (t, g) = a, b
    share = math.pow(s / t, g) if s < t else math.pow(t / s, f)
    return (f + 1) * (g + 1) * share / ((f + g + 1) * max(s, t))


def weights(stored: Sequence[Profile], target: Profile) -> Tensor:
    """Weights of stored averages in the sum that is nearest to another average.

    Least squares over the profiles, scaled to sum to 1.

    Args:
        stored: Averages there are, each (count, gamma), all different, with count > 0.
        target: Average to approximate, (count, gamma).

    Returns:
        `(N,)`, float64, in the order of `stored`.
    """
    stored = [(float(count), float(g)) for count, g in stored]
    for count, g in (*stored, target):
        if not (0 < count < math.inf and 0 <= g < math.inf):
            raise InputError(f"no average ends after {count} images with gamma={g}: both are > 0")
    if not stored or len(set(stored)) < len(stored):
        raise InputError(f"{len(stored)} averages, {len(set(stored))} different: give some, once")
    f64 = torch.float64
    square = torch.tensor([[inner(a, b) for b in stored] for a in stored], dtype=f64)
    aim = torch.tensor([inner(a, target) for a in stored], dtype=f64)
    shares: Tensor = torch.linalg.solve(square, aim)
    return shares / shares.sum()


class PowerEMA:
    """Averages of the weights of a network during training, one for each length.

    Args:
        params: Names and weights, floating point; read again at every update, never written.
        sigmas: Relative widths of the averages.
        copied: Names and tensors that are copied and not averaged, such as buffers.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        sigmas: Sequence[float] = (0.05, 0.10),
        copied: Iterable[tuple[str, Tensor]] = (),
    ) -> None:
        listed, others = list(params), list(copied)
        self.sigmas = tuple(float(sigma) for sigma in sigmas)
        self.gammas = tuple(map(gamma, self.sigmas))
        self._params, self._copied = dict(listed), dict(others)
        names = {*self._params, *self._copied}
        if len(names) < len(listed) + len(others):
            raise InputError("a name comes twice: give each weight and each buffer once")
        for name, p in listed:
            if not p.is_floating_point():
                raise InputError(f"{name} has dtype {p.dtype}, of which there is no average: copy")
        self._averages = [
            {name: upcast(p.detach()).clone() for name, p in listed} for _ in self.sigmas
        ]

    @torch.no_grad()
    def update(self, count: int, batch: int) -> None:
        """Take in the weights after a step.

        Args:
            count: Images seen so far, with those of this step.
            batch: Images of this step.
        """
        betas = [decay(count, batch, g) for g in self.gammas]
        now = [upcast(p.detach()) for p in self._params.values()]
        for beta, average in zip(betas, self._averages, strict=True):
            if now:
                torch._foreach_lerp_(list(average.values()), now, 1 - beta)

    def snapshot(self, i: int) -> dict[str, Tensor]:
        """Copy average `i` and all that is copied, by name; averages are at least float32."""
        copied = {name: b.detach().clone() for name, b in self._copied.items()}
        return {name: a.clone() for name, a in self._averages[i].items()} | copied

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs; holds the tensors themselves, not copies."""
        return {"sigmas": list(self.sigmas), "averages": [dict(a) for a in self._averages]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, in place."""
        if list(state["sigmas"]) != list(self.sigmas):
            raise InputError(f"averages of widths {state['sigmas']}, not {list(self.sigmas)}")
        pairs = list(zip(self._averages, state["averages"], strict=True))
        for own, other in pairs:
            if {n: a.shape for n, a in own.items()} != {n: a.shape for n, a in other.items()}:
                differing = set(own) ^ set(other) or "of other shapes"
                raise InputError(f"averages of another network: weights {differing}")
        for own, other in pairs:
            for name, a in own.items():
                a.copy_(other[name])

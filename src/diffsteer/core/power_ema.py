"""Power-function averages of weights, and averages of any length reconstructed after training.

The average at time t weighs the weights of an earlier time tau by tau^gamma. Its relative width
sigma_rel, the standard deviation of tau over t, names it; gamma follows. Since the profiles of a
few stored averages span those of other lengths well, any length can be had afterwards as a weighted
sum of what was stored. Times are counts of training images.

Source: Karras et al. 2024, sec. 3 and app. C, https://arxiv.org/abs/2312.02696.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast

WIDEST = 12**-0.5
"""sigma_rel of gamma = 0, the plain mean of all weights so far."""

Profile = tuple[float, float]
"""An average: (count of images at which it ends, gamma)."""


def gamma(sigma_rel: float) -> float:
    """Exponent g >= 0 of the average of relative width `sigma_rel`, in ]0, 12^-1/2].

    Of sigma_rel^2 = (g + 1) / ((g + 2)^2 (g + 3)); `std_to_exp` in EDM2's code.
    """
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
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        sigmas: Sequence[float] = (0.05, 0.10),
    ) -> None:
        listed = list(params)
        self.sigmas = tuple(float(sigma) for sigma in sigmas)
        self.gammas = tuple(map(gamma, self.sigmas))
        self._params = dict(listed)
        if len(self._params) < len(listed):
            raise InputError("a name comes twice: give each weight once")
        for name, p in listed:
            if not p.is_floating_point():
                raise InputError(f"{name} has dtype {p.dtype}, of which there is no average")
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
        """Copy average `i`, by name, in at least float32."""
        return {name: a.clone() for name, a in self._averages[i].items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the number of their width and their name, "0/weight"; no copies."""
        return {f"{i}/{n}": a for i, each in enumerate(self._averages) for n, a in each.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave with the same widths, in place."""
        own = self.state_dict()
        names = sorted(own.keys() | state.keys())
        expected, given = ([d[n].shape if n in d else None for n in names] for d in (own, state))
        if expected != given:
            i = next(i for i, shape in enumerate(expected) if shape != given[i])
            raise InputError(
                f"averages of another network, or other widths: {names[i]} has shape {given[i]} "
                f"among them and {expected[i]} here"
            )
        for name, a in own.items():
            a.copy_(state[name])

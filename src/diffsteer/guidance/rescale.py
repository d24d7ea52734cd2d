"""Guidance rescale: give a guided prediction the standard deviation it had before guidance.

Both forms act on the network's own output (v for a v-model). The paper's also scales the mean of
each sample, which draws bright and dark images towards grey; the centred one leaves it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Share
from diffsteer.core.level import require_alike, upcast
from diffsteer.guidance.base import Guidance, Inner, composable
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


def rescale(guided: Tensor, cond: Tensor, phi: float = 0.7) -> Tensor:
    """Scale each sample of `guided` to the spread of `cond`, by the share `phi`.

    Args:
        guided: Network output after guidance, `(B, *D)`.
        cond: Network output for the prompt alone, of the same shape.
        phi: 0 changes nothing, 1 equalises the standard deviations.

    Returns:
        A tensor in the shape and dtype of `guided`. A sample without spread stays as it is.

    Source: Lin et al. 2023, algorithm 2, https://arxiv.org/abs/2305.08891.
    """
    return (upcast(guided) * _factor(guided, cond, phi)).to(guided.dtype)


def rescale_centred(guided: Tensor, cond: Tensor, phi: float = 0.7) -> Tensor:
    """Scale only what differs from the mean of each sample; arguments as for `rescale`."""
    factor = _factor(guided, cond, phi)
    x = upcast(guided)
    mean = x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return (mean + (x - mean) * factor).to(guided.dtype)


def _factor(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Return phi std(cond) / std(guided) + 1 - phi, `(B, 1, ...)`."""
    if not 0 <= phi <= 1:
        raise InputError(
            f"phi={phi} is no share of rescaling: give 0 (none) to 1 (all); 0.7 is usual"
        )
    require_alike(guided=guided, cond=cond)
    if guided.ndim < 2:
        raise InputError(f"shape {tuple(guided.shape)} has no samples: give (B, *D)")
    dims = tuple(range(1, guided.ndim))
    x = upcast(guided)
    std, std_cond = (y.std(dim=dims, correction=0, keepdim=True) for y in (x, upcast(cond)))
    # A flat sample has no spread, but the rounding of its mean gives its std a few units.
    reach = x.amax(dim=dims, keepdim=True) - x.amin(dim=dims, keepdim=True)
    flat = reach <= 4 * torch.finfo(x.dtype).eps * x.abs().amax(dim=dims, keepdim=True)
    return torch.where(flat, 1.0, phi * std_cond / std + (1 - phi))


@composable("rescaled")
@dataclass(frozen=True, repr=False)
class Rescaled(Guidance):
    """A guidance whose output, the network's own, is brought back to the prompt's spread.

    Source: Lin et al. 2023, algorithm 2, https://arxiv.org/abs/2305.08891.
    """

    inner: Inner
    phi: Share
    centred: bool = False

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        shift = yield from self.inner.shift(at)
        (cond,) = yield (Branch(),)
        act = rescale_centred if self.centred else rescale
        guided = at.prediction.output_for_x0(at.x, cond.x0 + shift, at.level)
        return at.prediction.x0(at.x, act(guided, cond.out, self.phi), at.level) - cond.x0

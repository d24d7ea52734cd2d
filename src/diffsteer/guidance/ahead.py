"""CFG++: guidance by the level that a step goes to."""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite
from diffsteer.guidance.base import Guidance, extrapolate
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class CFGpp(Guidance):
    """CFG++: DDIM whose x0 is that of CFG at `scale` <= 1, and whose noise is that of the null.

    That is CFG with the weight scale alpha' sigma / (alpha' sigma - alpha sigma'), the primes of
    the next level: `scale` at alpha = 0 and in the last step, more in between. Other samplers take
    the same weights, in all evaluations of a step. No scale is off for every step.

    Args:
        scale: lambda of the paper, 0.6 there; 0 is the null prompt, 1 the prompt's x0.

    Source: Chung et al. 2024, algorithm 2, https://arxiv.org/abs/2406.08070.
    """

    scale: Finite = 0.6

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        now, nxt = at.start or at.level, at.next
        fresh = nxt.alpha * now.sigma - now.alpha * nxt.sigma
        if not (fresh > 0).all():
            raise InputError(f"CFGpp: the step from t={now.t:g} to t={nxt.t:g} loses no noise")
        weight = (self.scale * nxt.alpha * now.sigma / fresh).item()
        return (yield from extrapolate(at, weight - 1, Branch(), Branch(cond="null")))

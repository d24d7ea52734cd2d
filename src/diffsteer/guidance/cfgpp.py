"""CFG++ and Rectified-CFG++: CFG that looks at the level to which a step goes."""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite
from diffsteer.core.sampler import first_order
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries, extrapolate


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


@dataclass(frozen=True, repr=False)
class RectifiedCFGpp(Guidance):
    """Rectified-CFG++: the prompt's velocity, and the difference of c and u where it leads to.

    v = v_c(x, t) + scale (v_c - v_u)(x', t'), where x' is one step along v_c to the next level t'.
    The last step, to data, takes the difference at (x, t). Scale 0 is off.

    Args:
        scale: lambda of the paper, which lets it fall to 0: `RectifiedCFGpp(ramp(4.5, 0))`.

    Source: Saini et al. 2025, https://arxiv.org/abs/2510.07631.
    """

    scale: Finite

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        nxt = at.next
        if self.scale == 0 or nxt.sigma == 0 or not nxt.ratio < at.level.ratio:
            return (yield from extrapolate(at, self.scale, Branch(), Branch(cond="null")))
        (here,) = yield (Branch(),)
        x = first_order(at.x, here.x0, at.level, nxt)
        cond, null = yield Branch(x=x, level=nxt), Branch("null", x=x, level=nxt)
        speed = [level.sigma / (level.alpha + level.sigma) for level in (at.level, nxt)]
        return (self.scale * speed[0] / speed[1]).item() * (cond.x0 - null.x0)

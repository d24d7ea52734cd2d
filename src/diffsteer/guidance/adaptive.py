"""CFG that decides for each sample, by its earlier steps, whether and how much to guide."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, Rule, Share, is_number
from diffsteer.core.level import lincomb
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.cfg_variants import TINY, dot, norm
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class Adaptive(Guidance):
    """Adaptive guidance: CFG until both answers agree; scale 1 is off.

    From the evaluation after that in which the cosine of both outputs exceeds `agree`, a sample is
    not guided and the null prompt is not evaluated for it. `plan` counts what it costs at most.
    Each step waits for the decision of the one before.

    Args:
        scale: As for CFG.
        agree: gamma of the paper, 0.991 for Stable Diffusion; 1 is CFG.

    Source: Castillo et al. 2023, https://arxiv.org/abs/2312.12487.
    """

    scale: Finite
    agree: Share = 0.991

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        stopped = at.memory.get("stopped", torch.zeros(len(at.x), dtype=torch.bool))
        rows = tuple(i for i, stop in enumerate(stopped.tolist()) if not stop)
        if self.scale == 1 or not rows:
            return torch.zeros_like(at.x)
        some = None if len(rows) == len(at.x) else rows
        cond, null = yield Branch(), Branch(cond="null", samples=some)
        index = list(rows)
        out = cond.out[index]
        cosine = dot(out, null.out) / (norm(out) * norm(null.out)).clamp(min=TINY)
        now = stopped.to(out.device).clone()
        now[index] = cosine.flatten() > self.agree
        at.memory["stopped"] = now
        shift = torch.zeros_like(at.x)
        shift[index] = (self.scale - 1) * (cond.x0[index] - null.x0)
        return shift


@dataclass(frozen=True, repr=False)
class FBG(Guidance):
    """Feedback guidance: CFG whose weight grows where the last steps did not follow the prompt.

    The weight is e^L / (e^L - 1 + pi) with L, the log-posterior of the prompt, 0 at first and after
    each step L + offset - temperature (|x - m_c|^2 - |x - m_u|^2) / (2 v), where m are the means of
    the step's posterior by c and u and v is its variance. L stays at most 3, and so high that the
    weight is at most `most`. pi = 1 is off. Offset and temperature are those of 32 steps.

    Args:
        pi: Share of the prompt in what the network learned, in ]0, 1]; 0.95 for EDM2.
        temperature: tau of the paper, >= 0.
        offset: delta of the paper; below 0 the weight rises where nothing is known.
        most: Greatest weight, > 1.

    Source: Koulischer et al. 2025, https://arxiv.org/abs/2506.06085.
    """

    pi: Annotated[float, Rule("in ]0, 1]", lambda pi: is_number(pi) and 0 < pi <= 1)] = 0.95
    temperature: Finite = 0.006
    offset: Finite = -0.16
    most: Annotated[Finite, Rule("a number > 1", lambda most: most > 1)] = 10.0

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.pi == 1:
            return torch.zeros_like(at.x)
        cond, null = yield Branch(), Branch(cond="null")
        log = at.memory["log"] = self._log_posterior(at)
        at.memory.update(posteriors(at, cond.x0, null.x0))
        odds = log.exp().reshape(-1, *(1,) * (at.x.ndim - 1))
        return (odds / (odds - 1 + self.pi) - 1) * (cond.x0 - null.x0)

    def _log_posterior(self, at: GuidanceState) -> Tensor:
        """L, `(B,)`, of where the last step went."""
        log, memory = at.memory.get("log", at.x.new_zeros(len(at.x))), at.memory
        if memory.inner or "gap" not in memory:
            return log
        gap = memory["gap"]
        nearer = (dot(gap, gap) - 2 * dot(at.x - memory["mean"], gap)).flatten()
        log = log + self.offset - self.temperature * nearer / (2 * memory["variance"])
        return log.clamp(math.log((1 - self.pi) * self.most / (self.most - 1)), 3.0)


def posteriors(at: GuidanceState, c: Tensor, u: Tensor) -> dict[str, Tensor]:
    """Posterior mean of a step by u, the gap from there to that by c, and the variance of both.

    Args:
        at: Where the step starts; one to clean data has none.
        c: x0 by the prompt, `(B, *D)`.
        u: x0 by the null prompt.
    """
    now, nxt = at.level, at.next
    if nxt.sigma == 0:
        return {}
    keep = nxt.sigma**2 * now.alpha / (now.sigma**2 * nxt.alpha)
    gain = nxt.alpha - keep * now.alpha
    variance = nxt.sigma**2 * (1 - (nxt.ratio / now.ratio) ** 2)
    rows = at.x.new_full((len(at.x),), variance.item())
    return {"mean": lincomb(keep, at.x, gain, u), "gap": gain * (c - u), "variance": rows}

"""Guidance whose prediction is clamped, as networks of pixels are sampled."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, Rule
from diffsteer.guidance.base import Guidance, composable
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries


@composable("clamped")
@dataclass(frozen=True, repr=False)
class Clamped(Guidance):
    """A guidance, or none, whose guided x0 is kept within -limit and limit.

    What is added to it is not clamped: `SAG(0.1).clamped() + Classifier(0.5)`.
    """

    inner: Annotated[
        Guidance | None, Rule("a guidance or None", lambda g: g is None or isinstance(g, Guidance))
    ] = None
    limit: Annotated[Finite, Rule("a number > 0", lambda limit: limit > 0)] = 1.0

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        shift = torch.zeros_like(at.x) if self.inner is None else (yield from self.inner.shift(at))
        (cond,) = yield (Branch(),)
        return (cond.x0 + shift).clamp(-self.limit, self.limit) - cond.x0

    @override
    def guided(self, at: GuidanceState) -> Queries[tuple[Answer, Tensor]]:
        if self.inner is None:
            return (yield from super().guided(at))
        answer, shift = yield from self.inner.guided(at)
        return answer, (answer.x0 + shift).clamp(-self.limit, self.limit) - answer.x0

    @override
    def _settings(self, *omitted: str) -> list[str]:
        return [repr(self.limit) if omitted else f"limit={self.limit!r}"]

"""Parts of a guidance that ask more in later steps, for checks before the first step."""

from collections.abc import Iterator

from diffsteer.guidance.base import Guidance, Scaled
from diffsteer.guidance.cfg import CFGZero
from diffsteer.guidance.interval import Over, Within
from diffsteer.guidance.weight_schedules import at_ends

LATE = 10**6
"""A step beyond the first ones of any guidance."""


def later(guidance: Guidance) -> Iterator[Guidance]:
    """Yield the parts of a guidance that may ask more in a later step than in this one."""
    if isinstance(guidance, Scaled) and guidance.factor == 0:
        return
    if isinstance(guidance, Within | Over | CFGZero) or any(True for _ in at_ends(guidance)):
        yield guidance
    for inner in guidance.inner_guidances():
        yield from later(inner)


def acting(part: Guidance) -> list[Guidance]:
    """Guidances that ask at step LATE, at any level, all that a part of `later` ever asks."""
    if isinstance(part, Within | Over):
        return [part.inner]
    return list(at_ends(part)) or [part]

"""Outputs of the network of any pipeline that can be steered, read at its first step.

A guidance asks for them: the pipeline makes the condition, and steering tells times and packs.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import is_whole
from diffsteer.core.identify import Ask
from diffsteer.core.level import Level
from diffsteer.core.schedule import Discrete, Flow, Schedule
from diffsteer.guidance import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries
from diffsteer.hf.conditioning import PROMPTS, conditioning_argument, conditioning_kwargs
from diffsteer.hf.families import Patch, packed, patch_of, unpacked
from diffsteer.hf.network import network_of
from diffsteer.steering import steer

T = TypeVar("T")
Measure = Callable[[Ask, Schedule, Tensor], T]
PROMPT = "a photo"


class _Measured(Exception):
    """Ends a pipeline whose network was measured, which its argument is."""


@dataclass(frozen=True, repr=False)
class _Measuring(Guidance):
    """Measure a network in place of guiding it.

    Args:
        measure: Of the network, on a schedule, with a tensor like its samples, `(B, C, H, W)`. It
            asks the same whatever the answers are.
        patch: Of images where they are packed into tokens.
    """

    measure: Measure[Any]
    patch: Patch

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if not isinstance(at.schedule, Discrete | Flow):
            raise InputError("its schedule is neither of betas nor a flow")
        like, asked = self._image(at.x), list[tuple[Tensor, Level]]()

        def note(x: Tensor, level: Level) -> Tensor:
            tokens = packed(x, self.patch) if at.x.ndim == 3 else x
            asked.append((tokens.reshape(at.x.shape).to(at.x), level))
            return torch.zeros_like(x)

        self.measure(note, at.schedule, like)
        answers = yield tuple(Branch(x=x, level=level) for x, level in asked)
        outs = [self._image(answer.out) for answer in answers]
        if any(out.any() for out in outs):  # those of a dry run are 0
            given = iter(outs)
            raise _Measured(self.measure(lambda x, level: next(given), at.schedule, like))
        return torch.zeros_like(at.x)

    def _image(self, x: Tensor) -> Tensor:
        """Samples as images, `(B, C, H, W)`: tokens of a square, or a single frame."""
        side = isqrt(x.shape[1])
        if x.ndim == 3 and side**2 == x.shape[1]:
            return unpacked(x, (side, side), self.patch)
        image = x.reshape(len(x), *(n for n in x.shape[1:] if n > 1))
        if image.ndim != 4:
            raise InputError(f"its samples are of shape {tuple(x.shape[1:])}, no square image")
        return image


def measured_by_pipeline(pipe: Any, measure: Measure[T], side: int, **call: Any) -> T:
    """Measure the network of a pipeline.

    Args:
        pipe: Of diffusers.
        measure: As of `_Measuring`.
        side: Of latents.
        call: What the pipeline is called with beside its size, such as embeddings of prompts.

    Raises:
        InputError: it cannot be called or steered, or samples no images.
    """
    pixels = side * getattr(pipe, "vae_scale_factor", 8)
    takes = inspect.signature(pipe.__call__).parameters
    size = {"height": pixels, "width": pixels, "num_inference_steps": 4, "guidance_scale": 1.0}
    size["use_resolution_binning"] = False
    call = {name: value for name, value in size.items() if name in takes} | call
    try:
        with steer(pipe, _Measuring(measure, patch_of(pipe) or Patch(1))):
            pipe(**call)
    except _Measured as end:
        measured: T = end.args[0]
        return measured
    except InputError:
        raise
    except Exception as error:  # of a pipeline, for what it lacks
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{type(pipe).__name__} cannot be called ({reason})") from error
    raise InputError(f"{type(pipe).__name__} ended without an answer of its network but 0")


def prompts(pipe: Any, count: int) -> dict[str, Any]:
    """Arguments by which a pipeline samples `count` images of nothing in particular."""
    text = PROMPT if conditioning_argument(pipe) == PROMPTS else ""
    return conditioning_kwargs(pipe, [text] * count)


def side_of(pipe: Any, most: int) -> int:
    """Side of latents that a network takes, at most `most`."""
    size = getattr(network_of(pipe).config, "sample_size", None)
    sides = size if isinstance(size, list | tuple) else [size]
    return min([most, *(side for side in sides if is_whole(side) and side > 0)])

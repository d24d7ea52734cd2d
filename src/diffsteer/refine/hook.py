"""Refine the noise that a pipeline of a known family starts from.

Pipelines give the network a copy of their sample, and the scheduler the sample. In the first step
of a sampling both are given the refined one; the network is asked for it just before, with the
condition that the pipeline sends.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError, brief
from diffsteer.core.level import upcast
from diffsteer.core.parse import parse
from diffsteer.guidance.batching import chunks, rows_of
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.hooks import plain_forward, replaced, wrapped
from diffsteer.hf.known_family_call import BatchedCall, shifted
from diffsteer.hf.network import (
    PipelineNetwork,
    bind_arguments,
    check_free,
    network_of,
    unwrap_compiled,
)
from diffsteer.hf.prompt_conditions import conditions, require_prompts
from diffsteer.hf.runs import Runs
from diffsteer.hf.sample_placement import fitted
from diffsteer.hf.timesteps import StepTracker
from diffsteer.refine.nlg import TrainingFreeRefiner, is_training_free
from diffsteer.refine.prompt_mismatch import refined_before, remember
from diffsteer.refine.refiner import NoiseRefiner


class Refine(Protocol):
    """A refiner of unit Gaussian noise; `null` says whether it asks for the null prompt as well."""

    null: bool

    def __call__(self, x: Tensor, conds: Mapping[str, Cond], model: PipelineNetwork) -> Tensor:
        """Return refined noise, in the shape of `x`."""


class RefineHook(AbstractContextManager["RefineHook"]):
    """Moves the noise of every sampling to what it is refined to, as a context.

    Args:
        pipe: A pipeline of a known family.
        refine: Makes the noise.
        strength: Factor of the change, whoever makes it.
        max_rows: Most rows of noise that are refined in one pass.
        forward: Evaluates the network, past any steering; that which stands there by default.
        runs: Follows the runs of the pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        refine: Refine,
        strength: float = 1.0,
        max_rows: int | None = None,
        forward: Callable[..., Any] | None = None,
        runs: Runs | None = None,
    ) -> None:
        if isinstance(refine, TrainingFreeRefiner):
            refine.require(PipelineNetwork.of(pipe).terminal)
        self.pipe, self.refine, self._network = pipe, refine, network_of(pipe)
        self.strength, self.max_rows = strength, max_rows
        self._inner = plain_forward(self._network)
        self._plain, self._runs = forward or self._inner, runs
        self._tracker = StepTracker()
        self._shift: Tensor | None = None
        self._scale = 1.0
        self._calling = False
        self._steps, self._replaced = ExitStack(), ExitStack()

    @override
    def __enter__(self) -> "RefineHook":
        forward = wraps(self._inner)(partial(self._forward))
        self._replaced.enter_context(replaced(self._network, "forward", forward))
        return self

    @override
    def __exit__(self, *_: object) -> None:
        """Leave a sampling that was broken off."""
        self._release()
        self._replaced.close()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the network's forward: give it the refined sample in the first step."""
        if self._runs is not None and not self._calling:
            self._runs.check()
        starts = not self._calling and self._tracker.follow(self.pipe.scheduler)
        if starts:
            self._release()
        if self._calling or not (starts or self._shift is not None):
            return self._inner(*args, **kwargs)
        arguments = bind_arguments(self._network, args, kwargs)
        call = BatchedCall.of(self.pipe, self._network, self._plain, arguments)
        if starts:
            size, self._scale = self._start(call)
            with torch.no_grad():
                self._shift = size * self._change(call, size * self._scale)
        assert self._shift is not None
        self._calling = True  # what the steering under this one evaluates is moved already
        try:
            out = self._inner(**call.moved(self._scale * self._shift))
        finally:
            self._calling = False
        if starts:  # after the steering has put its own step there, which is given the moved sample
            step = partial(self._first_step, call, self._shift)
            self._steps.enter_context(wrapped(self.pipe.scheduler, "step", step))
        return out

    def _release(self) -> None:
        self._shift = None
        self._steps.close()

    def _start(self, call: BatchedCall) -> tuple[float, float]:
        """Size of the noise and factor by which it is scaled for the network."""
        if (step := call.step(self._tracker).step) or self._tracker.start:
            raise InputError(
                f"this sampling starts at step {step + 1} from an image, and only pure noise can "
                "be refined: leave the refiner out of image to image"
            )
        scheduler: Any = self.pipe.scheduler
        size = float(getattr(scheduler, "init_noise_sigma", 1.0))
        takes = inspect.signature(self.pipe.__call__).parameters
        if size != 1 and not {"latents", "image"} & takes.keys():
            raise InputError(
                f"{type(self.pipe).__name__} starts from noise of size 1 where its "
                f"{type(scheduler).__name__} means {size:.3g}, so that it samples wrongly by "
                "itself: give it a scheduler such as DDIMScheduler"
            )
        scale = getattr(scheduler, "scale_model_input", None)
        return size, 1.0 if scale is None else float(scale(torch.ones(1), scheduler.timesteps[0]))

    def _change(self, call: BatchedCall, size: float) -> Tensor:
        """Change of the unit noise of a call, `(B, *D)`."""
        conds = call.conds
        if self.refine.null and "null" not in conds:
            raise InputError(
                f"{self.refine!r} asks for the null prompt, which this call does not send: "
                "call the pipeline with guidance_scale > 1, steered by CFG(1) for no guidance"
            )
        noise = upcast(call.sample) / size
        if refined_before(call.network.module, noise):
            warnings.warn(
                "this noise was refined before: sample it without the refiner, or hand the "
                "pipeline the noise as it was drawn",
                stacklevel=2,
            )
        refined = [
            self.refine(noise[rows], rows_of(conds, rows, len(noise)), call.network)
            for rows in chunks(len(noise), self.max_rows)
        ]
        return self.strength * (torch.cat(refined) - noise)

    def _first_step(
        self,
        call: BatchedCall,
        shift: Tensor,
        step: Callable[..., Any],
        model_output: Any,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Step of a scheduler from the refined sample, which then is as it was."""
        if len(sample) % len(shift):
            raise InputError(
                f"{type(self.pipe).__name__} calls its network with {len(shift)} rows for "
                f"{len(sample)} samples: switch off what else it guides by (PAG) while noise "
                "is refined, or take the plain pipeline"
            )
        if fitted(call.sample, [sample[: len(shift)].to(call.sample)]) is None:
            raise InputError(
                f"{type(self.pipe).__name__} puts other channels before its noise, so that it "
                "cannot be refined: leave the refiner out"
            )
        moved = shifted(sample, shift)
        self._release()
        return step(model_output, timestep, moved, *args, **kwargs)


@dataclass(eq=False)
class _Given:
    noise: Tensor
    null: bool = False

    def __call__(self, x: Tensor, conds: Mapping[str, Cond], model: PipelineNetwork) -> Tensor:
        return self.noise.to(x)


def started_from(pipe: Any, noise: Tensor) -> RefineHook:
    """Let a pipeline that draws its noise itself start from noise, `(B, *D)`, as a context."""
    return RefineHook(pipe, _Given(noise))


def refine(
    pipe: Any, noise: Tensor, prompts: list[str], by: Refine | str | Path, **call: Any
) -> Tensor:
    """Refine noise for prompts, without sampling; sampling it for others warns.

    Args:
        pipe: A pipeline with prompts.
        noise: Unit Gaussian noise, `(B, *D)`, as `latents=` of the pipeline.
        prompts: One a row.
        by: A `NoiseRefiner` of this pipeline, or what `steer` takes for its `refiner`.
        call: What else the pipeline will be called with, such as height and width.
    """
    check_free(network_of(pipe))
    require_prompts(prompts)
    if len(prompts) != len(noise):
        raise InputError(f"{len(prompts)} prompts for {len(noise)} rows of noise: give one each")
    by, give_back = opened(by, pipe)
    try:
        shape = noise.shape[1:]
        conds = {"cond": conditions(pipe, prompts, shape, **call)}
        if by.null:
            conds["null"] = conditions(pipe, [""] * len(prompts), shape, **call)
        # past the noise registry, which looks at samplings
        network = PipelineNetwork.of(pipe, unwrap_compiled(network_of(pipe)).forward)
        with torch.no_grad():
            refined = by(noise, conds, network).to(noise.dtype)
    finally:
        give_back()
    if wrong := [i for i, row in enumerate(refined) if not row.isfinite().all()]:
        raise InputError(
            f"refined noise of rows {wrong} is not finite: lower the strength of the refiner, or "
            "look at the weights of the model"
        )
    remember(pipe, noise, refined, conds["cond"])
    return refined


def opened(refiner: Refine | str | Path, pipe: Any) -> tuple[Refine, Callable[[], object]]:
    """Open a folder, hub id, text of an `NLG` or a refiner; the function takes it out again."""
    if isinstance(refiner, str | Path):
        if is_training_free(str(refiner)):
            return opened(parse(str(refiner), TrainingFreeRefiner), pipe)
        loaded = NoiseRefiner.load(refiner, pipe)
        return loaded, loaded.remove
    if isinstance(refiner, type) or not (callable(refiner) and hasattr(refiner, "null")):
        raise InputError(
            f"{brief(refiner)} is no refiner: give a folder, a hub id, NLG(20) or a NoiseRefiner"
        )
    network = unwrap_compiled(network_of(pipe))
    if isinstance(refiner, NoiseRefiner) and refiner.model.module is not network:
        raise InputError("this refiner was loaded for another pipeline: load it for this one")
    return refiner, lambda: None

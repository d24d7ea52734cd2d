"""Refine the noise that a pipeline starts from, whatever its family.

Pipelines give the network a copy of their sample, and the scheduler the sample. In the first step
of a sampling both are given the refined one; the network is asked for it just before, with the
condition that the pipeline sends.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast
from diffsteer.core.parse import parse
from diffsteer.guidance.batching import chunks, rows_of
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.call import BatchedConditions, NetworkCall, shifted
from diffsteer.hf.first_call import conditions, require_prompts
from diffsteer.hf.hooks import plain_forward, replaced
from diffsteer.hf.layout import place_in
from diffsteer.hf.network import PipelineNetwork, check_free, network_of, unwrap_compiled
from diffsteer.refine.nlg import NLG, TrainingFreeRefiner
from diffsteer.refine.noise_registry import refined_before, remember
from diffsteer.refine.refiner import NoiseRefiner


class Refine(Protocol):
    """A refiner of unit Gaussian noise; `null` says whether it asks for the null prompt as well."""

    null: bool

    def __call__(self, x: Tensor, conds: Mapping[str, Cond], model: PipelineNetwork) -> Tensor:
        """Return refined noise, in the shape of `x`."""


class RefineHook(AbstractContextManager["RefineHook"]):
    """Moves the noise of every sampling to what it is refined to; a hook of network calls.

    Args:
        pipe: A pipeline of a known family.
        refine: Makes the noise.
        strength: Factor of the change, whoever makes it.
        max_rows: Most rows of noise that are refined in one pass.
    """

    def __init__(
        self, pipe: Any, refine: Refine, strength: float = 1.0, max_rows: int | None = None
    ) -> None:
        self.pipe, self.refine = pipe, refine
        self.strength, self.max_rows = strength, max_rows
        self._shift: Tensor | None = None
        self._scale = 1.0
        self._replaced = ExitStack()

    @override
    def __exit__(self, *_: object) -> None:
        """Leave a sampling that was broken off."""
        self._release()

    def __call__(self, call: NetworkCall) -> NetworkCall:
        """Return the call with the refined sample, in the first step of a sampling."""
        moved = self.moved(call)
        self.step_from(call)
        return moved

    def moved(self, call: NetworkCall) -> NetworkCall:
        """Return the call with the refined sample; `step_from` has to follow."""
        if call.starts:
            self._release()
            size, self._scale = self._start(call)
            with torch.no_grad():
                self._shift = size * self._change(call, size * self._scale)
        return call if self._shift is None else call.moved(self._scale * self._shift)

    def step_from(self, call: NetworkCall) -> None:
        """Let the scheduler step from the refined sample as well."""
        if call.starts and self._shift is not None:
            step = self._first_step(call, self._shift, call.scheduler.step)
            self._replaced.enter_context(replaced(call.scheduler, "step", step))

    def _release(self) -> None:
        self._shift = None
        self._replaced.close()

    def _start(self, call: NetworkCall) -> tuple[float, float]:
        """Size of the noise and factor by which it is scaled for the network."""
        if (step := call.step.step) or call.reader.tracker.start:
            raise InputError(
                f"this sampling starts at step {step + 1} from an image, and only pure noise can "
                "be refined: leave the refiner out of image to image"
            )
        scheduler: Any = call.scheduler
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

    def _change(self, call: NetworkCall, size: float) -> Tensor:
        """Change of the unit noise of a call, `(B, *D)`."""
        conds = {name: call.conds[name] for name in call.names}
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
        self, call: NetworkCall, shift: Tensor, step: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Step of a scheduler from the refined sample, which then is as it was."""

        @wraps(step)  # pipelines look at its signature for whether to send generators
        def first(model_output: Any, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
            if len(sample) % len(shift):
                raise InputError(
                    f"{type(self.pipe).__name__} calls its network with {len(shift)} rows for "
                    f"{len(sample)} samples: switch off what else it guides by (PAG) while noise "
                    "is refined, or take the plain pipeline"
                )
            if place_in(call, timestep, sample)[:2] != call.network.place[:2]:
                raise InputError(
                    f"{type(self.pipe).__name__} puts other channels before its noise: steer it "
                    "by a guidance as well, which looks for them"
                )
            moved = shifted(sample, shift)
            self._release()
            return step(model_output, timestep, moved, *args, **kw)

        return first


@dataclass(eq=False)
class _Given:
    noise: Tensor
    null: bool = False

    def __call__(self, x: Tensor, conds: Mapping[str, Cond], model: PipelineNetwork) -> Tensor:
        return self.noise.to(x)


@contextmanager
def started_from(pipe: Any, noise: Tensor) -> Iterator[None]:
    """Let a pipeline that draws its noise itself start from noise, `(B, *D)`."""
    network = network_of(pipe)
    inner = plain_forward(network)
    reader = BatchedConditions(pipe, network, inner)

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = reader.read(pipe.scheduler, args, kwargs)
        out = inner(**hook.moved(call).forwarded())
        hook.step_from(call)  # before what a steering did inside, which saw the moved sample
        return out

    with RefineHook(pipe, _Given(noise)) as hook, replaced(network, "forward", forward):
        yield


def refine(pipe: Any, noise: Tensor, prompts: list[str], by: Refine, **call: Any) -> Tensor:
    """Refine noise for prompts, without sampling; sampling it for others warns.

    Args:
        pipe: A pipeline with prompts.
        noise: Unit Gaussian noise, `(B, *D)`, as `latents=` of the pipeline.
        prompts: One a row.
        by: A `NoiseRefiner` of this pipeline, or an `NLG`.
        call: What else the pipeline will be called with, such as height and width.
    """
    check_free(network_of(pipe))
    require_prompts(prompts)
    if len(prompts) != len(noise):
        raise InputError(f"{len(prompts)} prompts for {len(noise)} rows of noise: give one each")
    shape = noise.shape[1:]
    conds = {"cond": conditions(pipe, prompts, shape, **call)}
    if by.null:
        conds["null"] = conditions(pipe, [""] * len(prompts), shape, **call)
    # past the noise registry, which looks at samplings
    network = PipelineNetwork.of(pipe, unwrap_compiled(network_of(pipe)).forward)
    with torch.no_grad():
        refined = by(noise, conds, network).to(noise.dtype)
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
        if str(refiner).startswith(NLG.__name__):
            return parse(str(refiner), TrainingFreeRefiner), lambda: None
        loaded = NoiseRefiner.load(refiner, pipe)
        return loaded, loaded.remove
    network = unwrap_compiled(network_of(pipe))
    if isinstance(refiner, NoiseRefiner) and refiner.model.module is not network:
        raise InputError("this refiner was loaded for another pipeline: load it for this one")
    return refiner, lambda: None

"""Refine the noise that a pipeline starts from, whatever its family.

A pipeline keeps its sample to itself: it gives the network a copy and the scheduler the sample. So
both are given the refined one, in the first step of a sampling. The network is asked for it just
before, with the condition that the pipeline sends, which no other place of a pipeline knows.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast
from diffsteer.core.parse import parse
from diffsteer.core.schedule import Flow
from diffsteer.guidance.denoiser import Cond, chunks, rows_of
from diffsteer.hf.architectures import check_halves
from diffsteer.hf.network import bind_arguments, check_free, network_of, put_back, unwrap_compiled
from diffsteer.hf.timesteps import StepTracker
from diffsteer.refine.model import Model, conditions, require_prompts
from diffsteer.refine.nlg import NLG, TrainingFreeRefiner
from diffsteer.refine.noise_registry import refined_before, remember
from diffsteer.refine.refiner import NoiseRefiner


class Refine(Protocol):
    """Makes better noise of unit Gaussian noise.

    Attributes:
        null: Whether it asks for the null prompt as well.
    """

    null: bool

    def __call__(self, x: Tensor, conds: Mapping[str, Cond], model: Model) -> Tensor:
        """Return refined noise, in the shape of `x`."""


class Refining:
    """A pipeline whose noise is refined, until `remove`.

    Args:
        pipe: A pipeline of a known family.
        refine: What refines.
        forward: How it calls the network; past the guidance that steers the pipeline.
        strength: Factor of the change, whoever makes it.
        max_rows: Most rows of noise that are refined in one pass.
    """

    def __init__(
        self,
        pipe: Any,
        refine: Refine,
        forward: Callable[..., Any] | None = None,
        strength: float = 1.0,
        max_rows: int | None = None,
    ) -> None:
        self.pipe, self.refine, self.network = pipe, refine, network_of(pipe)
        self.strength, self.max_rows = strength, max_rows
        self._own = self.network.__dict__.get("forward")
        self._inner: Callable[..., Any] = self.network.forward
        self._model = partial(Model.of, pipe, forward or self._inner)
        self._family = self._model().family
        self._timesteps: Tensor | None = None
        self._shift: Tensor | None = None
        self._give_back: Callable[[], None] = _nothing
        self.network.forward = self.called

    def remove(self) -> None:
        """Give the pipeline back as it was."""
        self._give_back()
        put_back(self.network, self._own)

    def called(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the network's forward."""
        said = bind_arguments(self.network, args, kwargs)
        scheduler = self.pipe.scheduler
        if scheduler.timesteps is not self._timesteps:
            self._begin(said, scheduler)
        if self._shift is not None:
            name = self._family.sample
            said[name] = self._moved(said[name], self._gain * self._shift)
        return self._inner(**said)

    def _begin(self, said: dict[str, Any], scheduler: Any) -> None:
        """Refine the noise of a sampling that starts with this call."""
        self._give_back()
        model = self._model()
        factor = 1000.0 / self._family.flow_time if isinstance(model.schedule, Flow) else 1.0
        if step := StepTracker().read(said["timestep"], scheduler, factor).step:
            raise InputError(
                f"this sampling starts at step {step + 1} from an image, and only pure noise can "
                "be refined: leave the refiner out of image to image"
            )
        start = float(getattr(scheduler, "init_noise_sigma", 1.0))
        takes = inspect.signature(self.pipe.__call__).parameters
        if start != 1 and not {"latents", "image"} & takes.keys():
            raise InputError(
                f"{type(self.pipe).__name__} starts from noise of size 1 where its "
                f"{type(scheduler).__name__} means {start:.3g}, so that it samples wrongly by "
                "itself: give it a scheduler such as DDIMScheduler"
            )
        self._gain = _gain(scheduler)
        whole = said[self._family.sample]
        halves = self._family.conditions_in_batch(self.pipe, whole)
        check_halves(whole, halves, type(self.pipe).__name__)
        size = len(whole) // len(halves)
        parts = {name: slice(i * size, (i + 1) * size) for i, name in enumerate(halves)}
        with torch.no_grad():
            x, cond = model.cond(said)
            conds = {name: rows_of(cond, rows, len(whole)) for name, rows in parts.items()}
            if self.refine.null and "null" not in conds:
                raise InputError(
                    f"{self.refine!r} asks for the null prompt, which this call does not send: "
                    "call the pipeline with guidance_scale > 1, steered by CFG(1) for no guidance"
                )
            noise = upcast(x[parts["cond"]]) / (start * self._gain)
            if refined_before(self.network, noise):
                warnings.warn(
                    "this noise was refined before: sample it without the refiner, or hand the "
                    "pipeline the noise as it was drawn",
                    stacklevel=2,
                )
            refined = [
                self.refine(noise[part], rows_of(conds, part, size), model)
                for part in chunks(size, self.max_rows)
            ]
            self._shift = start * self.strength * (torch.cat(refined) - noise)
        self._timesteps = scheduler.timesteps
        self._watch(scheduler)

    def _watch(self, scheduler: Any) -> None:
        """Give the scheduler's next step the refined sample, and let the rest of them be."""
        own, step = scheduler.__dict__.get("step"), scheduler.step

        @wraps(step)  # pipelines look at its signature for whether to send generators
        def first(model_output: Any, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
            assert self._shift is not None
            n, m = len(self._shift), len(sample)
            if m % n:
                raise InputError(
                    f"{type(self.pipe).__name__} calls its network with {n} rows for {m} samples: "
                    "switch off what else it guides by (PAG) while noise is refined, or take the "
                    "plain pipeline"
                )
            sample = self._moved(sample, self._shift)
            self._give_back()
            return step(model_output, timestep, sample, *args, **kw)

        def give_back() -> None:
            self._shift, self._give_back = None, _nothing
            if scheduler.__dict__.get("step") is not first:
                return  # whoever watched before took it back already
            del scheduler.step
            if own is not None:
                scheduler.step = own

        self._give_back = give_back
        scheduler.step = first

    def _moved(self, whole: Tensor, shift: Tensor) -> Tensor:
        """Move the channels of a sample that are denoised, in each half of the batch."""
        n, dim = shift.shape[1], 1
        if self._family.packed:
            n, dim = shift.shape[-1], -1
        moved = whole.clone()
        part = moved.narrow(dim, 0, n)
        times = len(whole) // len(shift)
        part.copy_(upcast(part) + shift.repeat(times, *[1] * (shift.ndim - 1)))
        return moved


def refine(pipe: Any, noise: Tensor, prompts: list[str], by: Refine, **call: Any) -> Tensor:
    """Refine noise for prompts, without sampling; sampling it for others warns.

    Args:
        pipe: A pipeline with prompts.
        noise: Unit Gaussian noise, `(B, *D)`, as `latents=` of the pipeline.
        prompts: One a row.
        by: A `NoiseRefiner` of this pipeline, or an `NLG`.
        call: What else the pipeline will be called with, such as height and width.

    Raises:
        ValueError: a prompt is empty, there are not as many as rows, the pipeline is steered, or it
            would sample noise of another shape.
    """
    check_free(network_of(pipe))
    require_prompts(prompts)
    if len(prompts) != len(noise):
        raise InputError(f"{len(prompts)} prompts for {len(noise)} rows of noise: give one each")
    shape = noise.shape[1:]
    conds = {"cond": conditions(pipe, prompts, shape, **call)}
    if by.null:
        conds["null"] = conditions(pipe, [""] * len(prompts), shape, **call)
    model = Model.of(
        pipe, unwrap_compiled(network_of(pipe)).forward
    )  # past what looks at samplings
    with torch.no_grad():
        refined = by(noise, conds, model).to(noise.dtype)
    remember(pipe, noise, refined, conds["cond"])
    return refined


def opened(refiner: Refine | str | Path, pipe: Any) -> tuple[Refine, Callable[[], None]]:
    """Make what refines, and what takes it out of the pipeline again where it was put there here.

    Args:
        refiner: Folder, hub id, text of an `NLG`, or what refines itself.
        pipe: The pipeline.

    Raises:
        ValueError: it belongs to another pipeline, or as `NoiseRefiner.load`.
    """
    if isinstance(refiner, str | Path):
        if str(refiner).startswith(NLG.__name__):
            return parse(str(refiner), TrainingFreeRefiner), _nothing
        loaded = NoiseRefiner.load(refiner, pipe)
        return loaded, loaded.remove
    if isinstance(refiner, NoiseRefiner) and refiner.model.network is not unwrap_compiled(
        network_of(pipe)
    ):
        raise InputError("this refiner was loaded for another pipeline: load it for this one")
    return refiner, _nothing


def _gain(scheduler: Any) -> float:
    """Factor by which a scheduler scales the sample before the network sees it at the start."""
    scale = getattr(scheduler, "scale_model_input", None)
    return 1.0 if scale is None else float(scale(torch.ones(1), scheduler.timesteps[0]))


def _nothing() -> None:
    pass

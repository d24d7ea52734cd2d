"""Guidance at the scheduler's step, for pipelines whose calls of their network no table describes.

Every call of a network is answered with a probe (`step_calls`). When the pipeline steps its
scheduler, all conditions are known; the guidance is evaluated then, and the scheduler steps by its
output. What the pipeline does to the sum of both conditions (a scale, a norm) has no effect. A
pipeline whose model output is not made of the probes is refused before anything is guided.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.schedule import Flow, Schedule
from diffsteer.guidance import Guidance
from diffsteer.guidance.denoiser import Cond, Denoiser, Network
from diffsteer.guidance.memory import Store
from diffsteer.guidance.sag import SAG
from diffsteer.hf.adapters import adapted
from diffsteer.hf.architectures import blocks_with_attention, by_sdpa, check_branch, text_attention
from diffsteer.hf.guided import seeds_of
from diffsteer.hf.hooks import plain_forward, replaced
from diffsteer.hf.image_tokens import Located, MeasuredLayers
from diffsteer.hf.network import PARTS, bind_arguments, claimed, uncompiled, unwrap_compiled
from diffsteer.hf.null_call import NullCall
from diffsteer.hf.runs import Runs
from diffsteer.hf.second_text import pair_of
from diffsteer.hf.step_calls import Call, Clock, Form, Part, parts_of, probe, tensor_of
from diffsteer.hf.timesteps import (
    FLOW_TIMESTEPS,
    StepTracker,
    level_at,
    next_level,
    timestep_schedule,
)

MOST_CALLS = 2
"""Most calls of networks in a step: one for each condition."""


class StepGuidance:
    """Guides the networks of a pipeline at the steps of its scheduler, as a context.

    Args:
        pipe: The pipeline.
        guidance: What guides.
        guide: For autoguidance, a second network for the same latents and conditions.
        max_rows: Most samples of one pass of a network.
        runs: Follows the runs of the pipeline, and says when one ends.
        null: The null prompt, where the pipeline sends none and is given no negative prompt.
    """

    def __init__(
        self,
        pipe: Any,
        guidance: Guidance,
        guide: Any = None,
        max_rows: int | None = None,
        runs: Runs | None = None,
        null: str = "",
    ) -> None:
        self.pipe, self.guidance, self.guide, self.max_rows = pipe, guidance, guide, max_rows
        self._runs, self.active = runs or Runs(pipe, {}), False
        self._runs.ended = self.end
        self._null, self._first = NullCall(pipe, null), list[Call]()
        self._evaluating = self._tapping = False
        self._outputs: dict[Any, tuple[Tensor, Tensor]] = {}
        self._scheduler = pipe.scheduler
        self._tracker = StepTracker()
        self._forms: dict[Any, Form] = {}
        self._probes: dict[Any, Tensor] = {}
        self._layers: dict[Any, Located] = {}
        self._inside: dict[int, tuple[dict[str, nn.Module], dict[str, nn.Module]]] = {}
        self._calls: list[Call] = []
        self._parts: dict[str, Part] = {}
        self._seeds: tuple[int, ...] = ()
        self._memory = Store()
        self._clock = Clock()
        self._replaced = ExitStack()

    def __enter__(self) -> "StepGuidance":
        timestep_schedule(self._scheduler)  # may be one that cannot be steered
        if self.guide is not None:
            check_guide(networks_of(self.pipe)[0], self.guide)
        for network in networks_of(self.pipe):
            self._replaced.enter_context(claimed(network))
            original = plain_forward(network)
            forward = wraps(original)(partial(self._answer, network, original))
            self._replaced.enter_context(replaced(network, "forward", forward))
        if (noting := self._null.noting()) is not None:
            self._replaced.enter_context(noting)
        original = self._scheduler.step
        step = wraps(original)(partial(self._step, original))  # pipelines look at parameters
        self._replaced.enter_context(replaced(self._scheduler, "step", step))
        self.active = True
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._replaced.close()
        self.active = False
        self.end(failed=kind is not None)

    def end(self, failed: bool = False) -> None:
        """End a run of the pipeline, in which a step follows every call of a network."""
        calls, self._calls = self._calls, []
        if calls and not failed:
            raise self._refused("ended without a step of its scheduler after its network's call")

    def _answer(self, network: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for a network's forward: note the call and answer it with a probe."""
        if self._evaluating:  # called by ourselves, so that hooks of the network act
            return forward(*args, **kwargs)
        if self._null.repeating:
            self._null.reach(Call.read(network, bind_arguments(network, args, kwargs)))
        self._check(network)
        call = Call.read(network, bind_arguments(network, args, kwargs))
        form = self._forms.get(call.key)
        if form is None or stateful(call.arguments):
            output = forward(*args, **kwargs)
            form = self._forms[call.key] = Form.of(output)
            call.out = tensor_of(output)
        call.probe = self._probe(call, form)
        self._calls.append(call)
        return form.wrap(call.probe.clone())  # a pipeline may change its answer in place

    def _probe(self, call: Call, form: Form) -> Tensor:
        """Answer to a call, drawn once for each form."""
        second, device = bool(self._calls), call.inputs.device
        key = call.key, second, device
        if key not in self._probes:
            self._probes[key] = probe(form, second).to(device)
        return self._probes[key]

    def _check(self, network: Any) -> None:
        """Check that a call can be answered, and begin anew where a sampling begins."""
        self._runs.check()
        cache = type(getattr(network, "_cache_config", None)).__name__
        if cache not in ("NoneType", "PyramidAttentionBroadcastConfig"):
            raise self._refused(
                f"has a cache of its network's blocks ({cache}), which is kept for the order of "
                "calls of the pipeline: call disable_cache() on the network"
            )
        if self._tracker.follow(self._scheduler):
            self._calls, self._first, self._parts, self._clock = [], [], {}, Clock()
            self._null.begin()
        if len(self._calls) == MOST_CALLS:
            raise self._refused(f"calls its network more than {MOST_CALLS} times in a step")

    def _step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for the scheduler's step: give it the guided output."""
        calls, self._calls = self._calls, []
        if not calls:
            return step(*args, **kwargs)
        given = inspect.signature(step).bind(*args, **kwargs)
        timestep, sample = given.arguments["timestep"], given.arguments["sample"]
        output = given.arguments["model_output"]
        frames = folded_frames(calls[0], sample)
        try:
            parts = parts_of(calls, unfolded(output, frames), unfolded(sample, frames))
        except InputError as error:
            raise self._refused(str(error)) from error
        self._first = self._first or calls
        self._parts = self._with_null(parts)
        guided = self._guided(self._parts, calls, timestep)
        guided = guided if frames is None else guided.transpose(1, 2).flatten(0, 1)
        given.arguments["model_output"] = guided.to(output.dtype)
        return step(*given.args, **given.kwargs)

    def _with_null(self, parts: dict[str, Part]) -> dict[str, Part]:
        """Conditions, with the null prompt of an earlier step where the pipeline left it out."""
        null = self._parts.get("null")
        if "null" in parts or null is None or null.call.module is not parts["cond"].call.module:
            return parts
        return {**parts, "null": null}

    def _null_part(self, cond: Part) -> Part:
        """Null prompt of a pipeline that does not send it."""
        null = self._null.of(self._first[0], cond.call)
        null.time = cond.call.time
        return replace(cond, call=null)

    def _guided(self, parts: Mapping[str, Part], calls: list[Call], timestep: Any) -> Tensor:
        """Guided model output, `(B, *D)`, in float32 or wider."""
        schedule, prediction = timestep_schedule(self._scheduler)
        step = self._tracker.read(timestep, self._scheduler)
        n = self._count(schedule)
        for call in calls:
            call.time = float(step.time)
            self._clock.see(call.arguments, call.time, n)
        level, x = self._level(schedule, float(step.time)), upcast(parts["cond"].sample)
        if self.max_rows is not None and len(x) > self.max_rows:
            raise self._refused(f"samples {len(x)} at once, more than max_rows={self.max_rows}")
        if any(isinstance(part, SAG) for part in self.guidance.parts()):
            self._check_frames(parts["cond"], x)
        if step.first or len(self._seeds) != len(x):
            self._seeds = seeds_of(x)
        if step.first:
            self._memory = Store()
        nets = {"main": self._network(None, level, schedule, parts["cond"])}
        if self.guide is not None:
            nets["guide"] = self._network(self.guide, level, schedule, parts["cond"])
        denoiser = Denoiser(
            nets,
            Conditions(parts, float(step.time), self._null_part),
            prediction,
            self.guidance,
            schedule=schedule,
            seeds=self._seeds,
            step=step.step,
            next=next_level(self._tracker, step.step, partial(self._level, schedule)),
            memory=self._memory,
        )
        if step.first:
            self._dry_run(replace(denoiser, seeds=None), x[:1])
        base, shift = denoiser.predict(x, level)
        self._outputs = {}
        assert shift is not None
        out = self._direction * (base.out + prediction.output_shift(shift, level))
        return out if base.variance is None else torch.cat([out, base.variance], dim=1)

    def _dry_run(self, denoiser: Denoiser, x: Tensor) -> None:
        """Ask all that later steps will ask, so that what is missing shows before the first."""
        assert denoiser.schedule is not None
        for step, time in self._tracker.remaining():
            level = self._level(denoiser.schedule, time)
            denoiser.prediction.x0(x, x, level)  # the output has to fix x0
            ahead = next_level(self._tracker, step, partial(self._level, denoiser.schedule))
            replace(denoiser, step=step, next=ahead).dry_run(x, level)

    @property
    def _inverted(self) -> bool:
        """Whether the timesteps of a flow run from data to noise (Mochi)."""
        return bool(self._scheduler.config.get("invert_sigmas"))

    @property
    def _direction(self) -> float:
        """Factor of the scheduler's model output in the prediction."""
        return -1.0 if self._inverted else 1.0

    def _count(self, schedule: Schedule) -> float:
        """Timestep of the scheduler at the noisy end."""
        flow = isinstance(schedule, Flow)
        n = self._scheduler.config.get("num_train_timesteps", FLOW_TIMESTEPS)
        return float(n if flow else schedule.last)

    def _level(self, schedule: Schedule, time: float) -> Level:
        n = self._count(schedule)
        time = n - time if self._inverted else time
        time = time / n * FLOW_TIMESTEPS if isinstance(schedule, Flow) else time
        return level_at(schedule, torch.tensor(time, dtype=torch.float64))

    def _time(self, schedule: Schedule, level: Level) -> float:
        """Timestep of the scheduler at a level."""
        n = self._count(schedule)
        time = float(level.t) * (n if isinstance(schedule, Flow) else 1.0)
        return n - time if self._inverted else time

    def _network(self, network: Any, now: Level, schedule: Schedule, cond: Part) -> Network:
        """A network for the engine; None is the one that was called."""
        n, layers = self._count(schedule), self._measured(network, cond)
        module = unwrap_compiled(network or cond.call.module)
        if id(module) not in self._inside:
            self._inside[id(module)] = blocks_with_attention(module), text_attention(module)

        def evaluate(x: Tensor, level: Level, cond: Mapping[str, Any]) -> Tensor:
            part: Part = cond["part"]
            arguments = part.call.arguments
            if level is not now or part.call.time != cond["time"]:
                time = self._time(schedule, level)
                arguments = self._clock.told(arguments, time, part.call.time, n)
            out = self._output(part, x, arguments, network)
            return self._direction * part.model_output(out)

        return Network(
            evaluate,
            layers,
            by_sdpa,
            touched=self._touched,
            place=lambda cond: (cond["part"].rows.start, len(cond["part"].call.inputs)),
            locate=layers.tokens,
            adapted=partial(adapted, module),
            check=partial(check_branch, module, layers),
            sizes=False,
            blocks=self._inside[id(module)][0],
            attention=self._inside[id(module)][1],
            second=pair_of,
        )

    def _measured(self, network: Any, part: Part) -> MeasuredLayers:
        """Layers of a network that attend from image to image, for calls of this form."""
        call, module = part.call, unwrap_compiled(network or part.call.module)

        def run(x: Tensor) -> None:
            with self._touched():
                self._output(part, x, call.arguments, network)

        form = id(module), call.key
        known = self._layers
        return MeasuredLayers(
            module, run, part.sample, len(call.inputs), call.arguments, known, form
        )

    def _output(self, part: Part, x: Tensor, arguments: Mapping[str, Any], network: Any) -> Tensor:
        """Output for all conditions of a call, evaluated once for the same samples."""
        call = part.call
        plain = not self._tapping and arguments is call.arguments
        key = call, x.data_ptr(), network
        if (network is not None or self._tapping) and stateful(call.arguments):
            raise self._refused(
                "keeps a cache of the network's keys and values in its calls, which guides and "
                "changes inside of the network would spoil; switch that off (use_kv_cache=False)"
            )
        if plain and key in self._outputs:
            return self._outputs[key][1]
        if plain and network is None and call.out is not None and torch.equal(x, part.sample):
            return call.out
        self._evaluating = True
        try:
            out = part.output(x, arguments, network)
        finally:
            self._evaluating = False
        if plain:
            self._outputs[key] = x, out  # the samples are kept, and so their place
        return out

    @contextmanager
    def _touched(self) -> Iterator[None]:
        """Evaluate anew what is changed inside of a network, and by code that is not compiled."""
        self._tapping = True
        try:
            with uncompiled():
                yield
        finally:
            self._tapping = False

    def _check_frames(self, part: Part, x: Tensor) -> None:
        """Check that the frames of a video come after its channels, where SAG blurs each frame."""
        channels = getattr(unwrap_compiled(part.call.module).config, "in_channels", None)
        if x.ndim == 5 and x.shape[2] == channels:
            raise self._refused(
                f"has samples {tuple(x.shape[1:])} of {channels} channels, whose frames SAG cannot "
                "tell: take PAG or SEG, or another number of frames; with SAG"
            )

    def _refused(self, reason: str) -> InputError:
        return InputError(f"{type(self.pipe).__name__} {reason}: it cannot be steered so")


class Conditions(dict[str, Cond]):
    """Conditions of a step by name; the null prompt is made when it is asked for.

    Args:
        parts: Those that the pipeline sent.
        time: Timestep of the scheduler.
        null: Makes the null prompt's part of that of the prompt.
    """

    def __init__(
        self, parts: Mapping[str, Part], time: float, null: Callable[[Part], Part]
    ) -> None:
        super().__init__({name: {"part": part, "time": time} for name, part in parts.items()})
        self._null = null

    @override
    def __contains__(self, name: object) -> bool:
        return name == "null" or super().__contains__(name)

    def __missing__(self, name: str) -> Cond:
        cond = self["cond"]
        self[name] = {**cond, "part": self._null(cond["part"])}
        return self[name]


def folded_frames(call: Call, sample: Tensor) -> int | None:
    """Frames of a video that the scheduler's sample holds as its batch, or None."""
    shape = call.inputs.shape
    folded = len(shape) == sample.ndim + 1 == 5 and shape[1] == sample.shape[1]
    return shape[2] if folded and len(sample) % shape[2] == 0 else None


def unfolded(x: Tensor, frames: int | None) -> Tensor:
    """Samples of a video, `(B, C, F, H, W)`, of `(B F, C, H, W)`."""
    return x if frames is None else x.reshape(-1, frames, *x.shape[1:]).transpose(1, 2)


def check_guide(network: Any, guide: Any) -> None:
    """Check that a guide takes what the network takes: it is of its class, with its inputs."""
    main, other = unwrap_compiled(network), unwrap_compiled(guide)
    if type(main) is not type(other):
        raise InputError(
            f"the guide is a {type(other).__name__}, the network a {type(main).__name__}: both "
            "have to take the same latents and conditions"
        )
    for name, value in main.config.items():
        inputs = name.endswith("channels") or "text" in name or "cross" in name or "joint" in name
        if inputs and other.config.get(name) != value:
            raise InputError(
                f"the guide has {name}={other.config.get(name)}, the network {name}={value}: both "
                "have to take the same latents and conditions"
            )


def stateful(arguments: Mapping[str, Any]) -> bool:
    """Whether a call hands the network a cache that it changes."""
    return any("cache" in name and value is not None for name, value in arguments.items())


def networks_of(pipe: Any) -> list[Any]:
    """All denoising networks of a pipeline."""
    return [network for name in PARTS if (network := getattr(pipe, name, None)) is not None]

"""Guidance of the networks of a pipeline, at the steps of its scheduler.

Every call of a network is answered with a probe (`probes`). When the pipeline steps its
scheduler, all conditions are known (`conditions`); the guidance is evaluated then, and the
scheduler steps by its output (`guided_output`). What the pipeline does to the sum of both
conditions (a scale, a norm) has no effect. A pipeline whose model output is not made of the probes
is refused before anything is guided.

A network of a known family that is called outside of its pipeline, in a loop of one's own, is
answered with the guided output itself.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial, wraps
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance import Guidance
from diffsteer.hf.conditions import Part, StepParts, no_part
from diffsteer.hf.earlier_null import null_at_step
from diffsteer.hf.families import known_family, patch_of
from diffsteer.hf.guide_fit import check_guide
from diffsteer.hf.guided_output import GuidedOutput, LazyConditions
from diffsteer.hf.hooks import plain_forward, replaced, wrapped
from diffsteer.hf.known_family_call import BatchedCall, conditions_in_batch, counting_processor
from diffsteer.hf.network import (
    bind_arguments,
    check_uncached,
    claimed,
    networks_of,
    unwrap_compiled,
)
from diffsteer.hf.null_call import NullCall, null_of
from diffsteer.hf.probed_calls import MOST_CALLS, Call, both_stepped, certain
from diffsteer.hf.probes import Probes
from diffsteer.hf.runs import Runs
from diffsteer.hf.sample_placement import fitted
from diffsteer.hf.second_step import SecondStep, step_arguments
from diffsteer.hf.time_arguments import Now, Timeline
from diffsteer.hf.timesteps import SamplingStep, StepTracker


class StepGuidance:
    """Context in which the networks of a pipeline are guided, at the steps of its scheduler.

    Args:
        pipe: The pipeline.
        guidance: What guides.
        guide: For autoguidance, a second network for the same latents and conditions.
        max_rows: Most rows of one pass of a network.
        runs: Follows the runs of the pipeline, and says when one ends.
        null: The null prompt of pipelines that do not send it.

    Attributes:
        active: Whether it guides.
        stepped: Called after each step.
    """

    def __init__(
        self,
        pipe: Any,
        guidance: Guidance,
        guide: Any,
        max_rows: int | None,
        runs: Runs | None = None,
        null: str = "",
    ) -> None:
        self.pipe, self._owner = pipe, type(pipe).__name__
        self._runs = runs or Runs(pipe, {})
        self._runs.ended = self.end
        self.active = False
        self.stepped: Callable[[], None] = lambda: None
        if guide is not None:
            check_guide(networks_of(pipe)[0], guide)
        self._guided = GuidedOutput(self._owner, guidance, guide, max_rows, patch_of(pipe))
        self._tracker = StepTracker()
        self._timeline: tuple[Any, Timeline] | None = None
        self._probes = Probes()
        self._calls: list[Call] = []
        self._measured: StepParts | None = None
        self._parts: Mapping[str, Part] = {}
        self._second = SecondStep(self._owner)
        self._null: NullCall | None = null_of(pipe, null)
        self._replaced, self._awaited, self._awaiting = ExitStack(), ExitStack(), False

    def __enter__(self) -> "StepGuidance":
        for network in networks_of(self.pipe):
            self._replaced.enter_context(claimed(network))
            original = plain_forward(network)
            forward = wraps(original)(partial(self._answer, network, original))
            self._replaced.enter_context(replaced(network, "forward", forward))
        if self._null is not None:
            for noting in self._null.repeated.noting():
                self._replaced.enter_context(noting)
        self.active = True
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._replaced.close()
        self.active = False
        if self._null is not None:
            self._null.repeated.end()
        self.end(failed=kind is not None)

    def end(self, failed: bool = False) -> None:
        """End a run of the pipeline, in which a step follows every call of a network."""
        calls = self._calls
        self._release()
        self._guided.end()
        self._second.end(failed)
        if calls and not failed:
            raise InputError(
                f"{self._owner} called its network and then not scheduler.step, where the guidance "
                "acts: it ended without a step of its scheduler"
            )

    def _answer(self, network: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for a network's forward: note the call and answer it with a probe."""
        evaluate = partial(forward, *args, **kwargs)
        if self._guided.batches.evaluating:  # called by ourselves, so that hooks of the network act
            return evaluate()
        if self._null is not None and self._null.repeated.repeating:
            call = Call.read(network, bind_arguments(network, args, kwargs))
            call, answer = self._probes.answered(call, bool(self._null.repeated.calls), evaluate)
            self._null.repeated.reach(call)
            return answer()
        in_run = self._runs.check() or hasattr(self.pipe, "update_components")
        starts = self._check(network)
        call = Call.read(network, bind_arguments(network, args, kwargs))
        module = unwrap_compiled(network)
        if starts and known_family(module) is not None and counting_processor(module):
            conditions_in_batch(self.pipe, module, call.inputs, call.arguments)  # which is refused
        if not in_run and certain(call) and (form := self._probes.form(call)) is not None:
            return form.wrap(self._at_once(call))
        call, answer = self._probes.answered(call, bool(self._calls), evaluate)
        self._calls.append(call)
        self._await(self._guide)
        return answer()

    def _check(self, network: Any) -> bool:
        """Check that a call can be answered; begins anew, and returns whether a sampling begins."""
        if phi := getattr(self.pipe, "guidance_rescale", None):
            raise InputError(
                f"guidance_rescale={phi} of the pipeline would act on top of this guidance: leave "
                "it at 0 and write .rescaled(phi)"
            )
        if starts := self._tracker.follow(self.pipe.scheduler):
            self._release()
            self._measured, self._parts = None, {}
            guide = self._guided.guide
            for each in (*networks_of(self.pipe), *([] if guide is None else [guide])):
                check_uncached(self._owner, each)
            self._guided.begin(network)
            if self._null is not None:
                self._null.repeated.note()
        self._scheduler_timeline()  # of a scheduler that can be steered
        self._second.end()
        if len(self._calls) == MOST_CALLS:
            raise InputError(
                f"{self._owner} calls its network more than {MOST_CALLS} times a step, for the "
                "prompt and the null prompt: switch off what else it guides by (skipped layers, "
                "isolated modalities, in every guider of it) while it is steered"
            )
        return starts

    def _scheduler_timeline(self) -> Timeline:
        """Timeline of the scheduler; read once for each config."""
        config = self.pipe.scheduler.config
        if self._timeline is None or self._timeline[0] is not config:
            self._timeline = config, Timeline.of(self.pipe.scheduler)
        return self._timeline[1]

    def _now(self, step: SamplingStep) -> Now:
        timeline = self._scheduler_timeline()
        return Now(timeline, step, self._tracker, timeline.level(float(step.time)))

    def _await(self, act: Callable[..., Any]) -> None:
        """Let the next step of the scheduler be `act`, and all others its own.

        Pipelines copy the state of their scheduler between the steps, which must not hold it.
        """
        if self._awaiting:
            return
        self._awaited.enter_context(wrapped(self.pipe.scheduler, "step", act))
        self._awaiting = True

    def _release(self) -> None:
        self._awaited.close()
        self._awaiting, self._calls = False, []

    def _guide(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for the scheduler's step: give it the guided output."""
        try:
            return self._guided_step(step, *args, **kwargs)
        finally:
            if not (self._second.awaited or self._awaiting):
                self.stepped()

    def _guided_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls = self._calls
        self._release()
        given = step_arguments(self.pipe.scheduler, *args, **kwargs)
        output, sample = given.arguments["model_output"], given.arguments["sample"]
        if both_stepped(calls, sample):
            self._calls = calls
            self._await(self._guide)
            return step(*args, **kwargs)
        measure = StepParts.of if self._measured is None else self._measured.next
        try:
            self._measured = measured = measure(calls, output, sample)
        except InputError as error:
            raise InputError(f"{self._owner} {error}") from error
        time = self._tracker.read(given.arguments["timestep"], self.pipe.scheduler)
        x = measured.folding.unfolded(sample)
        self._check_sample(measured.parts["cond"], x, output, float(time.time))
        whole = {name: part.whole for name, part in measured.parts.items()}
        now = self._now(time)
        guided = self._guided(self._conditions(whole), calls, now)
        if calls[0].second:
            self._second.await_step(self.pipe, calls, measured.parts, guided, self.stepped)
            guided = measured.parts["cond"].given(guided)
        guided = measured.folding.folded(measured.parts["cond"].with_sample(guided, x))
        for name in ("model_output", "pred_original_sample"):
            if given.arguments.get(name) is not None:
                given.arguments[name] = guided.to(output.dtype)
        return step(*given.args[1:], **given.kwargs)

    def _check_sample(self, cond: Part, x: Tensor, output: Tensor, time: float) -> None:
        """Check that a model output that holds the sample is x0 or eps of the network's output."""
        scale = fitted(cond.sample, [x]) if cond.held else None
        if cond.held and not (
            scale and self._scheduler_timeline().holds(cond.held / (scale[0] * cond.scale), time)
        ):
            raise InputError(f"{self._owner} {no_part(output, cond.call.probe)}")

    def _conditions(self, parts: Mapping[str, Part]) -> LazyConditions:
        """Conditions, with the null prompt of an earlier step where the pipeline left it out."""
        cond, null = parts["cond"], self._parts.get("null")
        if "null" not in parts and null is not None and null.call.module is cond.call.module:
            parts = {**parts, "null": null_at_step(null, self._parts["cond"], cond)}
        self._parts = parts
        if self._null is not None:
            self._null.see(cond.call)
        if "null" in parts or self._null is None:
            return LazyConditions(parts)
        return LazyConditions({**parts, "null": partial(self._null_part, cond)})

    def _null_part(self, cond: Part) -> Part:
        """Null prompt of a pipeline that does not send it."""
        assert self._null is not None
        return replace(cond, call=self._null.of(cond.call))

    def _at_once(self, call: Call) -> Tensor:
        """Guided output for a call from outside of the pipeline, in a loop of one's own."""
        arguments = {**call.arguments, call.name: call.inputs}
        read = BatchedCall.of(self.pipe, call.module, call.module.forward, arguments, in_run=False)
        parts = {name: Part(call, read.rows(name)) for name in read.batch.names}
        now = self._now(read.step(self._tracker))
        if now.step.first:  # where no run ends
            self._guided.end()
        out = self._guided(self._conditions(parts), [call], now)
        self._release()
        self._await(partial(self._step_from, out))
        return read.batch.repeated(out.to(call.inputs.dtype))

    def _step_from(self, out: Tensor, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for the scheduler's step after an answer: check that it is given the answer."""
        self._release()
        output = step_arguments(self.pipe.scheduler, *args, **kwargs).arguments["model_output"]
        if output.shape == out.shape and fitted(output, [out.to(output)]) is None:
            raise InputError(
                f"{self._owner} does not give its scheduler what its network answers, but changes "
                "it, by guidance of its own, which would act on top of this one: switch that off"
            )
        return step(*args, **kwargs)

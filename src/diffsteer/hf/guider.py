"""Guidances in pipelines of diffusers that have a guider: modular ones, HunyuanImage and others.

    pipe.update_components(guider=SteerGuider("CFG(6) + SAG(0.75)", pipe.scheduler))

diffusers runs each condition as a pass of its own and adds up the answers. Here the calls of a
step are only noted, and all that the guidance asks for runs at the scheduler's step, as in `steer`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.guidance import Guidance
from diffsteer.hf.network import network_of
from diffsteer.hf.runs import caller
from diffsteer.hf.step_guidance import StepGuidance


class SteerGuider(BaseGuidance):  # type: ignore[misc]
    """Any sum of guidances as a guider, for all modular pipelines and others that have a guider.

    `disable()` leaves the prompt's prediction, until `enable()`; pipelines of Stable Diffusion XL
    enable their guider in every call.

    Its config is the text of the guidance and `max_rows`; scheduler and guide are set anew after
    loading. If a step fails, the network stays wrapped until the pipeline is called again or the
    guider is disabled.

    Args:
        guidance: A guidance or its text.
        scheduler: The pipeline's, which knows noise levels and prediction type.
        guide: For autoguidance, a second network for the same latents and conditions, or a pipeline
            that holds one.
        max_rows: Most rows of one pass of a network.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012
    ignore_for_config = ["scheduler", "guide"]  # noqa: RUF012
    spatio_temporal_guidance_blocks = None  # asked for by pipelines of LTX-2

    def __init__(
        self,
        guidance: str | Guidance,
        scheduler: Any = None,
        guide: Any = None,
        max_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.guidance = parse(guidance, Guidance) if isinstance(guidance, str) else guidance
        self.register_to_config(guidance=repr(self.guidance), max_rows=max_rows)
        self.scheduler, self.guide, self.max_rows = scheduler, guide, max_rows
        self._steps: StepGuidance | None = None
        self._guided: Any = None
        self._active = ExitStack()

    @override
    def new(self, **kwargs: Any) -> "SteerGuider":
        """A copy with other settings."""
        made: SteerGuider = type(self).from_config(self.config, **kwargs)
        made.scheduler = kwargs.get("scheduler", self.scheduler)
        made.guide = kwargs.get("guide", self.guide)
        return made

    @property
    @override
    def is_conditional(self) -> bool:
        """Whether the prompt's call is the next."""
        return bool(self._count_prepared == 1)

    @property
    @override
    def num_conditions(self) -> int:
        """Calls of the network in a step, for which the pipeline prepares; most are noted only."""
        return 2 if self._enabled else 1

    def active_predictions(self) -> list[str]:
        """Names of the conditions, which pipelines of LTX-2 ask for."""
        return self._input_predictions[: self.num_conditions]

    @override
    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """Split what the pipeline has into the prompt's inputs and, if it has them, the null's."""
        names = self._begin(value for value in data.values() if isinstance(value, tuple))
        return [self._prepare_batch(data, i, name) for i, name in enumerate(names)]

    @override
    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """Split what the pipeline's state has, under pairs of names, in the same way."""
        fields = [value for value in input_fields.values() if isinstance(value, tuple)]
        names = self._begin([getattr(data, name, None) for name in pair[:2]] for pair in fields)
        prepare = self._prepare_batch_from_block_state
        return [prepare(input_fields, data, i, name) for i, name in enumerate(names)]

    def _begin(self, values: Iterable[Sequence[Any]]) -> list[str]:
        """Begin a step and return the names of its conditions."""
        pairs = [pair for pair in values if pair[0] is not None]
        both = self._enabled and pairs and all(null is not None for _, null in pairs)
        if self._enabled:
            self._guide_step(_running_pipeline())
        return self._input_predictions[: 2 if both else 1]

    def _guide_step(self, pipe: Any) -> None:
        """Guide the coming step of a pipeline's scheduler."""
        scheduler = pipe.scheduler
        if self.scheduler not in (None, scheduler):
            raise InputError(
                "the scheduler of this pipeline is another than that of its SteerGuider: give "
                "SteerGuider(guidance, pipe.scheduler), or set guider.scheduler"
            )
        if self._steps is None or self._guided != (pipe, scheduler):
            self._guided = pipe, scheduler
            guide = None if self.guide is None else network_of(self.guide)
            self._steps = StepGuidance(pipe, self.guidance, guide, self.max_rows)
            self._steps.stepped = partial(self._leave, failed=True)
        self._leave(failed=not self._step)  # the first step of a sampling
        self._active.enter_context(self._steps)

    def _leave(self, failed: bool) -> None:
        """Give networks and scheduler back; calls without a step raise unless the step failed."""
        if self._steps is not None and failed:
            self._steps.end(failed)
        self._active.close()

    @override
    def disable(self) -> None:
        self._leave(failed=True)
        super().disable()

    @override
    def __call__(self, data: list[Any]) -> GuiderOutput:
        """A sum of the answers, which the step will replace by the guided output."""
        cond, *null = (part.noise_pred for part in data)
        pred = 2 * cond - null[0] if null else cond
        return GuiderOutput(pred=pred, pred_cond=cond, pred_uncond=null[0] if null else None)


def _running_pipeline() -> Any:
    """The pipeline that calls a guider."""
    from diffusers import DiffusionPipeline, ModularPipeline

    pipe = caller(DiffusionPipeline | ModularPipeline, "components", "self")
    if pipe is None:
        raise InputError("SteerGuider is for pipelines of diffusers: it was called from none")
    return pipe

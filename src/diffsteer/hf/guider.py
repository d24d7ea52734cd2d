"""Guidances in modular pipelines of diffusers, which take a guider as a component.

    pipe.update_components(guider=SteerGuider("CFG(6) + SAG(0.75)", pipe.scheduler))

diffusers runs each condition as a pass of its own and adds up the answers. Here every call of the
network but the last of a step is only noted; the last one runs all that the guidance asks for.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.guidance import Guidance
from diffsteer.hf.call import NotedCalls
from diffsteer.hf.guided import Guided
from diffsteer.hf.hooks import plain_forward, replaced
from diffsteer.hf.layout import FirstStep
from diffsteer.hf.network import check_free, network_of


class SteerGuider(BaseGuidance):  # type: ignore[misc]
    """Any sum of guidances as a guider, for modular pipelines of Stable Diffusion XL and 3.

    `disable()` leaves the prompt's prediction, until `enable()`; pipelines of Stable Diffusion XL
    enable their guider in every call.

    Its config is the text of the guidance and `max_rows`; scheduler and guide are set anew after
    loading. If a ControlNet fails, the network stays wrapped until the pipeline is called again or
    `cleanup_models` is.

    Args:
        guidance: A guidance or its text.
        scheduler: The pipeline's, which knows noise levels and prediction type.
        guide: For autoguidance, a second network for the same latents and conditions, or a pipeline
            that holds one.
        max_rows: Most rows of one pass of a network.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012
    ignore_for_config = ["scheduler", "guide"]  # noqa: RUF012

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
        self._steered: tuple[NotedCalls, Guided] | None = None
        self._replaced, self._first = ExitStack(), FirstStep()
        self._conditions = 1

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

    @override
    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """Split what the pipeline has into the prompt's inputs and, if it has them, the null's."""
        pairs = [v for v in data.values() if isinstance(v, tuple) and v[0] is not None]
        both = self._enabled and pairs and all(null is not None for _, null in pairs)
        self._conditions = 2 if both else 1
        if self._steered is not None:
            self._steered[0].expect(self._conditions)
        names = self._input_predictions[: self._conditions]
        return [self._prepare_batch(data, i, name) for i, name in enumerate(names)]

    @override
    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """Refuse: the pipelines that ask so have networks that cannot be steered."""
        raise InputError(
            "modular pipelines that prepare inputs from the block state have networks that cannot "
            "be steered yet; those of Stable Diffusion XL and 3 can"
        )

    @override
    def prepare_models(self, denoiser: Any) -> None:
        """Take the next call of the network."""
        self.cleanup_models(denoiser)
        super().prepare_models(denoiser)
        if not self._enabled:
            return
        check_free(denoiser)
        if self.scheduler is None:
            raise InputError(
                "SteerGuider has to know the scheduler, which says what the network predicts: "
                "give SteerGuider(guidance, pipe.scheduler), or set guider.scheduler"
            )
        if self._steered is None or self._steered[0].module is not denoiser:
            guide = None if self.guide is None else network_of(self.guide)
            guided = Guided(denoiser, self.guidance, guide, self.max_rows)
            self._steered = NotedCalls(denoiser, plain_forward(denoiser)), guided
            self._steered[0].expect(self._conditions)
        self._steered[0].forward = plain_forward(denoiser)
        forward = partial(self._forward, denoiser, *self._steered)
        self._replaced.enter_context(replaced(denoiser, "forward", forward))

    @override
    def cleanup_models(self, denoiser: Any) -> None:
        """Give the network its forward back."""
        self._replaced.close()

    def _forward(
        self, denoiser: Any, reader: NotedCalls, guided: Guided, *args: Any, **kwargs: Any
    ) -> Any:
        """Stand in for one call of the network's forward."""
        self.cleanup_models(denoiser)
        call = reader.read(self.scheduler, args, kwargs)
        if call.pending is not None:
            return call.reply(call.pending)
        return self._first.answer(call, guided)

    @override
    def __call__(self, data: list[Any]) -> GuiderOutput:
        """The guided output, which is the answer to the last call."""
        return GuiderOutput(pred=data[-1].noise_pred, pred_cond=None, pred_uncond=None)

"""Guidances in modular pipelines of diffusers, which take a guider as a component.

    pipe.update_components(guider=SteerGuider("CFG(6) + SAG(0.75)", pipe.scheduler))

diffusers runs each condition as a pass of its own and adds up the answers. Here every call of the
network but the last of a step is only noted; the last one runs all that the guidance asks for, in
as few passes as `steer` takes, and with a second network and second questions, for which the
guiders of diffusers have no place.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.guidance import Guidance
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.guided import Guided
from diffsteer.hf.network import bind_arguments, check_free, network_of, put_back, returned


class SteerGuider(BaseGuidance):  # type: ignore[misc]
    """Any sum of guidances as a guider, for modular pipelines of Stable Diffusion XL and 3.

    `disable()` leaves the prompt's prediction, until `enable()`; pipelines of Stable Diffusion XL
    enable their guider in every call.

    Its config is the text of the guidance and `max_rows`, so that it can be saved; scheduler and
    guide are set anew after loading. If something else than the network fails between
    `prepare_models` and the call of the network (a ControlNet), the network stays wrapped until the
    pipeline is called again or `cleanup_models` is.

    Args:
        guidance: A guidance or its text.
        scheduler: The pipeline's. A guider is told the step and the timestep, but not the noise of
            it nor what the network predicts, both of which only the scheduler knows.
        guide: For autoguidance, a second network for the same latents and conditions, or a pipeline
            that holds one.
        max_rows: Most rows of one pass of a network.

    Raises:
        ValueError: the guidance cannot be read; at the first step: there is no scheduler, the
            network is of no known family or steered already, or the guide does not fit.
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
        self._guided: Guided | None = None
        self._undo: Callable[[], None] | None = None
        self._expected = 1
        self._calls: list[dict[str, Any]] = []

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
        there = self._enabled and pairs and all(null is not None for _, null in pairs)
        self._expected, self._calls = 2 if there else 1, []
        names = self._input_predictions[: self._expected]
        return [self._prepare_batch(data, i, name) for i, name in enumerate(names)]

    @override
    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """Not for these pipelines.

        Raises:
            ValueError: always: the pipelines that ask so have networks of families that cannot be
                steered.
        """
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
        if self._guided is None or self._guided.network is not denoiser:
            guide = None if self.guide is None else network_of(self.guide)
            self._guided = Guided(denoiser, denoiser.forward, self.guidance, guide, self.max_rows)
        self._guided.forward = denoiser.forward
        self._undo = partial(put_back, denoiser, denoiser.__dict__.get("forward"))
        denoiser.forward = partial(self._called, denoiser)

    @override
    def cleanup_models(self, denoiser: Any) -> None:
        """Give the network its forward back."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def _called(self, denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        """Stand in for one call of the network's forward."""
        self.cleanup_models(denoiser)
        guided = self._guided
        assert guided is not None
        said = bind_arguments(denoiser, args, kwargs)
        whole, as_dict = said.pop(guided.family.sample), said.pop("return_dict", True)
        self._calls.append(said)
        if len(self._calls) < self._expected:
            return returned(torch.zeros_like(whole), as_dict)
        conds: dict[str, Callable[[], Cond]] = {
            name: partial(dict, call)
            for name, call in zip(("cond", "null"), self._calls, strict=False)
        }
        tick = guided.tick(self.scheduler, said["timestep"])
        return returned(guided(whole, conds, self.scheduler, tick), as_dict)

    @override
    def __call__(self, data: list[Any]) -> GuiderOutput:
        """The guided output, which is the answer to the last call."""
        return GuiderOutput(pred=data[-1].noise_pred, pred_cond=None, pred_uncond=None)

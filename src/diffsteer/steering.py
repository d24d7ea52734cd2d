"""Guide an untouched diffusers pipeline.

    with steer(pipe, CFG(6).rescaled(0.7) + PAG(3)):
        image = pipe("a cat").images[0]

The network's `forward` is wrapped. A pipeline that guides sends both halves in one batch, or calls
the network for each, and computes null + s (cond - null); both halves are answered with the guided
prediction, so that this sum returns it whatever s is. Image to image, inpainting, ControlNet and
adapters come along.
"""

from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.parse import parse
from diffsteer.guidance import Guidance
from diffsteer.guidance.denoiser import Cond, rows_of
from diffsteer.hf.architectures import Halves, check_halves
from diffsteer.hf.guided import Guided
from diffsteer.hf.network import bind_arguments, check_free, network_of, put_back, returned
from diffsteer.hf.null_prompt import Prompts
from diffsteer.hf.scheduler_config import flows
from diffsteer.hf.timesteps import SamplingStep

if TYPE_CHECKING:
    from diffsteer.refine.hook import Refine


def steer(
    pipe: Any,
    guidance: Guidance | str | None = None,
    guide: Any = None,
    max_rows: int | None = None,
    null: str = "",
    zero_snr: bool = False,
    refiner: "Refine | str | Path | None" = None,
    strength: float = 1.0,
) -> "Steering":
    """Guide a pipeline until the handle is removed.

    Args:
        pipe: A diffusers pipeline. Its own guidance scale loses its meaning; where a guidance asks
            for the null prompt it has to be > 1, so that the pipeline sends it. Flux needs none.
        guidance: A guidance or its text, "CFG(6) + PAG(3)"; None leaves the pipeline's own.
        guide: For autoguidance, a second network, or a pipeline that holds one, for the same
            latents and conditions.
        max_rows: Most rows of one pass of a network, where memory is short.
        null: The null prompt of pipelines that do not send it (Flux), unless the call has a
            negative prompt.
        zero_snr: Sample on the schedule rescaled to zero terminal SNR, from its last timestep on,
            by our DDIM; for networks that were trained so and predict v or x0.
        refiner: Refines the noise that a sampling starts from: folder or hub id of a
            `NoiseRefiner`, or one that was loaded, or an `NLG` or its text.
        strength: Factor of what the refiner changes.

    Returns:
        A handle with `remove()`, also a context manager. Afterwards the pipeline is as it was.

    Raises:
        ValueError: the pipeline is of no known family, or steered, or the guide does not fit, or
            zero SNR has no meaning for its network.
    """
    if isinstance(guidance, str):
        guidance = parse(guidance, Guidance)
    idle = not zero_snr and refiner is None
    if guidance is None and (idle or guide is not None or max_rows is not None):
        raise InputError(
            'nothing to steer by: give a guidance, such as "CFG(6)", a refiner, or zero_snr=True'
        )
    if not isfinite(strength) or (refiner is None and strength != 1):
        raise InputError(
            f"strength={strength} is how much of what a refiner changes is taken: give a finite "
            "number, with a refiner"
        )
    steering = Steering(pipe, guidance, guide, max_rows, null, zero_snr)
    try:
        if refiner is not None:
            steering.refine_by(refiner, strength)
    except BaseException:
        steering.remove()
        raise
    return steering


class Steering:
    """A pipeline being steered; made by `steer`."""

    def __init__(
        self,
        pipe: Any,
        guidance: Guidance | None,
        guide: Any,
        max_rows: int | None,
        null: str,
        zero_snr: bool,
    ) -> None:
        self.pipe, self.guidance = pipe, guidance
        self._undo: list[Callable[[], None]] = []
        self._prompts: Prompts | None = None
        self._answered: tuple[Tensor, Tensor] | None = None
        self._sent: tuple[int, Halves] = (0, ())
        self._said_by_pipe = hasattr(type(pipe), "do_classifier_free_guidance")
        scheduler = zero_snr_scheduler(pipe) if zero_snr else None
        if guidance is not None:
            self._wrap(guidance, guide, max_rows, null)
        if scheduler is not None:
            self._undo.append(partial(setattr, pipe, "scheduler", pipe.scheduler))
            pipe.scheduler = scheduler

    def refine_by(self, refiner: "Refine | str | Path", strength: float) -> None:
        """Refine the noise of every sampling from now on."""
        from diffsteer.refine.hook import Refining, opened

        network = network_of(self.pipe)
        if self.guidance is None:
            check_free(network)
        forward, most = None, None
        if self.guidance is not None:
            forward, most = self._guided.forward, self._guided.max_rows
        refine, give_back = opened(refiner, self.pipe)
        self._undo.append(give_back)
        self._undo.append(Refining(self.pipe, refine, forward, strength, most).remove)

    def _wrap(self, guidance: Guidance, guide: Any, max_rows: int | None, null: str) -> None:
        network = self.network = network_of(self.pipe)
        check_free(network)
        second = None if guide is None else network_of(guide)
        check_prediction(self.pipe, guide)
        self._guided = Guided(network, network.forward, guidance, second, max_rows)
        if self._guided.family.encoded and hasattr(self.pipe, "encode_prompt"):
            self._prompts = Prompts(self.pipe, null, self._guided.family.encoded)
            self._undo.append(self._prompts.remove)
        self._undo.append(partial(put_back, network, network.__dict__.get("forward")))
        network.forward = self._steered

    def remove(self) -> None:
        """Give the pipeline back as it was."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> "Steering":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _steered(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the network's forward."""
        if getattr(self.pipe, "guidance_rescale", 0):
            raise InputError(
                f"guidance_rescale={self.pipe.guidance_rescale} of the pipeline would act on top "
                "of this guidance: leave it at 0 and write .rescaled(phi)"
            )
        said = bind_arguments(self.network, args, kwargs)
        whole, as_dict = said.pop(self._guided.family.sample), said.pop("return_dict", True)
        tick = self._guided.tick(self.pipe.scheduler, said["timestep"])
        if self._guided.family.encoded:
            answer = self._apart(whole, said, tick)
        else:
            answer = self._together(whole, said, tick)
        return returned(answer, as_dict)

    def _together(self, whole: Tensor, said: Cond, tick: SamplingStep) -> Tensor:
        """Answer a call that holds all conditions that there are."""
        new = tick.first or len(whole) != self._sent[0]
        if new or self._said_by_pipe:
            self._sent = (len(whole), self._guided.family.conditions_in_batch(self.pipe, whole))
        halves = self._sent[1]
        if new:
            check_halves(whole, halves, type(self.pipe).__name__)
        size = len(whole) // len(halves)
        parts = {name: slice(i * size, (i + 1) * size) for i, name in enumerate(halves)}
        conds: dict[str, Callable[[], Cond]] = {
            name: partial(rows_of, said, rows, len(whole)) for name, rows in parts.items()
        }
        half = self._guided(whole[parts["cond"]], conds, self.pipe.scheduler, tick)
        return torch.cat([half] * len(halves))

    def _apart(self, whole: Tensor, said: Cond, tick: SamplingStep) -> Tensor:
        """Answer a call for one of the prompts; what the first was answered serves the second."""
        if self._prompts is None:
            return self._guided(whole, {"cond": lambda: said}, self.pipe.scheduler, tick)
        if self._prompts.is_null(said):
            if self._answered is None or self._answered[0] is not whole:
                raise InputError(
                    f"{type(self.pipe).__name__} calls its network for the negative prompt with "
                    "another sample than for the prompt: call it with true_cfg_scale=1"
                )
            return self._answered[1]
        conds: dict[str, Callable[[], Cond]] = {
            "cond": lambda: said,
            "null": partial(self._prompts.null_of, said, len(whole)),
        }
        answer = self._guided(whole, conds, self.pipe.scheduler, tick)
        self._answered = (whole, answer)
        return answer


def zero_snr_scheduler(pipe: Any) -> Any:
    """Our scheduler with the settings of the pipeline's, at zero terminal SNR.

    Raises:
        ValueError: the network has zero SNR already, or cannot have it.
    """
    from diffsteer.hf.scheduler import SteerScheduler

    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise InputError(f"{type(pipe).__name__} has no scheduler to set to zero terminal SNR")
    if flows({"_class_name": type(scheduler).__name__, **scheduler.config}):
        raise InputError(
            f"{type(scheduler).__name__} is of flow matching, which starts at zero SNR by "
            "construction: leave zero_snr out"
        )
    return SteerScheduler.from_config(
        scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


def check_prediction(pipe: Any, guide: Any) -> None:
    """Check that a guide that says what it predicts predicts the same as the network.

    Raises:
        ValueError: it does not.
    """
    mine, theirs = (
        None if scheduler is None else scheduler.config.get("prediction_type", "epsilon")
        for scheduler in (getattr(p, "scheduler", None) for p in (pipe, guide))
    )
    if mine is None or theirs is None:
        return
    if mine != theirs:
        raise InputError(
            f"the guide's scheduler says prediction_type={theirs!r}, the pipeline's {mine!r}: "
            "answers of both are subtracted, so both have to predict the same"
        )

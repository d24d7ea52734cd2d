"""Guide an untouched diffusers pipeline.

    with steer(pipe, CFG(6).rescaled(0.7) + PAG(3)):
        image = pipe("a cat").images[0]

The network's `forward` is replaced. When the pipeline steps its scheduler, the guided prediction
takes the place of what it made of the network's answers, whatever its own scale is. Image to image,
inpainting, ControlNet and adapters come along.
"""

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import as_float, offers
from diffsteer.core.parse import parse
from diffsteer.guidance import Guidance
from diffsteer.guidance.batching import require_max_rows
from diffsteer.hf.families import known_family
from diffsteer.hf.guide_fit import check_schedules
from diffsteer.hf.hooks import plain_forward, replaced
from diffsteer.hf.load import guide_beside
from diffsteer.hf.network import PARTS, check_free, claimed, network_of, unwrap_compiled
from diffsteer.hf.runs import Runs
from diffsteer.hf.scheduler_config import flows
from diffsteer.hf.step_guidance import StepGuidance

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
        pipe: A diffusers pipeline. Its own guidance scale loses its meaning. Where a guidance asks
            for a null prompt that the pipeline does not send, it is made as the pipeline makes it.
        guidance: A guidance or its text, "CFG(6) + PAG(3)"; None leaves the pipeline's own.
        guide: For autoguidance, a second network or a pipeline that holds one, for the same latents
            and conditions, or the name of one; of a model that ships, its own without.
        max_rows: Most rows of one pass of a network, where memory is short.
        null: The null prompt of pipelines that do not send it, unless the call has a negative
            prompt.
        zero_snr: Sample on the schedule rescaled to zero terminal SNR, from its last timestep on,
            by our DDIM; for networks that were trained so and predict v or x0.
        refiner: Refines the noise that a sampling starts from: folder or hub id of a
            `NoiseRefiner`, or one that was loaded, or an `NLG` or its text.
        strength: Factor of what the refiner changes.

    Returns:
        A handle with `remove()`, also a context manager. Afterwards the pipeline is as it was.

    Raises:
        ValueError: the pipeline is none of diffusers, or steered, or the guide does not fit, or
            zero SNR has no meaning for its network.
    """
    if isinstance(guidance, str):
        guidance = parse(guidance, Guidance)
    if guidance is not None and not offers(guidance, "shift"):
        raise InputError(
            f"{brief(guidance)} is no guidance: give one, such as CFG(6) + PAG(3), or its text"
        )
    if guidance is None and refiner is None and (not zero_snr or max_rows is not None):
        raise InputError(
            'nothing to steer by: give a guidance, such as "CFG(6)", a refiner, or zero_snr=True'
        )
    if guidance is None and guide is not None:
        raise InputError('a guide does nothing without a guidance: give one, such as "Auto(2)"')
    if not isfinite(as_float(strength, "strength")) or (refiner is None and strength != 1):
        raise InputError(
            f"strength={strength} is the factor of what a refiner changes: give a finite "
            "number, with a refiner"
        )
    require_max_rows(max_rows)
    asked = guidance is not None and "guide" in guidance.networks()
    if isinstance(guide, str | Path) or (guide is None and asked):
        guide = guide_beside(pipe, None if guide is None else str(guide))
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
        self.pipe, self.guidance, self._max_rows = pipe, guidance, max_rows
        scheduler = zero_snr_scheduler(pipe) if zero_snr else None
        parts = {name: part for name in PARTS if (part := getattr(pipe, name, None)) is not None}
        parts |= {"scheduler": scheduler} if scheduler is not None else {}
        self._runs = Runs(pipe, parts)
        self._forward: Callable[..., Any] | None = None
        self._removed = False
        if guidance is not None:
            check_free(network_of(pipe))
            check_schedules(*(getattr(p, "scheduler", None) for p in (pipe, guide)))
            check_network(pipe)
        with ExitStack() as stack:
            if scheduler is not None:
                stack.enter_context(replaced(pipe, "scheduler", scheduler))
            if guidance is not None:
                self._forward = plain_forward(network_of(pipe))
                second = None if guide is None else network_of(guide)
                steps = StepGuidance(pipe, guidance, second, max_rows, self._runs, null)
                stack.enter_context(steps)
            if hasattr(pipe, "progress_bar"):
                stack.enter_context(replaced(pipe, "progress_bar", self._runs.begin))
            if timesteps := getattr(pipe, "get_timesteps", None):
                checked = partial(_some_steps, timesteps)
                stack.enter_context(replaced(pipe, "get_timesteps", checked))
            self._replaced = stack.pop_all()

    def refine_by(self, refiner: "Refine | str | Path", strength: float) -> None:
        """Refine the noise of every sampling from now on."""
        from diffsteer.refine.hook import RefineHook, opened

        network = network_of(self.pipe)
        if self.guidance is None:
            check_free(network)
        refine, give_back = opened(refiner, self.pipe)
        self._replaced.callback(give_back)
        if self.guidance is None:
            self._replaced.enter_context(claimed(network))
        hook = RefineHook(self.pipe, refine, strength, self._max_rows, self._forward, self._runs)
        self._replaced.enter_context(hook)

    def remove(self) -> None:
        """Give the pipeline back as it was."""
        self._removed = True
        self._replaced.close()

    def __enter__(self) -> "Steering":
        if self._removed:
            raise InputError("this steering was removed: call steer again")
        return self

    def __exit__(self, *error: Any) -> None:
        self._removed = True
        self._replaced.__exit__(*error)


def check_network(pipe: Any) -> None:
    """Check that the network of a pipeline is one of diffusers, in a pipeline of diffusers."""
    network: Any = unwrap_compiled(network_of(pipe))
    pipeline = hasattr(pipe, "update_components") or hasattr(pipe, "progress_bar")
    if known_family(network) is None and not (pipeline and hasattr(network, "config")):
        raise InputError(
            f"{type(network).__name__} of {type(pipe).__name__} is no network that can be steered: "
            "give a pipeline of diffusers"
        )


def _some_steps(get_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Timesteps of image to image, of which there has to be one."""
    timesteps = get_timesteps(*args, **kwargs)
    if len(timesteps[0]) == 0:
        raise InputError(
            "this strength leaves no step of image to image: raise strength or num_inference_steps "
            "until their product is 1 at least"
        )
    return timesteps


def zero_snr_scheduler(pipe: Any) -> Any:
    """Scheduler of ours with the settings of the pipeline's, at zero terminal SNR."""
    from diffsteer.hf.scheduler import SteerScheduler

    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise InputError(f"{type(pipe).__name__} has no scheduler to set to zero terminal SNR")
    if flows({"_class_name": type(scheduler).__name__, **scheduler.config}):
        raise InputError(
            f"{type(scheduler).__name__} is of flow matching, which starts at zero SNR by "
            "construction: leave zero_snr out"
        )
    made = SteerScheduler.from_config(
        scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    made.__deepcopy__ = partial(deepcopy, scheduler)  # copies of the pipeline have its own
    return made

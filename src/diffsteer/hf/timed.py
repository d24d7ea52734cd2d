"""What a timestep of a diffusers scheduler is a level of, and what an output says there."""

from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import EDM, Flow, Schedule
from diffsteer.hf.scheduler_config import trained


def timestep_schedule(scheduler: Any) -> tuple[Schedule, Prediction]:
    """Schedule on which the timesteps of a scheduler lie, and prediction type of the network.

    Raises:
        ValueError: it is of EDM.
    """
    schedule, kind = trained(scheduler)
    if isinstance(schedule, EDM):
        raise InputError(
            f"{type(scheduler).__name__} scales samples and times as EDM does: networks "
            "trained for it cannot be steered yet"
        )
    # the timesteps of a flow are shifted already
    return Flow() if isinstance(schedule, Flow) else schedule, kind


def level_at(schedule: Schedule, time: Any) -> Level:
    """Level at a timestep of a scheduler, on the schedule of `timestep_schedule`."""
    return schedule.at(time / 1000 if isinstance(schedule, Flow) else time)


def predicted_x0(scheduler: Any, out: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
    """The x0 that an output of the network says, `(B, *D)`, in float32 or wider.

    Args:
        scheduler: Of diffusers, about to step.
        out: What it is told, guidance included; channels beyond the sample's are left out.
        timestep: As it is told.
        sample: As it holds it, `(B, *D)`, before it is scaled for the network.

    Raises:
        ValueError: as `timestep_schedule`, or the output does not fix x0.
    """
    schedule, kind = timestep_schedule(scheduler)
    level = level_at(schedule, torch.as_tensor(timestep, dtype=torch.float64, device="cpu"))
    scale = getattr(scheduler, "scale_model_input", None)
    x = sample if scale is None else scale(sample, timestep)
    return kind.x0(upcast(x), upcast(out[:, : x.shape[1]]), level)

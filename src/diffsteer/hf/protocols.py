"""Interface of a scheduler of diffusers, as far as diffsteer reads it."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class SchedulerLike(Protocol):
    """A scheduler; `order`, `step_index`, `scale_model_input` and `init_noise_sigma` if it has any.

    Attributes:
        config: Its settings, with those of the network's training.
        timesteps: Those to visit, `(N,)`; a new tensor for each sampling.
    """

    config: Mapping[str, Any]
    timesteps: Tensor

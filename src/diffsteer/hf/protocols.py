"""What diffsteer needs of objects of diffusers."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class SchedulerLike(Protocol):
    """A scheduler; `order`, `step_index`, `scale_model_input` and `init_noise_sigma` if it has any.

    Attributes:
        config: Its settings, with those of the network's training.
        timesteps: Those to visit, `(N,)`; a new tensor for each sampling.
    """

    config: Mapping[str, Any]
    timesteps: Tensor

    @property
    def step(self) -> Callable[..., Any]:
        """Step from `(model_output, timestep, sample)`."""


class NetworkLike(Protocol):
    """A denoising network, with `forward(sample, timestep, ...)`.

    Attributes:
        config: Its settings, with `in_channels` and `out_channels`.
    """

    config: Any

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""

    @property
    def forward(self) -> Callable[..., Any]:
        """Evaluate it."""

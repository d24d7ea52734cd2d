"""Layout of samples in the batch that a scheduler steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsteer.hf.probed_calls import Call


@dataclass(frozen=True)
class Folding:
    """Layout of samples in the batch that a scheduler steps; by default they are the batch.

    Attributes:
        frames: Frames of a video that are a batch, else 0.
        twice: Whether both halves are the same samples, one for each condition (DiT).
    """

    frames: int = 0
    twice: bool = False

    @classmethod
    def of(cls, calls: Sequence[Call], model_output: Tensor, sample: Tensor) -> "Folding":
        """Folding of what a scheduler is given after calls of a network."""
        shape, half = calls[0].inputs.shape, len(sample) // 2
        if len(shape) == sample.ndim + 1 == 5 and shape[1] == sample.shape[1]:
            return cls(frames=shape[2] if len(sample) % shape[2] == 0 else 0)
        # halves of probes differ, so that equal ones of the model output were made of both
        alike = len(sample) == 2 * half and all(
            torch.equal(x[:half], x[half:]) for x in (model_output, sample)
        )
        return cls(twice=alike)

    def unfolded(self, x: Tensor) -> Tensor:
        """Samples, `(B, *D)`, of the scheduler's batch."""
        if self.frames:
            return x.reshape(-1, self.frames, *x.shape[1:]).transpose(1, 2)
        return x[: len(x) // 2] if self.twice else x

    def folded(self, x: Tensor) -> Tensor:
        """The scheduler's batch of samples, `(B, *D)`."""
        if self.frames:
            return x.transpose(1, 2).flatten(0, 1)
        return torch.cat([x, x]) if self.twice else x

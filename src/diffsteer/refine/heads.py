"""Changes of the noise by a network's output: x becomes x + strength * delta.

The paper draws the sum of input and output, which suits v-prediction. The output of an eps network
repeats the noise, so that its sum starts at twice the noise; other heads start near no change.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction


@dataclass(frozen=True, eq=False)
class RefineInput:
    """Unit Gaussian noise `x`, `(B, *D)`, at the terminal level, and the network that refines it.

    Attributes:
        out: Calls the network, or the small one of `LowFrequency`, `(B, *D)`.
        on: Context in which the adapter is used; given True, the last layer returns the adapter's
            part alone.
    """

    x: Tensor
    level: Level
    prediction: Prediction
    out: Callable[[], Tensor]
    on: Callable[[bool], AbstractContextManager[None]]

    def adapted(self, alone: bool = False) -> Tensor:
        """Output of the adapted network."""
        with self.on(alone):
            return self.out()


class Head(ABC):
    """A change of the noise by outputs. Define `delta`; `rows` network evaluations a sample."""

    rows: int = 1

    @abstractmethod
    def delta(self, at: RefineInput) -> Tensor:
        """Return the change, `(B, *D)`."""

    def check(self, prediction: Prediction, level: Level) -> None:  # noqa: B027
        """Warn of this head for a network, or refuse it, before anything is trained."""


@dataclass(frozen=True)
class ZeroInit(Head):
    """Output of the last layer's adapter alone: no change before training.

    Source: Eyring et al. 2025 (HyperNoise), https://arxiv.org/abs/2508.09968.
    """

    @override
    def delta(self, at: RefineInput) -> Tensor:
        return at.adapted(alone=True)


@dataclass(frozen=True)
class Difference(Head):
    """Output with the adapter less that without: no change before training."""

    rows = 2

    @override
    def delta(self, at: RefineInput) -> Tensor:
        return at.adapted() - at.out()


@dataclass(frozen=True)
class Literal(Head):
    """The output itself, as the paper draws it; for v-prediction.

    Source: Ahn et al. 2024, figure 4, https://arxiv.org/abs/2412.03895.
    """

    @override
    def delta(self, at: RefineInput) -> Tensor:
        return at.adapted()

    @override
    def check(self, prediction: Prediction, level: Level) -> None:
        _, b = prediction.coefficients(level.alpha, level.sigma)
        if abs(b) > 0.5:
            warnings.warn(
                f"the literal head adds the output of a network that predicts {prediction!r}, "
                f"which is {b:.3g} times the noise itself at the terminal level: refined noise "
                f"starts at {1 + b:.3g} times its size. Take zero_init or difference",
                stacklevel=3,
            )


@dataclass(frozen=True)
class X0(Head):
    """The predicted data, alpha x0: `Literal` for an eps network; small before training."""

    @override
    def delta(self, at: RefineInput) -> Tensor:
        return float(at.level.alpha) * at.prediction.x0(at.x, at.adapted(), at.level)

    @override
    def check(self, prediction: Prediction, level: Level) -> None:
        if level.alpha == 0:
            raise InputError(
                "the x0 head adds alpha x0, which is nothing at zero terminal SNR: take zero_init, "
                "difference or literal"
            )


@dataclass(frozen=True)
class LowFrequency(Head):
    """Output of a small network of its own, in low frequencies alone: no change before training.

    See `low_frequency.py`, which names the sources.
    """

    rows = 0

    @override
    def delta(self, at: RefineInput) -> Tensor:
        return at.out()


HEADS: dict[str, Head] = {
    "zero_init": ZeroInit(),
    "difference": Difference(),
    "literal": Literal(),
    "x0": X0(),
    "low_frequency": LowFrequency(),
}
"""Heads by the names that files and settings use."""

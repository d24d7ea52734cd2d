"""What an adapted network's output changes in the noise: x becomes x + strength * delta.

The paper draws the sum of input and output. What an output is depends on the prediction type: that
of an eps network repeats the noise, so that the sum starts at twice the noise. The others start at,
or near, no change.
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
    """Where noise is refined.

    Attributes:
        x: Unit Gaussian noise, `(B, *D)`.
        level: The terminal level.
        prediction: What the network predicts.
        out: Calls the network with it, `(B, *D)`.
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
    """A way from outputs to a change of the noise. Define `delta`.

    Attributes:
        rows: Of the network for each sample.
    """

    rows: int = 1

    @abstractmethod
    def delta(self, at: RefineInput) -> Tensor:
        """Return the change, `(B, *D)`."""

    def check(self, prediction: Prediction, level: Level) -> None:  # noqa: B027
        """Say what is odd about this head for a network, before anything is trained.

        Raises:
            ValueError: it cannot change anything.
        """


@dataclass(frozen=True)
class ZeroInit(Head):
    """What the adapter of the last layer adds: no change before training, one row.

    Source: Eyring et al. 2025 (HyperNoise), https://arxiv.org/abs/2508.09968.
    """

    @override
    def delta(self, at: RefineInput) -> Tensor:
        return at.adapted(alone=True)


@dataclass(frozen=True)
class Difference(Head):
    """Output with the adapter less that without: no change before training, two rows."""

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
    """The predicted data as far as they are in x, alpha x0: `Literal` for an eps network.

    Small before training, since alpha is.
    """

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


HEADS: dict[str, Head] = {
    "zero_init": ZeroInit(),
    "difference": Difference(),
    "literal": Literal(),
    "x0": X0(),
}
"""Heads by the names that files and settings use."""

"""Changes of the noise by a network's output: x becomes x + strength * delta.

The paper draws the sum of input and output, which suits v-prediction. The output of an eps network
repeats the noise, so that its sum starts at twice the noise; other heads start near no change.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction


@dataclass(frozen=True, eq=False)
class RefineInput:
    """Unit Gaussian noise `x`, `(B, *D)`, at the terminal level, and the network that refines it.

    Attributes:
        out: Calls the network, or the small one of "low_frequency", `(B, *D)`.
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


def _any(prediction: Prediction, level: Level) -> None:
    """Take every network."""


@dataclass(frozen=True)
class Head:
    """A change of the noise by outputs.

    Attributes:
        delta: Returns the change, `(B, *D)`.
        rows: Network evaluations a sample.
        check: Warns of this head for a network, or refuses it, before anything is trained, by its
            prediction type and terminal level.
    """

    delta: Callable[[RefineInput], Tensor]
    rows: int = 1
    check: Callable[[Prediction, Level], None] = _any


def _warn_of_noise(prediction: Prediction, level: Level) -> None:
    """Warn of a network whose output repeats the noise."""
    _, b = prediction.coefficients(level.alpha, level.sigma)
    if abs(b) > 0.5:
        warnings.warn(
            f"the literal head adds the output of a network that predicts {prediction!r}, which "
            f"is {b:.3g} times the noise itself at the terminal level: refined noise starts at "
            f"{1 + b:.3g} times its size. Take zero_init or difference",
            stacklevel=3,
        )


def _data(at: RefineInput) -> Tensor:
    """Predicted data, alpha x0."""
    return float(at.level.alpha) * at.prediction.x0(at.x, at.adapted(), at.level)


def _refuse_zero_snr(prediction: Prediction, level: Level) -> None:
    """Refuse networks of which alpha x0 is nothing."""
    if level.alpha == 0:
        raise InputError(
            "the x0 head adds alpha x0, which is nothing at zero terminal SNR: take zero_init, "
            "difference or literal"
        )


HEADS = {
    # Output of the last layer's adapter alone: no change before training. Source: Eyring et al.
    # 2025 (HyperNoise), https://arxiv.org/abs/2508.09968.
    "zero_init": Head(lambda at: at.adapted(alone=True)),
    # Output with the adapter less that without: no change before training.
    "difference": Head(lambda at: at.adapted() - at.out(), rows=2),
    # The output itself, as the paper draws it; for v-prediction. Source: Ahn et al. 2024, figure 4,
    # https://arxiv.org/abs/2412.03895.
    "literal": Head(lambda at: at.adapted(), check=_warn_of_noise),
    # The predicted data, alpha x0: "literal" for an eps network; small before training.
    "x0": Head(_data, check=_refuse_zero_snr),
    # Output of a small network of its own, in low frequencies alone: no change before training. See
    # `low_frequency.py`, which names the sources.
    "low_frequency": Head(lambda at: at.out(), rows=0),
}
"""Heads by the names that files and settings use."""

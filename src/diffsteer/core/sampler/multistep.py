"""Higher order from what was predicted before, for one evaluation a step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.level import Level
from diffsteer.core.noise import Draw
from diffsteer.core.sampler.base import Denoise, Past, Sampler, first_order


@dataclass(frozen=True)
class DPMpp2M(Sampler):
    """DPM-Solver++(2M): second order for one evaluation a step.

    First order on the first step and on the last, where log-SNR is infinite. A start at zero SNR
    needs no special case: its weight in the next step, 1 / (2 r), is 0.

    Source: Lu et al. 2022, algorithm 2, https://arxiv.org/abs/2211.01095.
    """

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, now)
        return first_order(x, _ahead(x0, now, nxt, past), now, nxt), x0


def _ahead(x0: Tensor, now: Level, nxt: Level, past: Past) -> Tensor:
    """Effective x0 of a step if x0 goes on in log-SNR as it went in the last one."""
    if not past or nxt.sigma == 0:
        return x0
    before, x0_before = past[-1]
    lam, lam_before, lam_next = map(_half_log_snr, (now, before, nxt))
    r = (lam - lam_before) / (lam_next - lam)
    return torch.lerp(x0_before, x0, 1 + 0.5 / r)


def _half_log_snr(level: Level) -> float:
    """`half_log_snr` of a level with noise, as a number, which is a third of a step faster."""
    alpha = level.alpha.item()
    return math.log(alpha / level.sigma.item()) if alpha > 0 else -math.inf


@dataclass(frozen=True)
class UniPC(Sampler):
    """Unified predictor-corrector of order 2 (bh2): one evaluation a step, third-order accurate.

    Every evaluation serves twice: it corrects the step that led to its level, then predicts the
    next. The corrector needs no earlier sample, since it differs from the predictor only by a
    multiple of the x0's.

    Source: Zhao et al. 2023, algorithms 5 and 6, https://arxiv.org/abs/2302.04867.
    """

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, now)
        if past:
            x = _corrected(x, x0, now, past)
        return first_order(x, _ahead(x0, now, nxt, past), now, nxt), x0


def _corrected(x: Tensor, x0: Tensor, now: Level, past: Past) -> Tensor:
    """Redo the step that led to `x`, now that the x0 at its end is known.

    The published 2 x 2 system for the weights, solved by hand in terms of 1 / r, which is 0 where
    the earlier level has zero SNR.
    """
    before, x0_before = past[-1]
    keep = now.sigma.item() / before.sigma.item()
    gain = now.alpha.item() - keep * before.alpha.item()
    if len(past) == 1:
        return torch.add(x, x0 - x0_before, alpha=gain / 2)
    earlier, x0_earlier = past[-2]
    lam, lam_before, lam_earlier = map(_half_log_snr, (now, before, earlier))
    h = lam - lam_before
    inv = h / (lam_earlier - lam_before)
    b1 = -1 / math.expm1(-h) - 1 / h
    b2 = -1 / math.expm1(-h) - 2 * b1 / h
    rho = (b2 - b1) * inv / (1 - inv)
    x = torch.add(x, x0 - x0_before, alpha=gain * (b1 - rho))
    return torch.add(x, x0_earlier - x0_before, alpha=gain * (rho - 0.5) * inv)

"""Error of each sampler against network evaluations where the exact solution is known.

A mixture of two Gaussians in float64; root mean square distance of 256 samples to the solution of
the probability-flow ODE by 2,000 evaluations from the same noise: median of three seeds (min-max).
"""

import torch
from torch import Tensor

from diffsteer import DDIM, Discrete, DPMpp2M, Flow, Heun, Sampler, UniPC, grid
from diffsteer.core.oracle import Mixture

NETWORK = Mixture(0.9, 0.4, 0.8)
SAMPLERS: tuple[Sampler, ...] = (DDIM(), DPMpp2M(), UniPC(), Heun())
EVALUATIONS = 10, 20, 40
REPAIRED = Discrete.scaled_linear().zero_snr()

for name, schedule, spacing in (
    ("Stable Diffusion, zero SNR, `logsigma`", REPAIRED, "logsigma"),
    ("Stable Diffusion, zero SNR, `trailing`", REPAIRED, "trailing"),
    ("flow matching, `trailing`", Flow(), "trailing"),
):

    def ends(sampler: Sampler, steps: int, noise: Tensor) -> Tensor:
        *_, x = sampler(noise, grid(schedule, steps, spacing), NETWORK)  # noqa: B023
        return x

    print(f"| {name} | 10 NFE | 20 | 40 |\n|---|---|---|---|")
    draws = [
        torch.randn(256, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in range(3)
    ]
    exact = [ends(Heun(), 1000, noise) for noise in draws]
    for sampler in SAMPLERS:
        cells = []
        for nfe in EVALUATIONS:
            steps = nfe // sampler.evaluations
            errors = [
                (ends(sampler, steps, noise) - end).square().mean().sqrt().item()
                for noise, end in zip(draws, exact, strict=True)
            ]
            low, median, high = sorted(errors)
            cells.append(f"{median:.4f} ({low:.4f}-{high:.4f})")
        print(f"| `{type(sampler).__name__}` | {' | '.join(cells)} |")
    print()

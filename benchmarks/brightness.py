"""Brightness that samplers reach from zero SNR, on data whose perfect network is known.

    python benchmarks/brightness.py

Images are one brightness b ~ N(0.6, 0.3^2) plus pixels N(0, 0.2^2). Printed are mean and spread of
the brightness of the samples; the truth is 0.600 +- 0.300.
"""

import torch

from diffsteer import DDIM, Discrete, DPMpp2M, Heun, Sampler, UniPC, V, grid
from diffsteer.core.oracle import Bright, antithetic, as_network

SPACINGS = ("trailing", "logsigma", "leading")
STEPS = (10, 25, 50)

SCHEDULE = Discrete.scaled_linear().zero_snr()


def brightness(sampler: Sampler, spacing: str, n: int, shape: tuple[int, ...], samples: int) -> str:
    x = antithetic(samples, shape)
    for state in sampler(x, grid(SCHEDULE, n, spacing), as_network(Bright(), V())):
        x = state
    b = x.mean(dim=tuple(range(1, x.ndim)))
    return f"{b.mean():.3f} ± {b.std(correction=0):.3f}"


def main() -> None:
    torch.set_num_threads(1)
    for shape, samples in (((4, 8, 8), 512), ((4, 64, 64), 64)):
        print(f"\nlatents {'x'.join(map(str, shape))}, {samples} samples")
        print("| sampler | " + " | ".join(f"{s}, {n}" for s in SPACINGS for n in STEPS) + " |")
        print("|---" * (1 + len(SPACINGS) * len(STEPS)) + "|")
        for sampler in (DDIM(), DPMpp2M(), UniPC(), Heun()):
            cells = [brightness(sampler, s, n, shape, samples) for s in SPACINGS for n in STEPS]
            print(f"| {type(sampler).__name__} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

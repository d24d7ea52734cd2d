"""Time and passes of EDM2 sampling: ours, a plain loop, and the networks alone, in one run.

    python benchmarks/edm2.py [--channels 32] [--resolution 16] [--batch 2] [--steps 4]
        [--repeats 9] [--threads 1]

Ratios are of runs next to each other in time, in seconds of the processor, which other programs
disturb less than those of the clock; medians, least and most of them. The networks have random
weights. "normalising" calls the networks as modules, which normalise their weights at every
call; all else normalises them once, which gives the same bits.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from diffsteer import CFG, EDM, Auto, Denoiser, Guidance, Heun, Preconditioned, grid
from diffsteer.nets.edm2 import EDM2, network
from diffsteer.noise import Draw

Net = Callable[[Tensor, Tensor], Tensor]


def plain(
    main: Net,
    guide: Net,
    start: Tensor,
    weight: float,
    steps: int,
    churn: float = 0.0,
    lo: float = 0.0,
    hi: float = math.inf,
    swell: float = 1.0,
    noise: Draw = torch.randn_like,
) -> Tensor:
    """EDM's sampler written down as its paper has it, with autoguidance, from unit noise."""
    rho, dtype = 7, start.dtype

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        good = main(x, t).to(dtype)
        return good if weight == 1 else torch.lerp(guide(x, t).to(dtype), good, weight)

    i = torch.arange(steps, dtype=dtype)
    times = (80 ** (1 / rho) + i / (steps - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    times = torch.cat([times, torch.zeros(1, dtype=dtype)])
    x = start * times[0]
    for n, (t, nxt) in enumerate(zip(times[:-1], times[1:], strict=True)):
        if churn > 0 and lo <= t <= hi:
            raised = t * (1 + min(churn / steps, math.sqrt(2) - 1))
            x, t = x + (raised**2 - t**2).sqrt() * swell * noise(x), raised
        d = (x - denoised(x, t)) / t
        y = x + (nxt - t) * d
        if n < steps - 1:
            e = (y - denoised(y, nxt)) / nxt
            y = x + (nxt - t) * (d + e) / 2
        x = y
    return x


def made(channels: int, resolution: int, seed: int) -> EDM2:
    torch.manual_seed(seed)
    net = EDM2(resolution, 4, 1000, channels).eval()
    for name, p in net.named_parameters():
        if name.endswith("_gain"):
            p.data.fill_(1.0)
    return net


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def passes(main: EDM2, guide: EDM2, same: bool, guidance: Guidance, x: Tensor) -> str:
    """Passes and rows of one evaluation."""
    calls: dict[str, list[int]] = {"main": [], "guide": []}
    hooks = [
        net.unet.register_forward_pre_hook(
            lambda _, args, name=name: calls[name].append(len(args[0]))
        )
        for name, net in (("main", main), ("guide", guide))
    ]
    one, other = network(main), network(guide)
    labels = torch.eye(1000)[: len(x)]
    conds = {"cond": {"labels": labels}, "null": {"labels": torch.zeros_like(labels)}}
    nets = {"main": one, "guide": one if same else other}
    Denoiser(nets, conds, Preconditioned(), guidance)(x, grid(EDM(), 8)[2])
    for hook in hooks:
        hook.remove()
    return ", ".join(f"{name}: {len(rows)} of {rows} rows" for name, rows in calls.items() if rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        *(("channels", 32), ("resolution", 16), ("batch", 2), ("steps", 4)),
        *(("repeats", 9), ("threads", 1)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    good, bad = (made(args.channels, args.resolution, seed) for seed in (0, 1))
    start = torch.randn(args.batch, *good.shape)
    labels = torch.eye(1000)[: args.batch]
    millions = sum(p.numel() for p in good.parameters()) / 1e6
    print(
        f"torch {torch.__version__}, {args.threads} thread(s); two networks of {millions:.0f} "
        f"million weights, {args.resolution} px, batch {args.batch}, {args.steps} Heun steps"
    )

    def sampled() -> Tensor:
        denoiser = Denoiser(nets, {"cond": {"labels": labels}}, Preconditioned(), Auto(2.0))
        levels = grid(EDM(), args.steps)
        *_, x = Heun()(levels[0].sigma * start, levels, denoiser)
        return x

    def alone() -> None:
        for _ in range(2 * args.steps - 1):
            good(start, sigma, labels)
            bad(start, sigma, labels)

    def looped() -> Tensor:
        return plain(
            lambda x, t: good(x, t, labels), lambda x, t: bad(x, t, labels), start, 2.0, args.steps
        )

    def normalising() -> float:
        """Time of the loop where no network keeps its weights."""
        good.eval(), bad.eval()
        taken = timed(looped)
        good.keep_weights(), bad.keep_weights()
        alone()
        return taken

    sigma = torch.tensor(1.0)
    nets = {"main": network(good), "guide": network(bad)}
    error = (sampled() - looped()).abs().max() / looped().abs().max()
    print(f"largest difference from the plain loop: {error:.1e} of the largest value")
    ratios: dict[str, list[float]] = {"ours": [], "plain loop": [], "normalising": []}
    runs = {"ours": sampled, "plain loop": looped}
    for _ in range(args.repeats):
        for name, run in runs.items():
            before, taken, after = timed(alone), timed(run), timed(alone)
            ratios[name].append(2 * taken / (before + after))
        ratios["normalising"].append(normalising() / timed(alone))
    print(f"{'time / networks alone':<24}{'median':>8}{'least':>8}{'most':>8}")
    for name, found in ratios.items():
        print(f"{name:<24}{statistics.median(found):8.3f}{min(found):8.3f}{max(found):8.3f}")
    for text, same, guidance in (
        ("Auto, two networks", False, Auto(2.0)),
        ("Auto, equal networks", True, Auto(2.0)),
        ("CFG + Auto", False, CFG(2.0) + Auto(1.5)),
    ):
        print(f"{text:<24}{passes(good, bad, same, guidance, start)}")


if __name__ == "__main__":
    main()

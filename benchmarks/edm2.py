"""Time and passes of EDM2 sampling: ours, a plain loop, and the networks alone, in one run.

    python benchmarks/edm2.py [--channels 32] [--resolution 16] [--batch 2] [--steps 4]
        [--repeats 9] [--threads 1] [--agreement]

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
from functools import partial

import torch
from torch import Tensor

from diffsteer import CFG, EDM, Auto, Guidance, Heun, Preconditioned, grid
from diffsteer.core.noise import Draw, Noise
from diffsteer.guidance import Denoiser
from diffsteer.models.edm2.generate import Loop, guided
from diffsteer.models.edm2.model import EDM2, network

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
            raised = t + min(churn / steps, math.sqrt(2) - 1) * t
            x, t = x + (raised**2 - t**2).sqrt() * swell * noise(x), raised
        d = (x - denoised(x, t)) / t
        y = x + (nxt - t) * d
        if n < steps - 1:
            e = (y - denoised(y, nxt)) / nxt
            y = x + (nxt - t) * (d + e) / 2
        x = y
    return x


def made(channels: int, resolution: int, seed: int, num_blocks: int = 3) -> EDM2:
    torch.manual_seed(seed)
    net = EDM2(resolution, 4, 1000, channels, num_blocks=num_blocks).eval()
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


def agreement() -> None:
    """Largest differences from the plain loop over weights, with and without churn."""
    good, bad = (made(16, 16, seed, num_blocks=1) for seed in (0, 1))
    x, labels = torch.randn(2, *good.shape), torch.eye(1000)[:2]
    conds, nets = {"cond": {"labels": labels}}, {"main": network(good), "guide": network(bad)}
    print("largest differences from the plain loop in float32, of the largest value")
    print(f"{'steps':<8}{'generate':>10}{'Heun()':>10}{'the loop in float64':>22}")
    for steps in (2, 3, 4, 8, 16, 32):
        worst = [0.0, 0.0, 0.0]
        for weight in (0.0, 0.5, 1.0, 1.5, 2.0, 3.5):
            for churn in (0.0, 40.0):
                loops = [
                    plain(
                        lambda x, t: good(x, t, labels), lambda x, t: bad(x, t, labels),
                        x.to(dtype), weight, steps, churn, 0.05, 50, noise=Noise([0, 1]),
                    )
                    for dtype in (torch.float32, torch.float64)
                ]  # fmt: skip
                levels, share = grid(EDM(), steps), min(churn / steps, math.sqrt(2) - 1)
                denoiser = Denoiser(nets, conds, Preconditioned(), Auto(weight))
                heun = Heun(gamma=share, s_min=0.05, s_max=50)
                *_, exact = heun(levels[0].sigma * x, levels, denoiser, Noise([0, 1]))
                same = Loop(steps, s_churn=churn, s_min=0.05, s_max=50)(
                    x, guided(good, bad, conds, Auto(weight)), partial(Noise([0, 1]), x)
                )
                for i, other in enumerate((same, exact, loops[1])):
                    found = (loops[0] - other).abs().max() / loops[1].abs().max()
                    worst[i] = max(worst[i], found.item())
        print(f"{steps:<8}{worst[0]:10.1e}{worst[1]:10.1e}{worst[2]:22.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        *(("channels", 32), ("resolution", 16), ("batch", 2), ("steps", 4)),
        *(("repeats", 9), ("threads", 1)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--agreement", action="store_true", help="differences instead of time")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    if args.agreement:
        agreement()
        return
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

    def official() -> Tensor:
        denoise = guided(good, bad, {"cond": {"labels": labels}}, Auto(2.0))
        return Loop(args.steps)(start, denoise, lambda: torch.randn_like(start))

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
    runs = {"Denoiser and Heun()": sampled, "generate": official, "plain loop": looped}
    ratios: dict[str, list[float]] = {name: [] for name in (*runs, "normalising")}
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

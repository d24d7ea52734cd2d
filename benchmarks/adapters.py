"""Autoguidance from a LoRA beside autoguidance from a second network, in one run.

    python benchmarks/adapters.py [--size small|mid|sdxl] [--device cpu|cuda] [--steps 5]

"weights" are all that is held, in MiB, "peak" the most beyond it, as in `steer.py`. Times are
medians of turns in the same process (least to greatest).
"""

import argparse
import copy
import statistics
from typing import Any

import torch
from diffusers.utils import logging
from measured import peak, timed
from peft import LoraConfig
from steer import CHANNELS, Setting

from diffsteer import CFG, Auto

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def with_adapter(network: Any, rank: int) -> None:
    """Add an adapter "style" of random weights."""
    network.add_adapter(LoraConfig(r=rank, target_modules=TARGETS), adapter_name="style")
    for name, weight in network.named_parameters():
        weight.requires_grad_(False)
        if "lora_B" in name:
            weight.normal_(0, 0.02)


def mebibytes(network: Any) -> float:
    return float(sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(CHANNELS), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    s = Setting(args.size, args.device, args.steps)
    plain = mebibytes(s.unet)
    with_adapter(s.unet, args.rank)
    one, s.guide = mebibytes(s.unet), copy.deepcopy(s.unet)
    s.guide.set_adapters(["style"], [0.3])
    print(f"network {plain:.1f} MiB, adapter {one - plain:.1f} MiB; {args.steps} steps")
    lora = CFG(5) + Auto(2, adapter="style@0.3")
    runs = {
        "CFG": (s.predict(CFG(5)), one),
        "CFG + Auto, adapter": (s.predict(lora), one),
        "CFG + Auto, second network": (s.predict(CFG(5) + Auto(2)), 2 * one),
    }
    with torch.no_grad():
        a, b = (run().images.float() for run, _ in list(runs.values())[1:])
    print(f"greatest difference {(a - b).abs().max():.1e}, of {b.abs().max():.3g}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, (run, _) in runs.items():
            times[name].append(timed(run, args.device))
    for name, (run, weights) in runs.items():
        beyond, ms = peak(run, args.device), [1e3 * t / args.steps for t in times[name]]
        print(
            f"{name:28} weights {weights:7.1f}  peak {beyond:7.1f}  in all {weights + beyond:7.1f}"
            f"  ms a step {statistics.median(ms):7.1f} ({min(ms):.1f} to {max(ms):.1f})"
        )


if __name__ == "__main__":
    main()

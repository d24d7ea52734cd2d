"""Refined noise: what a training step costs by the way of its gradient, and what sampling costs.

    python benchmarks/refine.py [--size small] [--turns 8] [--steps 10] [--sampling 20] [--batch 8]

Sampling, first, in a fresh process as users have it: refined and unguided beside CFG, both through
`steer`, with the rows that the network evaluated and the most memory beyond what was held before:
on a GPU of tensors, on a CPU (Linux) of the process. Training: a whole step (refine, sample,
backward, AdamW) by multistep score distillation and by checkpointed back-propagation, in turns, on
one network with random weights; and the most memory that autograd keeps for the backward pass.
"""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from diffsteer import DDIM, Level, grid
from diffsteer.refine.refiner import NoiseRefiner
from diffsteer.steering import steer
from diffsteer.train.refiner.msd import MSD, Full, Student
from diffsteer.train.settings import Run

SIDE, WORDS = 16, 16


def pipeline(size: str) -> Any:
    """A pipeline around a network of the critter model's config, or a third of its width."""
    config = dict(Run.named("critters-eps").settings["unet"])
    if size == "tiny":
        config |= {"block_out_channels": [32, 64, 64], "attention_head_dim": [1, 2, 2]}
    torch.manual_seed(0)
    text = CLIPTextConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=1)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**Run.named("critters-vae").settings["network"]),
        text_encoder=CLIPTextModel(text),
        tokenizer=None,
        unet=UNet2DConditionModel(**config).eval().requires_grad_(False),
        scheduler=DDIMScheduler(**Run.named("critters-eps").settings["scheduler"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def training(
    pipe: Any, refiner: NoiseRefiner, half: bool, gradient: MSD | Full, n: int, batch: int
) -> Any:
    """One step of the optimizer, as a function."""
    weights = list(refiner.parameters.values())
    optimizer = torch.optim.AdamW(weights, 1e-6, fused=True)
    model = refiner.model
    device = model.module.device
    cond = {
        "timestep": torch.tensor(999, device=device),
        "encoder_hidden_states": torch.randn(batch, WORDS, 128, device=device),
    }
    x, target = torch.randn(2, batch, 4, SIDE, SIDE, device=device)

    def net(x: Tensor, level: Level) -> Tensor:
        return model(x, level, cond)

    student = Student(net, model.prediction, grid(model.schedule, n, "trailing"), DDIM())

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return gradient.loss(refiner(x, {"cond": cond}), target, student)

    def step() -> None:
        forward().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    step.forward = forward  # type: ignore[attr-defined]
    return step


def seconds(act: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def kept(step: Any) -> float:
    """MiB of activations that autograd keeps until the backward pass, weights left out."""
    held: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, torch.nn.Parameter):
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = step.forward()
    del loss
    return sum(held.values()) / 2**20


def peak(act: Callable[[], None]) -> float:
    """MiB of the peak on a GPU, beyond what was held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    act()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def resident(act: Callable[[], None]) -> float:
    """MiB of the peak of this process, beyond what it held before; Linux."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = status("VmRSS")
    act()
    return status("VmHWM") - before


def status(name: str) -> float:
    """MiB of an entry of the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def sampling(pipe: Any, refiner: NoiseRefiner, batch: int, n: int, turns: int) -> None:
    """Images a second, rows an image and memory: unguided, refined, CFG; in turns."""
    device = pipe.unet.device
    text, null = torch.randn(2, batch, WORDS, 128, device=device, dtype=pipe.unet.dtype)
    rows = 0

    def count(module: Any, args: Any) -> None:
        nonlocal rows
        rows += len(args[0])

    pipe.unet.time_proj.register_forward_pre_hook(count)

    def sampled(scale: float, **how: Any) -> None:
        call = {"prompt_embeds": text, "num_inference_steps": n, "guidance_scale": scale}
        more = {"negative_prompt_embeds": null} if scale > 1 else {}
        if not how:
            pipe(**call, **more, output_type="latent")
            return
        with steer(pipe, **how):
            pipe(**call, **more, output_type="latent")

    ways = {
        "unguided": partial(sampled, 1.0),
        "refined": partial(sampled, 1.0, refiner=refiner),
        "CFG": partial(sampled, 2.0, guidance="CFG(4)"),
    }
    each = {}
    for name, act in ways.items():
        rows = 0
        act()
        each[name] = rows / batch
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, act in ways.items():
            times[name].append(seconds(act, device))
    weight = peak if device.type == "cuda" else resident
    most = {name: statistics.median(weight(act) for _ in range(3)) for name, act in ways.items()}
    print(f"sampling, {n} steps, batch {batch}: images/s (least to most), rows an image, MiB")
    for name, found in times.items():
        middle, low, high = (batch / f(found) for f in (statistics.median, max, min))
        speed = f"{name:10} {middle:8.2f} ({low:.2f} to {high:.2f})"
        print(f"{speed}  {each[name]:5.0f}  {most[name]:6.1f}")
    adapters = sum(p.nbytes for p in refiner.parameters.values()) / 2**20
    print(f"the adapters, in memory in every row: {adapters:.1f} MiB")
    ratios = [a / b for a, b in zip(times["CFG"], times["refined"], strict=True)]
    print(f"refined / CFG: {statistics.median(ratios):.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=("small", "tiny"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="of the student, in training")
    parser.add_argument("--sampling", type=int, default=20, help="steps of sampling")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "no"), help="in training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    pipe = pipeline(args.size).to(device)
    refiner = NoiseRefiner(pipe, args.rank)
    half = args.precision == "bf16"
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"CPU, {args.threads} threads"
    size = sum(p.numel() for n, p in pipe.unet.named_parameters() if "lora" not in n)
    print(f"{args.size}: {size / 1e6:.1f} M parameters, batch {args.batch}, {where}")
    sampling(pipe, refiner, args.batch, args.sampling, args.turns)
    ways: dict[str, MSD | Full] = {"MSD": MSD(), "full": Full()}
    make = partial(training, pipe, refiner, half)
    steps = {name: make(way, args.steps, args.batch) for name, way in ways.items()}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.turns):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    precision = "bfloat16 (autocast)" if half else "float32"
    print(f"\ntraining step, N = {args.steps}, {precision}: ms (least to most)")
    for name, found in times.items():
        middle, low, high = (f(found) * 1e3 for f in (statistics.median, min, max))
        print(f"{name:10} {middle:8.0f} ({low:.0f} to {high:.0f})")
    ratios = [b / a for a, b in zip(times["MSD"], times["full"], strict=True)]
    print(f"full / MSD: {statistics.median(ratios):.2f} x, {args.turns} turns")
    measure = peak if cuda else kept
    print("memory, MiB: " + ("peak of a step" if cuda else "kept for backward"))
    for n in (2, 10, 50):
        found = [measure(make(way, n, args.batch)) for way in ways.values()]
        print(
            f"N = {n:2}    " + "   ".join(f"{k} {v:.1f}" for k, v in zip(ways, found, strict=True))
        )


if __name__ == "__main__":
    main()

"""A training step of ours beside the plain diffusers loop: seconds for the same network and batch.

    python benchmarks/train.py [--preset critters-eps] [--batch 64] [--turns 10] [--threads 2]

The plain loop is what diffusers shows for text to image: `add_noise`, mean squared error,
accelerate, gradient clipping, AdamW, and an average of the weights. Both get the same latents and
captions in memory, bf16 autocast, and take steps turn by turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffsteer.train.loop import Trainer
from diffsteer.train.registry import begin
from diffsteer.train.settings import Run

Step = Callable[[], Tensor]


def prepared(preset: str, batch: int, folder: Path) -> Trainer:
    """Our trainer, with a new autoencoder where the preset starts from one, as its cost is out."""
    changes = {"batch": batch, "averages": [0.05], "keep": 0.05}
    run = Run.named(preset, *(f"training.{name}={value}" for name, value in changes.items()))
    vae = Run.named("critters-vae").settings["network"]
    AutoencoderKL(**vae).save_pretrained(folder / "vae")
    settings = {**run.settings, "start": str(folder / "vae"), "cache": False}
    return begin(replace(run, settings=settings), folder / "run")


def rows(trainer: Trainer) -> Iterator[dict[str, Tensor]]:
    """Batches with latents at hand, as a cache gives them."""
    side = trainer.run.settings["unet"]["sample_size"]
    for (batch,) in trainer._batches():
        del batch["pixels"]
        yield {**batch, "latents": torch.randn(len(batch["ids"]), 4, side, side)}


def ours(trainer: Trainer, batches: Iterator[dict[str, Tensor]]) -> Step:
    how = trainer.run.training

    def step() -> Tensor:
        found = trainer._step([next(batches)])
        trainer.images += how.batch
        trainer.averages.update(trainer.images, how.batch)
        return found["loss"]

    return step


def plain(trainer: Trainer, pipe: Any, batches: Iterator[dict[str, Tensor]]) -> Step:
    """The loop of diffusers on a pipeline of its own."""
    how, accelerator = trainer.run.training, trainer.accelerator
    both: Any = nn.ModuleDict({"unet": pipe.unet, "text": pipe.text_encoder}).train()
    both.to(accelerator.device, memory_format=torch.channels_last)
    unet, text = accelerator.prepare_model(both["unet"]), accelerator.prepare_model(both["text"])
    optimizer = torch.optim.AdamW(both.parameters(), how.rate, how.betas, weight_decay=how.decay)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    average = EMAModel(both.parameters())

    def step() -> Tensor:
        batch = {k: v.to(accelerator.device) for k, v in next(batches).items()}
        latents = batch["latents"]
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (len(latents),), device=latents.device)
        noisy = scheduler.add_noise(latents, noise, times)
        out = unet(noisy, times, text(batch["ids"])[0], return_dict=False)[0]
        loss = nn.functional.mse_loss(out.float(), noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(both.parameters(), how.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.step(both.parameters())
        return loss.detach()

    return step


def seconds(step: Step) -> float:
    begin = time.perf_counter()
    step().item()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="critters-eps")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        trainer = prepared(args.preset, args.batch, folder / "ours")
        other: Any = prepared(args.preset, args.batch, folder / "plain").task.pipe
        other.unet.set_attn_processor(AttnProcessor2_0())  # what diffusers trains with
        steps = {
            "diffsteer": ours(trainer, rows(trainer)),
            "diffusers": plain(trainer, other, rows(trainer)),
        }
        found = {name: [seconds(step) for _ in range(2)] and [] for name, step in steps.items()}
        for _ in range(args.turns):
            for name, step in steps.items():
                found[name].append(seconds(step))
    print(f"{args.preset}, batch {args.batch}, {trainer.accelerator.device}")
    for name, times in found.items():
        middle = statistics.median(times)
        print(
            f"{name:10} {middle * 1e3:8.0f} ms a step ({min(times) * 1e3:.0f} to "
            f"{max(times) * 1e3:.0f})  {args.batch / middle:6.1f} images/s"
        )
    ratios = [b / a for a, b in zip(*found.values(), strict=True)]
    print(f"diffusers / diffsteer: {statistics.median(ratios):.2f} x, {args.turns} turns")


if __name__ == "__main__":
    main()

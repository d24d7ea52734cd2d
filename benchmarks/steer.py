"""Steered pipelines beside diffusers' own at the same work, and against the bare network.

    python benchmarks/steer.py [--size small|mid|sdxl] [--device cpu|cuda] [--steps 10]

Every contender runs in the same process, turn by turn, on the same latents and embeddings. "x bare"
is the time over that of bare forwards of the same rows in the same passes, "MiB" the peak of memory
allocated on a GPU.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    UNet2DConditionModel,
)

from diffsteer import CFG, PAG, SAG, Auto, Guidance
from diffsteer.hf.steer import steer

Run = Callable[[], object]
CHANNELS = {"small": (96, 128), "mid": (160, 384), "sdxl": (320, 640, 1280)}
WIDTH, TOKENS = 128, 16


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        run: Samples once.
        passes: Rows of each pass of a step, in samples; the bare network is timed on the same.
    """

    run: Run
    passes: tuple[int, ...]


def network(size: str) -> Any:
    torch.manual_seed(0)
    levels = len(CHANNELS[size])
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS[size],
        layers_per_block=1 if size != "sdxl" else 2,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=WIDTH,
        attention_head_dim=8 if size != "sdxl" else (5, 10, 20),
        transformer_layers_per_block=1 if size != "sdxl" else (1, 2, 10),
    ).eval()


class Setting:
    """One network, its embeddings and the pipelines around it."""

    def __init__(self, size: str, device: str, steps: int) -> None:
        self.device, self.steps = device, steps
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.unet = network(size).to(device, self.dtype)
        self.guide = copy.deepcopy(self.unet)
        side = 128 if size == "sdxl" else 32
        self.x = torch.randn(1, 4, side, side).to(device, self.dtype)
        self.text = torch.randn(2, TOKENS, WIDTH).to(device, self.dtype)

    def pipeline(self, cls: Any, **more: Any) -> Any:
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
        )
        parts = dict.fromkeys(
            ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
        )
        pipe = cls(
            **parts, unet=self.unet, scheduler=scheduler, requires_safety_checker=False, **more
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sampling(self, pipe: Any, **more: Any) -> Run:
        return lambda: pipe(
            prompt_embeds=self.text[:1],
            negative_prompt_embeds=self.text[1:],
            latents=self.x,
            num_inference_steps=self.steps,
            guidance_scale=5.0,
            output_type="latent",
            **more,
        )

    def steered(self, guidance: Guidance, max_rows: int | None = None) -> Run:
        pipe = self.pipeline(StableDiffusionPipeline)
        run = self.sampling(pipe)

        def act() -> None:
            with steer(pipe, guidance, guide=self.guide, max_rows=max_rows):
                run()

        return act

    def bare(self, passes: tuple[int, ...]) -> Run:
        calls = [(self.x.repeat(n, 1, 1, 1), self.text[:1].repeat(n, 1, 1)) for n in passes]
        t = torch.tensor(500, device=self.device)

        def act() -> None:
            for _ in range(self.steps):
                for x, text in calls:
                    self.unet(x, t, text, return_dict=False)

        return act


def contenders(s: Setting) -> dict[str, Contender]:
    """Ours and theirs, at the same work."""
    plain = s.sampling(s.pipeline(StableDiffusionPipeline))
    sag = s.sampling(s.pipeline(StableDiffusionSAGPipeline, image_encoder=None), sag_scale=0.75)
    return {
        "diffusers CFG": Contender(plain, (2,)),
        "steer CFG": Contender(s.steered(CFG(5)), (2,)),
        "steer CFG, max_rows=1": Contender(s.steered(CFG(5), max_rows=1), (1, 1)),
        "diffusers CFG + SAG": Contender(sag, (2, 1)),
        "steer CFG + SAG": Contender(s.steered(CFG(5) + SAG(0.75)), (2, 1)),
        "diffusers CFG + PAG": Contender(pag(s), (3,)),
        "steer CFG + PAG": Contender(s.steered(CFG(5) + PAG(3)), (3,)),
        "steer CFG + Auto (same size)": Contender(s.steered(CFG(5) + Auto(2)), (2, 1)),
    }


def pag(s: Setting) -> Run:
    """Sample with diffusers' PAG pipeline, which sets its own processors, and put back the old."""
    before = dict(s.unet.attn_processors)
    run = s.sampling(
        s.pipeline(StableDiffusionPAGPipeline, image_encoder=None, pag_applied_layers="mid"),
        pag_scale=3.0,
    )

    def act() -> None:
        run()
        s.unet.set_attn_processor(dict(before))

    return act


def timed(run: Run, device: str) -> tuple[float, float]:
    """Seconds and peak memory in MiB of one sampling."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with torch.no_grad():
        run()
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20
    return time.perf_counter() - start, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(CHANNELS), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    s = Setting(args.size, args.device, args.steps)
    count = sum(p.numel() for p in s.unet.parameters())
    print(f"torch {torch.__version__}, {args.device}, {count / 1e6:.1f} M parameters")
    all_of = contenders(s)
    bare = {passes: s.bare(passes) for passes in {c.passes for c in all_of.values()}}
    times: dict[Any, list[float]] = {key: [] for key in (*all_of, *bare)}
    memory: dict[Any, float] = {}
    for turn in range(args.repeats + 1):
        for key in times:
            took, peak = timed(bare[key] if key in bare else all_of[key].run, args.device)
            memory[key] = peak
            if turn:
                times[key].append(took / args.steps * 1e3)
    head = f"{'rows of each pass':>40}{'median ms/step':>16}{'min':>9}{'max':>9}{'x bare':>8}"
    print(f"\n{head}{'MiB':>8}")
    for name, c in all_of.items():
        ms = times[name]
        ratio = statistics.median(a / b for a, b in zip(ms, times[c.passes], strict=True))
        print(
            f"{name:32}{'+'.join(map(str, c.passes)):>8}{statistics.median(ms):16.1f}"
            f"{min(ms):9.1f}{max(ms):9.1f}{ratio:8.3f}{memory[name]:8.0f}"
        )


if __name__ == "__main__":
    main()

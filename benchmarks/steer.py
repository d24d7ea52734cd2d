"""Steered pipelines beside diffusers' own at the same work, and against the bare network.

    python benchmarks/steer.py [--size small|mid|sdxl] [--device cpu|cuda] [--steps 10]
    python benchmarks/steer.py --family qwen|wan [--size small|mid]  # a call for each condition

Every contender runs in the same process, turn by turn, on the same latents and embeddings. "x bare"
is the time over that of bare forwards of the same rows in the same passes in the same turn, and
"x own" over that of the pipeline's own CFG, as medians with their quartiles. On a CPU, one thread's
CPU time is taken, which other processes disturb less than they do the clock.

"MiB" is the peak of memory beyond what was held before, in an untimed sampling of two steps: what
torch's allocator says on a GPU, and on a CPU the sum of all allocations and releases that torch's
profiler records. Scratch memory that a library takes from the system by itself is in neither.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    ClassifierFreeGuidance,
    DDIMScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    UNet2DConditionModel,
)
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from diffusers.utils import logging
from measured import peak, ratio, timed
from separate_calls import FAMILIES, LAYERS, SeparateCalls

from diffsteer import CFG, PAG, SAG, Auto, Guidance
from diffsteer.hf.guider import SteerGuider
from diffsteer.steering import steer

Run = Callable[[], Any]
CHANNELS = {"small": (96, 128), "mid": (160, 384), "sdxl": (320, 640, 1280)}
WIDTH, TOKENS = {"small": 384, "mid": 128, "sdxl": 128}, 16


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        run: Samples once.
        passes: Rows of each pass of a step, in samples; the bare network is timed on the same.
    """

    run: Run
    passes: tuple[int, ...]


SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


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
        cross_attention_dim=WIDTH[size],
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
        self.text = torch.randn(2, TOKENS, WIDTH[size]).to(device, self.dtype)

    def pipeline(self, cls: Any, **more: Any) -> Any:
        scheduler = DDIMScheduler(**SCHEDULE, steps_offset=1, clip_sample=False)
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

    def modular(self, guider: Any) -> Run:
        """The denoising loop of modular pipelines, around the same network."""
        loop = StableDiffusionXLDenoiseStep()
        loop.set_progress_bar_config(disable=True)
        pipe = loop.init_pipeline()
        scheduler = DDIMScheduler(**SCHEDULE, steps_offset=1, clip_sample=False)
        if isinstance(guider, SteerGuider):
            guider.scheduler = scheduler
        pipe.update_components(unet=self.unet, scheduler=scheduler, guider=guider)
        inputs = {}
        for name, rows in (("", slice(0, 1)), ("negative_", slice(1, 2))):
            inputs[f"{name}prompt_embeds"] = self.text[rows]
            inputs[f"{name}pooled_prompt_embeds"] = self.text[rows, 0]
            inputs[f"{name}add_time_ids"] = self.text[rows, 0, :6]

        def act() -> object:
            scheduler.set_timesteps(self.steps, self.device)
            return pipe(
                latents=self.x,
                timesteps=scheduler.timesteps,
                num_inference_steps=self.steps,
                eta=0.0,
                generator=None,
                denoiser_input_fields=inputs,
                output="latents",
            )

        return act

    def predict(self, guidance: Guidance, max_rows: int | None = None) -> Run:
        pipe = self.pipeline(StableDiffusionPipeline)
        run = self.sampling(pipe)

        def act() -> object:
            with steer(pipe, guidance, guide=self.guide, max_rows=max_rows):
                return run()

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
    pair, triple = CFG(5) + SAG(0.75), CFG(5) + PAG(3)
    two, guide = CFG(5) + Auto(2), s.guide
    return {
        "diffusers CFG": Contender(plain, (2,)),
        "steer CFG": Contender(s.predict(CFG(5)), (2,)),
        "steer CFG, max_rows=1": Contender(s.predict(CFG(5), max_rows=1), (1, 1)),
        "diffusers modular CFG": Contender(s.modular(ClassifierFreeGuidance(5.0)), (1, 1)),
        "SteerGuider CFG": Contender(s.modular(SteerGuider(CFG(5))), (2,)),
        "diffusers CFG + SAG": Contender(sag, (2, 1)),
        "steer CFG + SAG": Contender(s.predict(pair), (2, 1)),
        "SteerGuider CFG + SAG": Contender(s.modular(SteerGuider(pair)), (2, 1)),
        "diffusers CFG + PAG": Contender(pag(s), (3,)),
        "steer CFG + PAG": Contender(s.predict(triple), (3,)),
        "steer CFG + PAG, max_rows=1": Contender(s.predict(triple, max_rows=1), (1, 1, 1)),
        "steer CFG + Auto (same size)": Contender(s.predict(two), (2, 1)),
        "SteerGuider CFG + Auto": Contender(s.modular(SteerGuider(two, guide=guide)), (2, 1)),
    }


def separate(s: SeparateCalls) -> dict[str, Contender]:
    """The same of a pipeline that calls its network for each condition."""
    return {
        "diffusers CFG": Contender(s.sampling(), (1, 1)),
        "steer CFG": Contender(s.predict(CFG(5)), (2,)),
        "steer CFG, steered once": Contender(s.kept(CFG(5)), (2,)),
        "steer CFG, max_rows=1": Contender(s.predict(CFG(5), max_rows=1), (1, 1)),
        "steer CFG + PAG": Contender(s.predict(CFG(5) + PAG(3)), (3,)),
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


def apart(s: Setting) -> tuple[float, float]:
    """Greatest difference of the latents with max_rows=1, and their greatest value."""
    total = CFG(5) + PAG(3) + SAG(0.75)
    with torch.no_grad():
        a, b = (s.predict(total, max_rows=rows)().images.float() for rows in (None, 1))
    return (a - b).abs().max().item(), a.abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=["unet", *FAMILIES], default="unet")
    parser.add_argument("--size", choices=sorted(CHANNELS), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    if args.family != "unet" and args.size not in LAYERS:
        parser.error(f"--family {args.family} has --size {' or '.join(LAYERS)}")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    s: Any
    if args.family == "unet":
        s = Setting(args.size, args.device, args.steps)
        all_of, network = contenders(s), s.unet
    else:
        s = SeparateCalls(args.family, args.size, args.device, args.steps)
        all_of, network = separate(s), s.network
    count = sum(p.numel() for p in network.parameters())
    print(f"torch {torch.__version__}, {args.device}, {count / 1e6:.1f} M parameters")
    bare = {passes: s.bare(passes) for passes in {c.passes for c in all_of.values()}}
    s.steps = 2
    runs: dict[Any, Run] = {**{name: c.run for name, c in all_of.items()}, **bare}
    memory = {key: peak(run, args.device) for key, run in runs.items()}
    s.steps = args.steps
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for turn in range(args.repeats + 1):
        for key, run in runs.items():
            took = timed(run, args.device)
            if turn:
                times[key].append(took / args.steps * 1e3)
    head = f"{'rows of each pass':>46}{'median ms/step':>16}{'min':>9}{'max':>9}"
    columns = f"{'x bare (quartiles)':>24}{'x own (quartiles)':>24}"
    print(f"\n{head}{columns}{'MiB':>8}{'bare':>8}")
    for name, c in all_of.items():
        ms = times[name]
        bars, own = ratio(ms, times[c.passes]), ratio(ms, times["diffusers CFG"])
        print(
            f"{name:30}{'+'.join(map(str, c.passes)):>16}{statistics.median(ms):16.1f}"
            f"{min(ms):9.1f}{max(ms):9.1f}{bars:>24}{own:>24}"
            f"{memory[name]:8.1f}{memory[c.passes]:8.1f}"
        )
    if args.family == "unet":
        off, size = apart(s)
        print(f"\nCFG + PAG + SAG, stacked and max_rows=1: apart by {off:.1e} of {size:.2f}")


if __name__ == "__main__":
    main()

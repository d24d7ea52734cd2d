"""What the sampling loop costs beyond the network: ms a step with a network that does nothing.

    python benchmarks/loop.py [--steps 50] [--repeats 40] [--threads 1]

Peers run in the same process, turn by turn, on the same latents. diffusers comes with the extra
`hf`; k-diffusion is optional: pip install --no-deps k-diffusion torchsde torchdiffeq trampoline &&
pip install scipy.
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch

from diffsteer import DDIM, DDPM, Discrete, DPMpp2M, Heun, Level, Sampler, UniPC, V, grid
from diffsteer.hf.scheduler import SteerScheduler

Run = Callable[[torch.Tensor], object]
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def ours(sampler: Sampler, steps: int, null: torch.Tensor, kind: V | None = None) -> Run:
    levels = grid(Discrete.scaled_linear(), steps)

    def x0(x: torch.Tensor, level: Level) -> torch.Tensor:
        return null

    def from_v(x: torch.Tensor, level: Level) -> torch.Tensor:
        return V().x0(x, null, level)

    return lambda x: [None for _ in sampler(x, levels, from_v if kind else x0)]


def scheduler(made: Any, steps: int, null: torch.Tensor) -> Run:
    def run(x: torch.Tensor) -> None:
        made.set_timesteps(steps)
        for t in made.timesteps:
            x = made.step(null, t, x, return_dict=False)[0]

    return run


def diffusers_schedulers() -> dict[str, Any]:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    v = {**SD, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    return {
        "diffusers DDIM": DDIMScheduler(**v, clip_sample=False),
        "diffusers DPMSolverMultistep": DPMSolverMultistepScheduler(**v),
        "diffusers UniPCMultistep": UniPCMultistepScheduler(**v),
    }


def k_diffusion_sampling() -> Any:
    """Import k_diffusion.sampling alone: its package also imports what only its trainer needs."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return None
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    # its utils import torchvision for images; the samplers use none of it
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stubs = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    for name, stub in stubs.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, stub)
    sys.modules |= {"k_diffusion": package, **stubs}
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in stubs:
            del sys.modules[name]


def k_diffusion(sample: Any, steps: int, null: torch.Tensor) -> Run:
    sigmas = torch.cat(
        [level.ratio[None] for level in grid(Discrete.scaled_linear(), steps)]
    ).float()
    return lambda x: sample(lambda x, sigma: null, x, sigmas, disable=True)


def contenders(steps: int, null: torch.Tensor) -> dict[str, Run]:
    runs: dict[str, Run] = {
        "diffsteer DDIM": ours(DDIM(), steps, null),
        "diffsteer DDIM from v": ours(DDIM(), steps, null, V()),
        "diffsteer DDPM (ancestral)": ours(DDPM, steps, null),
        "diffsteer DPMpp2M": ours(DPMpp2M(), steps, null),
        "diffsteer UniPC": ours(UniPC(), steps, null),
        "diffsteer Heun": ours(Heun(), steps, null),
        "diffsteer DDIM as scheduler": scheduler(
            SteerScheduler(**SD, prediction_type="v_prediction"), steps, null
        ),
    }
    runs |= {name: scheduler(made, steps, null) for name, made in diffusers_schedulers().items()}
    sampling = k_diffusion_sampling()
    if sampling is None:
        print("k-diffusion is not installed: its rows are missing", file=sys.stderr)
        return runs
    for name in ("sample_euler", "sample_dpmpp_2m", "sample_heun"):
        runs[f"k-diffusion {name}"] = k_diffusion(getattr(sampling, name), steps, null)
    return runs


def measure(batch: int, steps: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a step of every contender, in turns so that drift meets all alike."""
    x, null = torch.randn(2, batch, 4, 64, 64).unbind()
    runs = contenders(steps, null)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            with torch.no_grad():
                run(x)
            if turn >= 3:
                times[name].append((time.perf_counter() - start) / steps * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {args.threads} thread(s), latents 4x64x64, {args.steps} steps"
    )
    for batch in (1, 8):
        times = measure(batch, args.steps, args.repeats)
        base = statistics.median(times["diffsteer DDIM"])
        print(f"\nbatch {batch:<24} median ms   min      max      / diffsteer DDIM")
        for name, ms in times.items():
            mid = statistics.median(ms)
            print(f"{name:<30} {mid:9.4f} {min(ms):8.4f} {max(ms):8.4f} {mid / base:8.2f}")


if __name__ == "__main__":
    main()

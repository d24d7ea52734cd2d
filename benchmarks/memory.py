"""Memory of long work, as MiB resident now and at most, at 10, 50 and 100 % of it.

    python benchmarks/memory.py sample   # 2,000 seeds through SeedImages, as `diffsteer sample`
    python benchmarks/memory.py steer    # 1,000 times steer, one step, remove

On "critters" of diffsteer-lab, on the CPU.
"""

import argparse
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from diffsteer import Recipe, load, open_generator, steer
from diffsteer.generate.seed_images import SeedImages

GUIDANCE = "CFG(3) + PAG(2) + SAG(0.5)"
SHARES = (0.1, 0.5, 1.0)


def sampled(images: int) -> Iterator[int]:
    """Sample so many images into a folder, tenth by tenth."""
    recipe = Recipe("critters", "a purple critter", guidance="CFG(3)", sampler="DDIM()", steps=1)
    with tempfile.TemporaryDirectory() as out, open_generator(recipe, "cpu") as generator:
        folder, part = SeedImages(Path(out), generator), max(1, images // 10)
        for start in range(0, images, part):
            folder.fill(range(start, start + part), batch=20)
            yield start + part


def steered(times: int) -> Iterator[int]:
    """Steer a pipeline, sample a step and give it back, so many times."""
    pipe = load("critters", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for i in range(times):
        with steer(pipe, GUIDANCE):
            pipe("a purple critter", num_inference_steps=1, output_type="latent")
        yield i + 1


def resident() -> float:
    """Memory that this process has now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Print a line for each share of the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=("sample", "steer"))
    parser.add_argument("--count", type=int, default=0, help="0 for 2,000 images, 1,000 steerings")
    options = parser.parse_args()
    count = options.count or {"sample": 2_000, "steer": 1_000}[options.work]
    work = {"sample": sampled, "steer": steered}[options.work]
    torch.set_num_threads(1)
    marks = [round(share * count) for share in SHARES]
    for done in work(count):
        if done in marks:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{done:6} {resident():8.0f} MiB now {most:8.0f} MiB at most", flush=True)


if __name__ == "__main__":
    main()

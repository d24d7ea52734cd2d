"""Obedience of the critter model to held-out prompts, at stages of its training.

    python benchmarks/critters.py --run runs/critters-eps --stages 80 160 320 --n 400

For each stage (thousands of images, of `averages/`) the model without guidance, with CFG and with
autoguidance by the snapshot at a quarter of it, on the same prompts and seeds. The rule, set
before training: the data set is taken where guidance raises the share of images that are all right
by 15 points or more at a stage where unguided samples already look clean.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from diffsteer_lab.critters.grammar import ATTRIBUTES, Critter
from diffsteer_lab.critters.images import Critters
from diffsteer_lab.critters.judge import WEIGHTS, judge
from safetensors.torch import load_file
from torch import Tensor

from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.io.hashing import digest, file_hash
from diffsteer.io.strict import from_table
from diffsteer.metrics.bootstrap import weights
from diffsteer.metrics.features import Custom, Origin, key_of
from diffsteer.metrics.sampled import sampled
from diffsteer.train.log import save_grid
from diffsteer.train.registry import TASKS
from diffsteer.train.settings import Run

GUIDANCES = ("", "CFG(1.5)", "CFG(2)", "CFG(3)", "Auto(1.5)", "Auto(2)")
PROMPTS_SEED = 103


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="runs/PRESET")
    parser.add_argument("--stages", type=int, nargs="+", default=[80, 160, 320])
    parser.add_argument("--n", type=int, default=400, help="held-out prompts")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("measured"))
    options = parser.parse_args()
    source = Critters("test", options.n, seed=PROMPTS_SEED)
    prompts = tuple(source.caption(i) for i in range(options.n))
    truth = torch.tensor([indices(source.critter(i)) for i in range(options.n)])
    for stage in options.stages:
        model, guide = (pipeline(options.run, kimg, options.work) for kimg in (stage, stage // 4))
        base = Recipe(str(model), prompts=prompts, sampler="UniPC()", steps=options.steps)
        first = None
        for text in GUIDANCES:
            recipe = replace(base, guidance=text, guide=str(guide) if "Auto" in text else "")
            right = drawn(recipe, options.n, options.work, f"{stage}-{text or 'none'}") == truth
            first = right if first is None else first
            print(
                json.dumps({"kimg": stage, "guidance": text, **figures(right, first)}), flush=True
            )


def indices(critter: Critter) -> list[int]:
    return [words.index(getattr(critter, name)) for name, words in ATTRIBUTES.items()]


def read(images: Tensor) -> Tensor:
    """What the judge reads, as the numbers of its words."""
    return torch.tensor([indices(critter) for critter in judge().read(images)], dtype=torch.float32)


def pipeline(run: Path, kimg: int, work: Path) -> Path:
    """Folder of the pipeline with the average at a stage of a training run, which may go on."""
    folder = work / f"{run.name}-{kimg}"
    if not folder.exists():
        settings = Run.named(run.name)
        name = f"network-snapshot-{kimg:07d}-{settings.training.keep:.3f}.safetensors"
        kind, make = TASKS[settings.task]
        task, _ = make(settings, from_table(kind, settings.settings, "settings"))
        weights = load_file(run / "averages" / name)
        assert weights.keys() == task.trained().keys()
        task.load_state_dict(weights, strict=False)
        task.save(folder)
    return folder


def drawn(recipe: Recipe, n: int, work: Path, name: str) -> Tensor:
    """Numbers of the words that the judge reads from the images of seeds 0 to n - 1, `(N, 7)`."""
    extractor = Custom(read, Origin("critters judge", "words", "64", file_hash(WEIGHTS)))
    with open_pipeline(recipe) as images, torch.autocast("cpu", torch.bfloat16):
        key = {**images.key, "autocast": "bfloat16"}
        out = work / digest(key_of(key, extractor))[:16]
        save_grid(images(range(32)), work / f"{name}.png")
        made = sampled(images, range(n), extractor, out, key, 16, n)
    return made.statistics.features.long()


def figures(right: Tensor, first: Tensor) -> dict[str, object]:
    """Shares with 95 % intervals over prompts, and their gain over the first, paired."""
    w = weights(len(right), 1000)
    w = w / w.sum(1, keepdim=True)
    each = {"attributes": right.float().mean(1), "all right": right.all(1).float()}
    base = {"attributes": first.float().mean(1), "all right": first.all(1).float()}
    columns = {**each, **{f"gain in {k}": v - base[k] for k, v in each.items()}}
    table: dict[str, object] = {
        name: [
            round(x, 4)
            for x in (v.mean().item(), *(w @ v).quantile(torch.tensor([0.025, 0.975])).tolist())
        ]
        for name, v in columns.items()
    }
    return {
        "n": len(right),
        **table,
        "by attribute": dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True)),
    }


if __name__ == "__main__":
    main()

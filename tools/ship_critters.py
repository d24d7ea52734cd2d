"""Put trained critter models into the package: half precision, with a card beside each.

    python tools/ship_critters.py [--runs runs]

Needs the finished runs of the presets critters-* in one folder. What the models share (autoencoder,
text encoder, tokenizer) ships once, with "critters". With --adapters the refiners and the LoRA of
guidance ship alone: they were trained on the model that ships, which then stays as it is.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffsteer_lab.critters.grammar import VOCABULARY
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffsteer.hf.lora import FILE
from diffsteer.refine.metadata import read, write
from diffsteer.train.settings import Run

TARGET = Path(__file__).parent.parent / "lab/src/diffsteer_lab/assets/critters"
LIMIT = 45_000_000
CHAIN = {
    "critters": ("critters-vae", "critters-eps", "critters"),
    "critters-eps": ("critters-vae", "critters-eps"),
    "critters-guide": ("critters-vae", "critters-eps", "critters-guide-eps", "critters-guide"),
    "critters-refiner": ("critters-refiner",),
    "critters-lowfreq-refiner": ("critters-lowfreq-refiner",),
    "critters-agd": ("critters-agd",),
}
"""Models that ship, and the presets that make each, in order."""
REFINERS = ("critters-refiner", "critters-lowfreq-refiner")
LORA = "critters-agd"
ADAPTERS = (*REFINERS, LORA)
USE = {
    "critters": "`DiffusionPipeline.from_pretrained` of this folder, or its name wherever "
    "diffsteer takes a model.",
    "critters-eps": "Its name wherever diffsteer takes a model. Here are its network "
    "and scheduler; the rest is that of `critters`.",
    "critters-guide": 'Its name as guide of `critters`: `--guidance "Auto(2)" --guide '
    "critters-guide`.",
    "critters-refiner": "Its name as refiner of the noise of `critters`, without guidance: "
    "`--refiner critters-refiner`.",
    "critters-lowfreq-refiner": "Its name as refiner of the noise of `critters`, without guidance "
    "and without an evaluation of its own: `--refiner critters-lowfreq-refiner`.",
    "critters-agd": "Its name as LoRA of `critters`, without guidance: `--lora critters-agd`.",
}
TARGETS = """```python
from pathlib import Path

from diffsteer_lab.critters.images import Critters

data = Critters("train", 12_000, seed=1)
Path("prompts.txt").write_text("\\n".join(data.caption(i) for i in range(len(data))))
```

```console
diffsteer refine targets critters --prompts prompts.txt --guidance "CFG(2)" --sampler "UniPC()" \\
  --steps 12 --seeds 0-11999 --dtype bfloat16 --trajectory --out runs/critters-targets
```
"""
"""How what the adapters learn from was made."""
LICENCE = """## Data and licence

Trained on 20,000 renderings of the style Critters by DiceBear (https://www.dicebear.com), CC0
1.0, as `../NOTICE.md` says. The weights are under Apache-2.0; images may be used for any purpose.
"""
GRAMMAR = (
    "Prompts are such as `a purple three-eyed tower critter with green antennae, grinning, "
    f"on an orange background`: {VOCABULARY}. It knows nothing else."
)


def main() -> None:
    """Put models into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--adapters", action="store_true", help="the refiners and the LoRA alone")
    options = parser.parse_args()
    names = ADAPTERS if options.adapters else [name for name in CHAIN if name not in ADAPTERS]
    for name in names:
        shutil.rmtree(TARGET / name, ignore_errors=True)
    (adapters if options.adapters else models)(options.runs)
    for path in TARGET.rglob("*.json"):  # where models lay on the machine that trained them
        config = json.loads(path.read_text("utf-8"))
        if config.pop("_name_or_path", None):
            path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for name in names:
        (TARGET / name / "README.md").write_text(card(name, options.runs), "utf-8")
    size = sum(f.stat().st_size for f in TARGET.rglob("*") if f.is_file())
    print(f"{TARGET}: {size / 1e6:.1f} MB")
    if size > LIMIT:
        raise SystemExit(f"over {LIMIT / 1e6:.0f} MB")


def models(runs: Path) -> None:
    """Networks of both schedules and the guide."""
    half = {"dtype": torch.float16}
    for name in ("critters", "critters-eps"):
        pipe = StableDiffusionPipeline.from_pretrained(runs / name / "model", **half)
        if name == "critters":
            pipe.save_pretrained(TARGET / name)
        else:
            pipe.unet.save_pretrained(TARGET / name / "unet")
            pipe.scheduler.save_pretrained(TARGET / name / "scheduler")
    guide = UNet2DConditionModel.from_pretrained(runs / "critters-guide" / "model" / "unet", **half)
    guide.save_pretrained(TARGET / "critters-guide")


def adapters(runs: Path) -> None:
    """What makes guided images of `critters` at unguided cost."""
    for refiner in REFINERS:
        metadata, weights = read(runs / refiner / "model")
        write(TARGET / refiner, metadata, {name: w.half() for name, w in weights.items()})
    (TARGET / LORA).mkdir()
    halves = {n: w.half() for n, w in load_file(runs / LORA / "model" / FILE).items()}
    save_file(halves, TARGET / LORA / FILE)


def card(name: str, runs: Path) -> str:
    """Model card: what it is, how it was made, what it may be used for."""
    weights = list((TARGET / name).rglob("*.safetensors"))
    rows = [f"| `{preset}` | {seen(runs / preset)} |" for preset in CHAIN[name]]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{Run.named(name).about[0].upper()}{Run.named(name).about[1:]}. 64 x 64 pixels; "
            f"{sum(f.stat().st_size for f in weights) / 1e6:.1f} MB in half precision.",
            "",
            USE[name],
            "",
            GRAMMAR,
            "",
            "## How it was made",
            "",
            *(TARGETS.splitlines() if name in ADAPTERS else []),
            *([""] if name in ADAPTERS else []),
            "```console",
            *(f"diffsteer train {preset}" for preset in CHAIN[name]),
            "```",
            "",
            "| preset | images, loss or distance at the end, learning rate at the end |",
            "|---|---|",
            *rows,
            "",
            "The weights are a power-function average over training, of relative length "
            "sigma_rel = 0.05. Settings are in the presets, `lab/src/diffsteer_lab/presets`.",
            "",
            LICENCE,
        ]
    )


def seen(run: Path) -> str:
    """Images seen, and the last losses, of a run."""
    last: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    loss = last.get("loss", last.get("distance"))
    return f"{last['images']:,}, {loss:.4f}, {last['rate']:.1e}"


if __name__ == "__main__":
    main()

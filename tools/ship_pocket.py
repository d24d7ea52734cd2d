"""Put trained pocket models into the package: half precision, with a card beside each.

    python tools/ship_pocket.py [--runs runs]

Needs the finished runs of the presets pocket-vae, pocket-eps, pocket and pocket-guide in one
folder. What the models share (autoencoder, text encoder, tokenizer) ships once, with "pocket".
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from diffsteer.train.settings import Run

TARGET = Path(__file__).parent.parent / "lab/src/diffsteer_lab/assets/pocket"
LIMIT = 45_000_000
CHAIN = {
    "pocket": ("pocket-vae", "pocket-eps", "pocket"),
    "pocket-eps": ("pocket-vae", "pocket-eps"),
    "pocket-guide": ("pocket-vae", "pocket-eps", "pocket", "pocket-guide"),
}
"""Models that ship, and the presets that make each, in order."""
USE = {
    "pocket": "`DiffusionPipeline.from_pretrained` of this folder, or the name `pocket` wherever "
    "diffsteer takes a model.",
    "pocket-eps": "The name `pocket-eps` wherever diffsteer takes a model. Here are its network "
    "and scheduler; the rest is that of `pocket`.",
    "pocket-guide": 'The name `pocket-guide` as guide of `pocket`: `--guidance "Auto(2)" --guide '
    "pocket-guide`.",
}
LICENCE = """## Data and licence

Trained on 1239 emoji on coloured backgrounds: Noto Emoji (Copyright Google, Apache-2.0) and Twemoji
(Copyright Twitter, Inc and other contributors, CC-BY 4.0), composed and encoded, as
`../../emoji/NOTICE.md` says. The weights are under Apache-2.0; images "in twemoji style" are
made after Twemoji: keep its attribution with them (https://creativecommons.org/licenses/by/4.0/).
"""


def main() -> None:
    """Put models into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    runs = parser.parse_args().runs
    shutil.rmtree(TARGET, ignore_errors=True)
    half = {"dtype": torch.float16}
    for name in ("pocket", "pocket-eps"):
        pipe = StableDiffusionPipeline.from_pretrained(runs / name / "model", **half)
        if name == "pocket":
            pipe.save_pretrained(TARGET / name)
        else:
            pipe.unet.save_pretrained(TARGET / name / "unet")
            pipe.scheduler.save_pretrained(TARGET / name / "scheduler")
    guide = UNet2DConditionModel.from_pretrained(runs / "pocket-guide" / "model" / "unet", **half)
    guide.save_pretrained(TARGET / "pocket-guide")
    for path in TARGET.rglob("*.json"):  # where models lay on the machine that trained them
        said = json.loads(path.read_text("utf-8"))
        if said.pop("_name_or_path", None):
            path.write_text(json.dumps(said, indent=2) + "\n", "utf-8")
    for name in CHAIN:
        (TARGET / name / "README.md").write_text(card(name, runs), "utf-8")
    size = sum(f.stat().st_size for f in TARGET.rglob("*") if f.is_file())
    print(f"{TARGET}: {size / 1e6:.1f} MB")
    if size > LIMIT:
        raise SystemExit(f"over {LIMIT / 1e6:.0f} MB")


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
            "Prompts are such as `red apple, noto style, on a white background`: a thing of the "
            "Unicode emoji, a style (noto, twemoji) and a background (white, black, red, blue, "
            "green, yellow, purple, grey). It knows nothing else.",
            "",
            "## How it was made",
            "",
            "```console",
            *(f"diffsteer train {preset}" for preset in CHAIN[name]),
            "```",
            "",
            "| preset | images, loss at the end, learning rate at the end |",
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
    return f"{last['images']:,}, {last['loss']:.4f}, {last['rate']:.1e}"


if __name__ == "__main__":
    main()

"""`diffsteer train`: a preset, its settings changed, in a folder that goes on where it stopped."""

import json
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from diffsteer.core.errors import InputError


def train(
    preset: Positional[str] = "",
    /,
    model: str = "",
    targets: str = "",
    changes: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE")
    ] = (),
    out: Path | None = None,
    start: Annotated[int | None, arg(name="from", metavar="IMAGES")] = None,
) -> None:
    """Train a preset; without one, list them. Started again, it goes on from its last checkpoint.

    Run it on several GPUs or machines with `accelerate launch -m diffsteer.cli train ...`.

    Args:
        preset: Name of a preset, or a TOML file like one.
        model: Pipeline to start from, a hub id or folder; short for --set settings.start=MODEL.
        targets: Folder of `diffsteer refine targets`, for a refiner or agd; short for --set
            settings.targets=TARGETS.
        changes: Another value for one setting, such as training.images=1000; may be repeated.
        out: Folder of the run; empty for runs/PRESET.
        start: Go on from the checkpoint at this count of images, not from the latest.
    """
    from diffsteer.io.atomic import require_writable
    from diffsteer.io.hub import require_known
    from diffsteer.train.settings import Run, presets

    named = {"start": model, "targets": targets}
    if not preset and (model or targets or changes or out or start):
        raise InputError("name the preset that is to be trained; `diffsteer train` lists them")
    if not preset:
        for name, (about, cost) in presets().items():
            print(f"{name:18} {about}" + (f" ({cost})" if cost else ""))
        return
    short = (f"settings.{name}={json.dumps(value)}" for name, value in named.items() if value)
    run = Run.named(preset, *short, *changes)
    folder = out or Path("runs") / Path(preset).stem
    require_writable(folder)
    require_known(*(str(run.settings.get(name, "")) for name in ("start", "vae")))
    from diffsteer.train.curves import MISSING, can_draw
    from diffsteer.train.registry import begin

    how = run.training
    if how.checkpoint > how.images:
        print(
            f"training.checkpoint={how.checkpoint} is beyond training.images={how.images}: nothing "
            "is kept of this run before its end. Set it lower where that would be a loss",
            file=sys.stderr,
        )
    trainer = begin(run, folder, start)
    if trainer.first:
        weights = sum(p.numel() for p in trainer.trained.values()) / 1e6
        device, named = trainer.accelerator.device.type, {"no": "float32"}
        print(
            f"{folder}: {trainer.images} of {how.end} images are done; {run.task} of {weights:.3g} "
            f"M weights in batches of {how.batch}, learning rate {how.rate:g}, "
            f"{named.get(how.precision, how.precision)} on {device}"
        )
        warn_of_bf16(how.precision, device)
        if not can_draw():
            print(MISSING, file=sys.stderr)
    try:
        trainer.fit()
    except KeyboardInterrupt:
        if trainer.first:
            print(f"{trainer.checkpoints.last()}: the same command resumes there", file=sys.stderr)
        raise
    if trainer.first:
        print(f"{folder / 'model'} holds the result")


def warn_of_bf16(precision: str, device: str) -> None:
    """Measure bfloat16 on a CPU, where it may be far slower than float32."""
    from diffsteer.io.device import bf16_slowdown

    if (precision, device) == ("bf16", "cpu") and (ratio := bf16_slowdown()) > 2:
        print(
            f"warning: bf16 is {ratio:.0f} times slower than float32 on this CPU: a run with "
            "--set training.precision=no, in another --out, is faster",
            file=sys.stderr,
        )

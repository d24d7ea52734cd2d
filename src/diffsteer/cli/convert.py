"""`diffsteer convert` and `diffsteer ema`; importable without torch."""

from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional

from diffsteer.core.errors import InputError


def edm2(source: Positional[Path], out: Positional[Path], /) -> None:
    """Convert an official EDM2 snapshot to safetensors and JSON; nothing in it is run.

    Args:
        source: The .pkl file.
        out: Folder to make; must not be there.
    """
    from diffsteer.models.edm2.snapshot import convert

    stored = convert(source, out)
    size = sum(t.numel() for t in stored.tensors.values())
    print(f"{out}: {size / 1e6:.1f} million numbers, {stored.config}")


def adm(source: Positional[Path], out: Positional[Path], /, flags: str = "") -> None:
    """Convert an ADM or IDDPM checkpoint to safetensors and JSON; nothing in it is run.

    Args:
        source: The .pt or .safetensors file.
        out: Folder to make; must not be there.
        flags: Of the network, as its README writes them, --flags="--image_size 64 ...", or the name
            of a published file that has the same; empty for those of the file name.
    """
    from diffsteer.models.adm.checkpoint import convert
    from diffsteer.models.adm.flags import Flags
    from diffsteer.models.adm.published import PUBLISHED

    known = PUBLISHED.get(flags) or (Flags.parse(flags) if flags else None)
    print(f"{out}: {convert(source, out, known)}")


def ema(
    snapshots: Positional[Path],
    /,
    out: Path,
    std: str = "0.010,0.015,...,0.250",
    kimg: float | None = None,
    prefix: str = "network-snapshot",
    outprefix: str = "phema",
    batch: int = 8,
    skip: Annotated[bool, FlagCreatePairsOff] = False,
) -> None:
    """Reconstruct averages of weights of any length from snapshots of a training.

    Args:
        snapshots: Folder with PREFIX-KIMG-WIDTH.pkl, folders or .safetensors of such names.
        out: Folder for OUTPREFIX-KIMG-WIDTH.
        std: Relative widths of the averages, such as "0.05,0.1" or "0.010,0.015,...,0.250".
        kimg: Thousands of images at which they end, as a snapshot's name says; the last without.
        prefix: Of the names of snapshots.
        outprefix: Of the names of results.
        batch: Results made at a time; each takes the memory of a network.
        skip: Leave out results that are there already, instead of refusing.
    """
    from diffsteer.models.edm2.posthoc import reconstruct

    widths = widths_of(std)
    for path in reconstruct(snapshots, out, widths, kimg, prefix, outprefix, batch, skip):
        print(path)


def widths_of(text: str) -> list[float]:
    """Read "0.05,0.1", or "0.010,0.015,...,0.250" for even steps."""
    try:
        before, dots, last = text.partition(",...,")
        widths = [float(part) for part in before.split(",")]
        if dots:
            *_, a, b = widths
            steps = round((float(last) - b) / (b - a))
            if steps < 0 or abs(b + steps * (b - a) - float(last)) > 1e-6:
                raise InputError
            widths += [b + (i + 1) * (b - a) for i in range(steps)]
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f'{text!r}: write widths as "0.05,0.1" or "0.01,0.02,...,0.25"') from error
    widths = [round(width, 3) for width in widths]  # names of files have three decimals
    if len(set(widths)) < len(widths):
        raise InputError(f"{text!r} names a width twice, in three decimals")
    return widths

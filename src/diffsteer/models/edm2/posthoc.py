"""Averages of any length from a folder of snapshots.

Snapshots are named as users of EDM2 know them, PREFIX-KIMG-WIDTH: thousands of training images in
seven digits or more (and three decimals, of runs whose snapshots are less than a thousand apart),
relative width of the average in three decimals. They are official pickles
(.pkl), folders of ours, or bare .safetensors of any network.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.power_ema import Profile, gamma, weights
from diffsteer.io.atomic import atomic_write
from diffsteer.io.safetensors_header import read_header
from diffsteer.io.strict import read_safetensors
from diffsteer.models.edm2.config import read_config
from diffsteer.models.edm2.model import Checkpoint
from diffsteer.models.edm2.snapshot import read

SUFFIXES = ("", ".pkl", ".safetensors")


@dataclass(frozen=True)
class Snapshot:
    """A stored average.

    Attributes:
        path: File or folder.
        kimg: Thousands of training images at its end, as its name says.
        count: Training images at its end.
        width: Relative width, sigma_rel.
    """

    path: Path
    kimg: float
    count: int
    width: float

    @property
    def profile(self) -> Profile:
        """What `diffsteer.core.power_ema` calls it."""
        return self.count, gamma(self.width)

    def load(self) -> Checkpoint:
        """Read config and tensors; a bare .safetensors has no config."""
        if self.path.suffix == ".safetensors":
            return Checkpoint({}, read_safetensors(self.path))
        return read(self.path) if self.path.suffix == ".pkl" else Checkpoint.load(self.path)


def name(prefix: str, kimg: float, width: float) -> str:
    """Name of a snapshot without suffix: "phema-2147483-0.130", or "phema-0000002.500-0.130"."""
    thousands = f"{int(kimg):07d}" if kimg == int(kimg) else f"{kimg:011.3f}"
    return f"{prefix}-{thousands}-{width:.3f}"


def images(kimg: float) -> int:
    """Training images of a snapshot from its name's thousands: whole steps of 1024, if any fit."""
    if kimg != int(kimg):
        return round(kimg * 1000)
    count = math.ceil(kimg * 1000 / 1024) * 1024
    return count if count // 1000 == kimg else int(kimg) * 1000


def _exact(path: Path) -> int | None:
    """Training images, where a file or folder of ours says them."""
    if path.suffix == ".safetensors":
        images = read_header(path)[1].get("images", "")
        return int(images) if re.fullmatch(r"\d{1,18}", images) else None
    count = read_config(path).get("images") if path.is_dir() else None
    return count if isinstance(count, int) else None


def find(folder: Path | str, prefix: str) -> list[Snapshot]:
    """List the snapshots of a folder by their names' time and width; none of the untrained start.

    Raises:
        FileNotFoundError: there is no such folder, or no snapshot in it.
        ValueError: one is there in two formats.
    """
    pattern = re.compile(rf"{re.escape(prefix)}-(\d{{7,}}(?:\.\d{{3}})?)-(0\.\d{{3}})")
    folder, snapshots = Path(folder), dict[tuple[float, float], Snapshot]()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(path.stem if path.suffix in SUFFIXES[1:] else path.name)
        if match is None or float(match[1]) == 0:
            continue
        kimg, width = float(match[1]), float(match[2])
        if (kimg, width) in snapshots:
            raise InputError(f"{path.name} is there twice, in two formats: remove one")
        snapshots[kimg, width] = Snapshot(path, kimg, _exact(path) or images(kimg), width)
    if not snapshots:
        raise FileNotFoundError(
            f"{folder} holds no {prefix}-KIMG-WIDTH, such as {name(prefix, 8388, 0.05)}.pkl"
        )
    return [snapshots[key] for key in sorted(snapshots)]


def reconstruct(
    folder: Path | str,
    out: Path | str,
    widths: Sequence[float],
    kimg: float | None = None,
    prefix: str = "network-snapshot",
    out_prefix: str = "phema",
    batch: int = 8,
    skip: bool = False,
) -> list[Path]:
    """Write the averages of other widths at the time of a snapshot, in float16.

    Each is the sum of all snapshots of the folder that is nearest to it, accumulated in float32.
    Buffers are those of the last snapshot.

    Args:
        folder: Holds the snapshots.
        out: Folder for the results; folders of ours, or .safetensors if the snapshots are such.
        widths: Relative widths, in ]0, 0.288].
        kimg: Thousands of images at which they end, as in the name of a snapshot; None is the last.
        prefix: Of the snapshots' names.
        out_prefix: Of the results' names.
        batch: Results for one reading of the snapshots, >= 1; each takes the memory of a network.
        skip: Whether to leave out results that are there, instead of refusing.

    Raises:
        FileNotFoundError: as `find`, or there is no snapshot at that time.
        FileExistsError: a result is there already.
        ValueError: a width cannot be, or snapshots are not of one network.
    """
    out, stored = Path(out), find(folder, prefix)
    end = stored[-1].kimg if kimg is None else kimg
    count = max((one.count for one in stored if one.kimg == end), default=0)
    if not count:
        times = ", ".join(f"{kimg:.10g}" for kimg in sorted({one.kimg for one in stored}))
        raise FileNotFoundError(f"no snapshot at {end:.10g} thousand images: there are {times}")
    suffix = ".safetensors" if stored[-1].path.suffix == ".safetensors" else ""
    todo = {out / (name(out_prefix, end, width) + suffix): width for width in widths}
    for path in [path for path in todo if path.exists()]:
        if not skip:
            raise FileExistsError(f"{path} is there already: remove it, or skip what is there")
        del todo[path]
    if batch < 1:
        raise InputError(f"batch={batch} makes nothing: give at least 1")
    shares = {p: weights([s.profile for s in stored], (count, gamma(w))) for p, w in todo.items()}
    paths = list(todo)
    for start in range(0, len(paths), batch):
        _write(stored, {path: shares[path] for path in paths[start : start + batch]}, count)
    return paths


def _write(stored: Sequence[Snapshot], shares: dict[Path, Tensor], count: int) -> None:
    """Sum up the snapshots for some results, which end at a count, reading each once."""
    sums: dict[Path, dict[str, Tensor]] = {path: {} for path in shares}
    last = None
    for i, one in enumerate(stored):
        now = one.load()
        if last is not None and (last.config, _shapes(last)) != (now.config, _shapes(now)):
            raise InputError(f"{one.path} is of another network than {stored[i - 1].path}")
        last = now
        averaged = {n: t.float() for n, t in now.tensors.items() if not _is_buffer(n, t)}
        for path, share in shares.items():
            for name, t in averaged.items():
                if i == 0:
                    sums[path][name] = torch.zeros_like(t)
                sums[path][name].add_(t, alpha=share[i].item())
    assert last is not None
    for path, total in sums.items():
        mixed = {n: total.get(n, t) for n, t in last.tensors.items()}
        made = {n: t.half() if t.is_floating_point() else t for n, t in mixed.items()}
        broken = [n for n, t in made.items() if not t.isfinite().all()]
        if broken:
            raise InputError(
                f"{broken[0]} of {path.name} holds NaN or what float16 cannot: look at the "
                f"snapshots of {stored[0].path.parent}"
            )
        _save(path, Checkpoint(last.config, made, {**last.about, "images": count}))


def _save(path: Path, result: Checkpoint) -> None:
    if path.suffix != ".safetensors":
        result.save(path)
        return
    from safetensors.torch import save

    with atomic_write(path) as file:
        file.write(save(dict(result.tensors)))


def _shapes(stored: Checkpoint) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in stored.tensors.items()}


def _is_buffer(name: str, t: Tensor) -> bool:
    """Whether a tensor is copied: the random features of EDM2, counters of others."""
    return name.endswith(("fourier.freqs", "fourier.phases")) or not t.is_floating_point()

"""Latents of all images of a source: encoded once, kept in a file, read row by row."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffsteer.io.atomic import PART, atomic_write
from diffsteer.train.stream import Source, bound

ROWS = 64
"""Pictures that are encoded at a time."""


class Latents:
    """Latents by index, `(C, H, W)` in float32; the file is not read into memory.

    Args:
        path: The `.npy` file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type["Latents"], tuple[Path]]:
        return Latents, (self.path,)  # without the map of the file, which would travel as a copy

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self._rows[index].copy())

    @property
    def shape(self) -> torch.Size:
        """Of one of them."""
        return torch.Size(self._rows.shape[1:])

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = np.load(self.path, mmap_mode="r")
        return rows


def cached(
    source: Source,
    folder: Path,
    vae: nn.Module,
    encode: Callable[[Tensor], Tensor],
    alone: Callable[[Callable[[], None]], None],
    way: str = "",
) -> Latents:
    """Encode a source, unless the folder holds its latents already.

    Args:
        source: Where images come from; other images make other latents.
        folder: For the file, whose name says of what it is.
        vae: What encodes, float32; other weights make other latents.
        encode: From pixels, uint8 `(B, 3, H, W)` on the CPU, to latents `(B, C, h, w)`.
        alone: Calls a function on one process, before the others go on.
        way: Range of pixels that `encode` brings them to, if not [-1, 1]; another one makes other
            latents.
    """
    known = bound(source).get("contents", {}).get("pictures", repr(source))
    digest = hashlib.sha256(f"{known}{way}".encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    path = folder / f"latents-{digest.hexdigest()[:32]}.npy"
    alone(lambda: None if path.exists() else _write(source, path, encode))
    return Latents(path)


def _write(source: Source, path: Path, encode: Callable[[Tensor], Tensor]) -> None:
    from tqdm import tqdm

    killed = path.parent.glob(f".latents-*{PART}")  # a run folder has one run at a time
    for old in (*path.parent.glob("latents-*.npy"), *killed):
        old.unlink()
    with atomic_write(path) as file:
        for start in tqdm(range(0, len(source), ROWS), "encoding", unit_scale=ROWS, disable=None):
            part = range(start, min(start + ROWS, len(source)))
            rows = encode(torch.stack([source[i].pixels for i in part])).float().cpu().numpy()
            if not start:
                shape = (len(source), *rows.shape[1:])
                head = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(file, head)
            file.write(rows.astype("<f4").tobytes())

"""Latents of all images of a source: encoded once, kept in a file, read one by one."""

from collections.abc import Callable
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffsteer.io.atomic import atomic_write
from diffsteer.io.hashing import parts_hash, tensor_bytes
from diffsteer.train.stream import Sample, Source, caption, contents

BATCH = 64
"""Images that are encoded at a time."""


class Latents:
    """A source whose samples hold latents, float32 `(C, h, w)`, in the place of pixels.

    Args:
        source: Of the captions; its images are not read.
        path: The `.npy` file, which is not read into memory.
    """

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.path = source, path

    def __reduce__(self) -> tuple[type["Latents"], tuple[Source, Path]]:
        return Latents, (self.source, self.path)  # without the map, which would travel as a copy

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Return the latents of an image, and its caption."""
        return Sample(torch.from_numpy(self._array[index].copy()), caption(self.source, index))

    @cached_property
    def _array(self) -> NDArray[np.float32]:
        array: NDArray[np.float32] = np.load(self.path, mmap_mode="r")
        return array


def cached(
    source: Source,
    folder: Path,
    vae: nn.Module,
    encode: Callable[[Tensor], Tensor],
    alone: Callable[[Callable[[], None]], None],
    pixel_range: str = "",
) -> Latents:
    """Encode a source, unless the folder holds its latents already.

    Args:
        source: Images.
        folder: Holds the file, whose name depends on images, weights and `pixel_range`.
        vae: Autoencoder, float32.
        encode: From pixels, uint8 `(B, 3, H, W)`, to latents `(B, C, h, w)`.
        alone: Calls a function on one process, before the others go on.
        pixel_range: To which `encode` scales pixels, if not [-1, 1].
    """
    images = contents(source).get("contents", {}).get("pictures", repr(source))
    weights = sorted(vae.state_dict().items())
    parts = (part for name, w in weights for part in (name.encode(), tensor_bytes(w)))
    digest = parts_hash(chain([f"{images}{pixel_range}".encode()], parts))
    path = folder / f"latents-{digest[:32]}.npy"
    alone(lambda: None if path.exists() else _write(source, path, encode))
    return Latents(source, path)


def _write(source: Source, path: Path, encode: Callable[[Tensor], Tensor]) -> None:
    from tqdm import tqdm

    with atomic_write(path) as file:
        for start in tqdm(range(0, len(source), BATCH), "encoding", unit_scale=BATCH, disable=None):
            indices = range(start, min(start + BATCH, len(source)))
            batch = encode(torch.stack([source[i].pixels for i in indices])).float().cpu().numpy()
            if not start:
                shape = (len(source), *batch.shape[1:])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(file, header)
            file.write(batch.astype("<f4").tobytes())
    for old in path.parent.glob("latents-*.npy"):
        if old != path:
            old.unlink()

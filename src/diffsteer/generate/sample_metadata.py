"""Files of samples, each with the metadata that repeat it, in the file or beside it.

| sample | file | metadata |
|---|---|---|
| image, uint8 `(3, H, W)` | SEED.png | in it |
| video, uint8 `(F, 3, H, W)` | SEED.mp4, or SEED/0000.png and so on | SEED.json, or in each frame |
| sound, float32 `(C, T)` | SEED.wav | SEED.json |
| sound of a video | in SEED.mp4, or SEED.wav beside the frames | as of the video |
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import KEY, SOUND, VIDEO
from diffsteer.io.atomic import atomic_folder, atomic_write, write_json
from diffsteer.io.media import is_whole, write_sound, write_video


def metadata_file(path: Path, frames: bool = False) -> Path | None:
    """File that holds the metadata of a sample; None where the sample is not there.

    Args:
        path: Of its image, SEED.png.
        frames: Whether videos are kept as folders of frames.
    """
    if path.exists():
        return path
    first = path.with_suffix("") / "0000.png"
    if frames and first.exists():
        return first
    kept = (SOUND,) if frames else (SOUND, VIDEO)
    beside = path.with_suffix(".json")
    there = beside.exists() and any(path.with_suffix(suffix).exists() for suffix in kept)
    return beside if there else None


def require_whole(path: Path) -> None:
    """Check that the video and the sound of a sample were not cut off.

    Args:
        path: Of its image, SEED.png.

    Raises:
        InputError: one of them was.
    """
    for file in (path.with_suffix(suffix) for suffix in (VIDEO, SOUND)):
        if file.exists() and not is_whole(file):
            raise InputError(f"{file} is cut off: remove it, and it is made again")


def save(
    path: Path,
    sample: Tensor,
    table: Mapping[str, Any],
    rate: int = 1,
    frames: bool = False,
    sound: tuple[Tensor, int] | None = None,
) -> None:
    """Write a sample and its metadata.

    Args:
        path: Of its image, SEED.png; others have another suffix.
        sample: As the table of this module says.
        table: The metadata.
        rate: Frames or samples a second.
        frames: Keep a video as a folder of frames.
        sound: Of the video, and its samples a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sample.ndim == 3:
        with atomic_write(path) as file:
            _save_png(file, sample, table)
    elif sample.ndim == 4 and frames:
        if sound is not None:
            write_sound(path.with_suffix(SOUND), *sound)
        with atomic_folder(path.with_suffix("")) as folder:
            for number, frame in enumerate(sample):
                with (folder / f"{number:04d}.png").open("wb") as file:
                    _save_png(file, frame, {**table, "frame": number, "fps": rate})
    elif sample.ndim == 4:
        write_video(path.with_suffix(VIDEO), sample, rate, sound)
        write_json(path.with_suffix(".json"), {**table, "fps": rate, "frames": len(sample)})
    else:
        write_sound(path.with_suffix(SOUND), sample, rate)
        write_json(path.with_suffix(".json"), {**table, "sample_rate": rate})


def _save_png(file: IO[bytes], image: Tensor, table: Mapping[str, Any]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(KEY, json.dumps(table))
    png = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    png.save(file, format="png", pnginfo=info)

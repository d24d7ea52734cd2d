"""Files of videos and sounds."""

import os
import wave
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from diffsteer.io.atomic import atomic_write, put

BLOCK = 2
"""Pixels of which width and height of an MP4 are multiples; frames are scaled up to that."""


def require_video() -> None:
    """Check that what writes videos is installed.

    Raises:
        ModuleNotFoundError: it is not; its name says which package.
    """
    for name in ("imageio", "imageio_ffmpeg"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"no package {name}, which writes videos", name=name)


def write_video(
    path: Path, frames: Tensor, fps: int, sound: tuple[Tensor, int] | None = None
) -> None:
    """Write an MP4 as diffusers' `export_to_video` does, but in the size of its frames.

    Args:
        path: Its name.
        frames: uint8 `(F, 3, H, W)`.
        fps: Frames a second, >= 1.
        sound: Samples as of `write_sound`, and their rate; kept as AAC.
    """
    import imageio

    with TemporaryDirectory() as folder:
        draft = Path(folder) / "video.mp4"
        options: dict[str, Any] = {"fps": fps, "quality": 5.0, "macro_block_size": BLOCK}
        if sound is not None:
            write_sound(Path(folder) / "sound.wav", *sound)
            options |= {"audio_path": str(Path(folder) / "sound.wav"), "audio_codec": "aac"}
        with imageio.get_writer(draft, **options) as writer:
            for frame in frames:
                writer.append_data(frame.permute(1, 2, 0).contiguous().numpy())
        put(path, draft.read_bytes())


def is_whole(path: Path) -> bool:
    """Whether an MP4 or WAV has all the bytes that its own headers say."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if path.suffix == ".wav":
            file.seek(0)
            start = file.read(8)
            return start[:4] == b"RIFF" and 8 + int.from_bytes(start[4:], "little") == size
        names, at = set[bytes](), 0
        while at < size:
            file.seek(at)
            start = file.read(16)
            length = int.from_bytes(start[:4], "big")
            length = int.from_bytes(start[8:], "big") if length == 1 else length or size - at
            if length < 8:
                return False
            names.add(start[4:8])
            at += length
        return at == size and b"moov" in names


def write_sound(path: Path, samples: Tensor, rate: int) -> None:
    """Write a WAV of 16 bits.

    Args:
        path: Its name.
        samples: float32 in [-1, 1], `(C, T)`; what lies beyond is clipped.
        rate: Samples a second.
    """
    values = (samples.clamp(-1, 1) * 32767).round().short()
    with atomic_write(path) as file, wave.open(file, "wb") as sound:
        sound.setnchannels(len(values))
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(values.T.contiguous().numpy().astype("<i2").tobytes())

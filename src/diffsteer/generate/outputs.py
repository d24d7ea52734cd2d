"""What the call of a pipeline returns: images, videos, sounds."""

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.generate.base import require_finite
from diffsteer.generate.call import FRAMES, RATES, SECONDS
from diffsteer.hf.conditioning import seeded
from diffsteer.hf.hooks import Replaced, wrapped

FIELDS = ("images", "frames", "videos", "audios", "audio")
"""Names of what is made among the fields of outputs; a sound beside a video is the last."""
CLOSE = 0.1
"""Seconds by which a sound may differ from what is asked for without a warning."""
FPS = 16
"""Frames a second where a pipeline names none: of Wan, and between those of others."""


def images_of(
    pipe: Any,
    seeds: Sequence[int],
    call: Mapping[str, Any],
    sounds: dict[int, Tensor] | None = None,
) -> Tensor:
    """What one call of a pipeline makes, as many and as large as it asks for.

    Args:
        pipe: The pipeline.
        seeds: Of the samples, for errors.
        call: Its arguments, but for the output type; a list of generators also serves pipelines
            that do not hand them to their scheduler.
        sounds: Is given the sound of each seed's video, float32 `(C, T)`, where there is one.

    Returns:
        Images uint8 `(N, 3, H, W)`, videos uint8 `(N, F, 3, H, W)`, or sounds float32 `(N, C, T)`.
    """
    last: deque[Tensor] = deque(maxlen=1)
    decoded: deque[Tensor] = deque()
    with ExitStack() as stack:
        if "generator" in call:
            stack.enter_context(seeded(pipe, call["generator"]))
        stack.enter_context(results(pipe.scheduler, "step", last))
        if hasattr(vae := getattr(pipe, "vae", None), "decode"):
            stack.enter_context(results(vae, "decode", decoded))
        try:
            output = pipe(**call, output_type="np")
        except InputError:
            raise
        except (ValueError, OverflowError) as error:  # such as of a size, or an endless prompt
            raise InputError(f"{type(pipe).__name__} refuses this call: {error}") from error
    floats = _floats(output)
    alike = len({(each.shape[1:], each.device) for each in decoded}) == 1
    stages = [torch.cat([*decoded])] if alike else [*decoded]
    if sounds is not None and (heard := _sounds(output)) is not None:
        sounds.update(zip(seeds, heard, strict=True))
        stages.append(heard)
    samples = _bytes(pipe, floats) if floats.ndim > 3 else floats
    _require_size(type(pipe).__name__, len(seeds), samples, call)
    _compare_length(pipe, samples, call)
    return require_finite(seeds, samples, *last, floats, *stages)


def frame_rate(pipe: Any, call: Mapping[str, Any], takes: Mapping[str, Any]) -> int:
    """Frames a second of a pipeline's videos: of its call, else by default."""
    defaults = (getattr(takes.get(name), "default", None) for name in RATES)
    given = [call[name] for name in RATES if name in call] + [n for n in defaults if n]
    return round(float(given[0])) if given and isinstance(given[0], int | float) else FPS


def sample_rate(pipe: Any) -> int:
    """Samples a second of a pipeline's sounds."""
    for owner in (pipe, *(getattr(pipe, name, None) for name in ("vocoder", "vae", "audio_vae"))):
        for place in (getattr(owner, "config", None), owner):
            for name in ("sample_rate", "output_sampling_rate", "sampling_rate"):
                if isinstance(rate := getattr(place, name, None), int):
                    return rate
    raise InputError(f"{type(pipe).__name__} does not name the sample rate of its sounds")


def _floats(output: Any) -> Tensor:
    """The samples of an output as it returns them, with colours as their last dimension."""
    value = next((v for name in FIELDS if (v := getattr(output, name, None)) is not None), output)
    if isinstance(value, list | tuple):
        value = np.stack([np.asarray(each) for each in value])
    if not isinstance(value, Tensor | np.ndarray) or value.ndim not in (2, 3, 4, 5):
        raise InputError(f"an output of {type(value).__name__} is no image, video or sound")
    if isinstance(value, Tensor):
        colours = value.ndim > 3 and value.shape[-1] not in (1, 3, 4)
        floats = (value.movedim(-3, -1) if colours else value).detach().cpu()
    else:
        floats = torch.from_numpy(np.array(value))
    if floats.dtype == torch.uint8:
        floats = floats / 255
    return (floats[:, None] if floats.ndim == 2 else floats).float()


def _sounds(output: Any) -> Tensor | None:
    """Sounds of the videos of an output, float32 `(N, C, T)`; None where it has none."""
    audio = getattr(output, "audio", None)
    if audio is None or all(getattr(output, name, None) is None for name in ("frames", "videos")):
        return None
    floats = torch.as_tensor(audio).detach().cpu().float()
    return floats[:, None] if floats.ndim == 2 else floats


def _bytes(pipe: Any, floats: Tensor) -> Tensor:
    """Bytes of images `(..., H, W, C)` of floats in [0, 1], as `(..., 3, H, W)`."""
    images = floats.nan_to_num().flatten(0, -4).numpy()
    pixels = np.stack([np.array(image.convert("RGB")) for image in pipe.numpy_to_pil(images)])
    rows = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return rows.reshape(-1, *floats.shape[1:-3], *rows.shape[1:])


def _require_size(name: str, count: int, samples: Tensor, call: Mapping[str, Any]) -> None:
    size = (
        dict(zip(("height", "width"), samples.shape[-2:], strict=True)) if samples.ndim > 3 else {}
    )
    if len(samples) == count and all(call.get(side, n) == n for side, n in size.items()):
        return
    wanted = ", ".join(f"{side} {call[side]}" for side in size if side in call)
    what = f" of {size['width']} x {size['height']} pixels" if size else ""
    raise InputError(
        f"{name} gave {len(samples)} images{what} for {count} of {wanted or 'its own size'}: give "
        "both width and height, as multiples that it takes"
    )


def _compare_length(pipe: Any, samples: Tensor, call: Mapping[str, Any]) -> None:
    """Warn of a video or sound that is not as long as the call asks; refuse an empty one.

    Pipelines round to lengths that their autoencoder makes, and the same ask makes the same again.
    """
    if samples.ndim == 4:
        return
    name, made = type(pipe).__name__, samples.shape[1 if samples.ndim == 5 else -1]
    option, unit = ("--num-frames", "frames") if samples.ndim == 5 else ("--audio-seconds", "s")
    if made == 0:
        raise InputError(f"{name} made nothing of this length: give a larger {option}")
    asked = next((call[n] for n in (FRAMES if samples.ndim == 5 else SECONDS) if n in call), None)
    if asked is None:
        return
    length, close = float(made), 0.0
    if samples.ndim == 3:
        length, close = made / sample_rate(pipe), CLOSE
        asked -= call.get("audio_start_in_s") or 0
    if abs(length - asked) > close:
        warnings.warn(
            f"{name} made {length:g} {unit}, not the {asked:g} that {option} asks for, which is no "
            "length that it makes",
            stacklevel=3,
        )


def results(owner: Any, name: str, found: deque[Tensor]) -> Replaced:
    """Append the tensors that a method of a scheduler or autoencoder returns, as a context."""

    def watched(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = method(*args, **kwargs)
        found.append(out[0])
        return out

    return wrapped(owner, name, watched)

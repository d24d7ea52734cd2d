"""Prediction type and terminal SNR of a network from its outputs: what no file can lie about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.identify import Ask, brightness_gain, kind_without_data, responses
from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction, V
from diffsteer.core.schedule import Discrete, Schedule
from diffsteer.doctor import architectures, brightness
from diffsteer.doctor.architectures import PREFIX, current_name, unet_config
from diffsteer.doctor.by_pipeline import measured_by_pipeline, prompts, side_of
from diffsteer.doctor.checkpoint import Checkpoint
from diffsteer.doctor.tensors import load as tensors_of
from diffsteer.doctor.verdict import ABOVE, PREDICTION, SNR, ZERO, Claim
from diffsteer.hf.load import load
from diffsteer.hf.scheduler_config import KINDS, discrete_of

BATCH, SIDE = 8, 32
"""Samples of a measurement, and largest side of their latents."""
UNETS = ("UNet2DConditionModel", "UNet2DModel")
"""Networks that are measured without their pipeline."""
WORDS = 77
"""Tokens of a prompt; their embedding is 0.5 everywhere, as A1111 asks networks."""


@dataclass(frozen=True)
class Measurement:
    """Outputs of a network in numbers.

    Attributes:
        noise_slope: At the last level, of the output with the noise.
        data_slope: Further down, of the output's mean with that of the data.
        change_slope: Where sigma = alpha, of the output with a change of the noise.
        gain: Brightness gain at the last level; None where the prediction type is not known.
        expected_gain: The gain that a network has whose terminal SNR is above zero.
        claims: What follows.
    """

    noise_slope: float
    data_slope: float
    change_slope: float
    gain: float | None
    expected_gain: float
    claims: tuple[Claim, ...]


def measure(checkpoint: Checkpoint) -> Measurement:
    """Load the network and evaluate it eight times on eight samples.

    Raises:
        InputError: it stands alone and is no UNet of Stable Diffusion's kind, or cannot be loaded.
    """
    if checkpoint.kind == "folder" and checkpoint.architecture.network not in UNETS:
        return _by_pipeline(checkpoint)
    unet = _unet(checkpoint)
    side, channels = side_of(unet, SIDE), min(unet.config.in_channels, unet.config.out_channels)
    like = torch.empty(BATCH, channels, side, side)
    try:
        return measured(_ask(unet), trained_schedule(checkpoint.scheduler), like)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # of other conditions
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{checkpoint.name} cannot be asked alone: {reason}") from error


def measured(ask: Ask, schedule: Schedule, like: Tensor) -> Measurement:
    """Measure a network.

    Args:
        ask: Its raw output.
        schedule: That it was trained on, before a repair to zero SNR.
        like: Any tensor with the shape of some samples, `(B, C, H, W)`.
    """
    seen = responses(ask, schedule, like)
    kind, usual = kind_without_data(seen), brightness.gain(schedule, like[0].shape)
    believed = kind or V()
    gain = brightness_gain(lambda x, level: believed.x0(x, ask(x, level), level), schedule, like)
    numbers = seen.noise, seen.data, seen.change
    if kind is None:
        return Measurement(*numbers, None, usual, ())
    word = next(word for word, prediction in KINDS.items() if prediction == kind)
    text = (
        f"slopes {seen.noise:.2f} on noise at the last level, {seen.change:.2f} on a change of the "
        f"noise and {seen.data:.2f} on data further down"
    )
    snr = _snr(kind, gain, usual) if isinstance(schedule, Discrete) else ()
    claims = (Claim(PREDICTION, word, "network", text), *snr)
    return Measurement(*numbers, gain, usual, claims)


def _snr(kind: Prediction, gain: float, usual: float) -> tuple[Claim, ...]:
    """Terminal SNR by the gain, which alone of all tells it, where the network could have any."""
    if kind not in (V(), KINDS["sample"]):
        return ()
    text = f"brightness gain {gain:.2f} at the last level; {usual:.2f} with SNR above zero"
    if abs(gain) < usual / 4:
        return (Claim(SNR, ZERO, "network", text),)
    return (Claim(SNR, ABOVE, "network", text),) if gain > usual / 2 else ()


def trained_schedule(config: Mapping[str, Any]) -> Discrete:
    """Schedule of a config's betas without repair; Stable Diffusion's where it has none."""
    try:
        return discrete_of({**config, "rescale_betas_zero_snr": False})
    except InputError:
        return Discrete.scaled_linear()


def _by_pipeline(checkpoint: Checkpoint) -> Measurement:
    """Measure the network of a folder in its pipeline, which makes the condition."""
    pipe = load(str(checkpoint.place), torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    if config.get("rescale_betas_zero_snr"):
        pipe.scheduler = type(pipe.scheduler).from_config(config, rescale_betas_zero_snr=False)
    call = prompts(pipe, BATCH)
    return measured_by_pipeline(pipe, measured, side_of(pipe, SIDE), **call)


def _unet(checkpoint: Checkpoint) -> Any:
    kind = checkpoint.architecture.network
    if checkpoint.kind == "lora" or kind not in UNETS:
        word = "a LoRA" if checkpoint.kind == "lora" else kind or "this network"
        raise InputError(
            f"{word} cannot be measured alone: --deep is for UNets of Stable Diffusion, and for "
            "folders of whole pipelines"
        )
    if checkpoint.kind != "file":
        folder = checkpoint.network_folder
        part = f"{folder.name}/" if folder and checkpoint.kind == "folder" else "/"
        names = [n for n in checkpoint.entries if n.startswith(part)]
        tensors = {current_name(n.rpartition("::")[2]): t.float()
                   for n, t in tensors_of(checkpoint.entries, names).items()}  # fmt: skip
        return _filled(checkpoint, checkpoint.network, tensors)
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = [n for n in checkpoint.entries if n.startswith((PREFIX, *architectures.BARE))]
    if not any("input_blocks." in n for n in names):
        raise InputError(
            f"{checkpoint.name} has tensors under the names of diffusers, and no config of the "
            "network: give the folder that has its config.json"
        )
    config = unet_config({n: checkpoint.entries[n] for n in names}, checkpoint.architecture)
    tensors = tensors_of(checkpoint.entries, names)
    original = {PREFIX + n.removeprefix(PREFIX): t.float() for n, t in tensors.items()}
    weights = convert_ldm_unet_checkpoint(original, config | {"num_class_embeds": None})
    return _filled(checkpoint, config, weights)


def _filled(checkpoint: Checkpoint, config: Mapping[str, Any], weights: dict[str, Tensor]) -> Any:
    """Network of a config with weights."""
    import diffusers

    with torch.device("meta"):
        unet = getattr(diffusers, checkpoint.architecture.network).from_config(config)
    own = unet.state_dict()  # diffusers leaves other tensors out
    unet.load_state_dict({n: t for n, t in weights.items() if n in own}, assign=True)
    return unet.eval()


def _ask(unet: Any) -> Ask:
    """Raw output of a UNet for no prompt in particular."""
    conditional = hasattr(unet.config, "cross_attention_dim")

    @torch.no_grad()
    def ask(x: Tensor, level: Level) -> Tensor:
        time, given = level.t.float(), _with_image(x.float(), unet.config.in_channels)
        if not conditional:
            return Tensor(unet(given, time).sample[:, : x.shape[1]])
        words = torch.full((len(x), WORDS, unet.config.cross_attention_dim), 0.5)
        out: Tensor = unet(given, time, words, added_cond_kwargs=_sizes(unet, len(x))).sample
        return out[:, : x.shape[1]]

    return ask


def _with_image(x: Tensor, channels: int) -> Tensor:
    """Samples with the channels that other networks take: a grey image, under a mask of all."""
    given = F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
    if channels == 2 * x.shape[1] + 1:  # of inpainting: mask, then image
        given[:, x.shape[1]] = 1
    return given


def _sizes(unet: Any, batch: int) -> dict[str, Tensor]:
    """Pooled text and sizes of SDXL."""
    if unet.config.addition_embed_type != "text_time":
        return {}
    width = unet.config.projection_class_embeddings_input_dim
    pooled = width - 6 * unet.config.addition_time_embed_dim
    sizes = torch.tensor([1024.0, 1024, 0, 0, 1024, 1024]).expand(batch, -1)
    return {"text_embeds": torch.zeros(batch, pooled), "time_ids": sizes}

"""Made checkpoints: tiny networks in the layouts of Stable Diffusion, with marks of all kinds."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "SD 1": {"attention_head_dim": 8},
    "SD 2": {"attention_head_dim": [1, 1], "use_linear_projection": True},
    "SDXL": {
        "attention_head_dim": [1, 1],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 96,
    },
}
TEXT = {
    "SD 1": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "SD 2": "cond_stage_model.model.ln_final.weight",
    "SDXL": "conditioner.embedders.1.model.ln_final.weight",
}


def config(layout: str) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 32,
        **CONFIGS[layout],
    }


@cache
def unet(layout: str) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(config(layout)).eval()


def original_name(name: str, layers: int, plain: int = -1) -> str:
    """Name in the original layout of a parameter of a UNet of diffusers.

    Args:
        name: Of the parameter.
        layers: Residual blocks of each resolution.
        plain: Upward block without attention, which comes before an upsampler.
    """
    for new, old in ENDS.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old, 1)
    match = re.match(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.*)", name)
    assert match, name
    side, block, kind, j, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        part, _, end = rest.rpartition(".")
        rest = f"{RESNET[part]}.{end}"
    if side == "mid_block":
        return f"middle_block.{2 * j if kind == 'resnets' else 1}.{rest}"
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{block * (layers + 1) + j + 1}.{int(kind != 'resnets')}.{rest}"
    index = block * (layers + 1) + (layers if kind == "upsamplers" else j)
    place = {"resnets": 0, "attentions": 1, "upsamplers": 1 if block == plain else 2}[kind]
    return f"output_blocks.{index}.{place}.{rest}"


def original(layout: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Tensors of a single file."""
    weights = {
        f"model.diffusion_model.{original_name(name, 1)}": value.to(dtype, copy=True)
        for name, value in unet(layout).state_dict().items()
    }
    return {**weights, TEXT[layout]: torch.ones(4), "first_stage_model.x": torch.ones(4)}


@dataclass(frozen=True)
class Marks:
    """Prediction type and whether SNR is zero, as a source says them; None says nothing."""

    prediction: str | None = None
    zero: bool | None = None


SILENT = Marks()


@dataclass(frozen=True)
class Made:
    """A checkpoint to make: what it is, and what its sources say."""

    layout: str
    truth: Marks
    keys: Marks = SILENT
    metadata: Marks = SILENT
    config: Marks = SILENT
    dtype: torch.dtype = torch.float32
    extra: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Write the file, and a scheduler config beside it where the config says something."""
        tensors = original(self.layout, self.dtype)
        if self.keys.prediction == "v_prediction":
            tensors["v_pred"] = torch.empty(0)
        if self.keys.zero:
            tensors["ztsnr"] = torch.empty(0)
        save_file(tensors, path, metadata(self.metadata) or None)
        if self.config != SILENT:
            config = scheduler(self.config, self.extra)
            path.with_suffix(".scheduler_config.json").write_text(json.dumps(config))
        return path


def metadata(marks: Marks) -> dict[str, str]:
    words = {"v_prediction": "v", "flow_prediction": "flow"}
    said = {}
    if marks.prediction:
        said["modelspec.prediction_type"] = words.get(marks.prediction, marks.prediction)
    if marks.zero is not None:
        said["ss_zero_terminal_snr"] = str(marks.zero)
    return said


def scheduler(marks: Marks, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    if marks.prediction == "flow_prediction":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    said: dict[str, Any] = {} if marks.prediction is None else {"prediction_type": marks.prediction}
    if marks.zero is not None:
        said["rescale_betas_zero_snr"] = marks.zero
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return {"_class_name": "DDIMScheduler", "clip_sample": False, **betas, **said, **(extra or {})}

"""Architecture of a checkpoint from names and shapes of its tensors."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.io.safetensors_header import Entry

PREFIX = "model.diffusion_model."
"""Of the network in files of the original layout."""
BARE = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
"""Begin the names of a network that stands alone in its file."""
LORA = re.compile(r"[._]lora([._](up|down|A|B)\b|_(up|down|A|B)\.)|\.lora_|^lora_(unet|te\d?)_")


@dataclass(frozen=True)
class Architecture:
    """A family of checkpoints.

    Attributes:
        name: Its name; "unknown" where none fits.
        spec: `modelspec.architecture` of sd-scripts.
        network: Class of diffusers.
        pipeline: Class of diffusers.
        latent: Shape of a latent at the usual resolution; None where it is not known.
        flow: Whether its networks are trained by flow matching, all of them.
    """

    name: str
    spec: str = ""
    network: str = ""
    pipeline: str = ""
    latent: tuple[int, int, int] | None = None
    flow: bool = False


_UNET = "UNet2DConditionModel"
SD1 = Architecture("SD 1", "stable-diffusion-v1", _UNET, "StableDiffusionPipeline", (4, 64, 64))
SD2 = Architecture(
    "SD 2", "stable-diffusion-v2-768-v", _UNET, "StableDiffusionPipeline", (4, 96, 96)
)
SDXL = Architecture(
    "SDXL", "stable-diffusion-xl-v1-base", _UNET, "StableDiffusionXLPipeline", (4, 128, 128)
)
REFINER = Architecture(
    *("SDXL refiner", "stable-diffusion-xl-v1-refiner", _UNET, "StableDiffusionXLImg2ImgPipeline"),
    latent=(4, 128, 128),
)
SD3 = Architecture(
    *("SD 3", "stable-diffusion-3", "SD3Transformer2DModel", "StableDiffusion3Pipeline"),
    *((16, 128, 128), True),
)
FLUX = Architecture(
    *("Flux", "flux-1-dev", "FluxTransformer2DModel", "FluxPipeline", (16, 128, 128), True)
)
UNKNOWN = Architecture("unknown")
SD2_BASE = "stable-diffusion-v2-512"
"""`modelspec.architecture` of a Stable Diffusion 2 of epsilon."""
TRANSFORMERS = (
    (FLUX, ("double_blocks.", "vector_in.")),
    (FLUX, ("single_transformer_blocks.", "time_text_embed.text_embedder.")),
    (SD3, ("joint_blocks.",)),
    (SD3, ("transformer_blocks.0.attn.add_k_proj", "time_text_embed.text_embedder.")),
)
"""Beginnings of names that all have to be there, in the original layout and that of diffusers."""
OTHERS = (
    *("token_refiner", "distilled_guidance_layer", "controlnet_", "control_model."),
    *("motion_modules.", "temporal_transformer", "joint_transformer_blocks."),
    *("time_stack.", "time_mixer."),
)
"""Parts of names of networks that resemble one of these: Hunyuan, Chroma, ControlNets, videos."""
SINGLE = (SD1, SD2, SDXL, REFINER)
"""Those whose networks come in several prediction types."""


def is_lora(names: Collection[str]) -> bool:
    """Whether most tensors are of adapters of low rank."""
    count = sum(bool(LORA.search(name)) or name.endswith(".alpha") for name in names)
    return count > len(names) / 2


def architecture(entries: Mapping[str, Entry]) -> Architecture:
    """Architecture of the network in a file, UNKNOWN where names fit none."""
    names = {name.removeprefix(PREFIX): entry for name, entry in entries.items()}
    if any(any(part in n for part in OTHERS) for n in names):
        return UNKNOWN
    for kind, marks in TRANSFORMERS:
        if all(any(n.startswith(mark) for n in names) for mark in marks):
            return kind
    if any(re.match(r"(input_blocks|down_blocks|middle_block|mid_block)\.", n) for n in names):
        return _of_unet(names)
    return UNKNOWN


def _of_unet(names: Mapping[str, Entry]) -> Architecture:
    """Stable Diffusion 1, 2 or XL, by what does not depend on width where anything does not."""
    widths = {e.shape[-1] for n, e in names.items() if n.endswith("attn2.to_k.weight")}
    sizes = any(n.startswith(("label_emb.0.0.", "add_embedding.linear_1.")) for n in names)
    labels = any(n.startswith(("label_emb.", "class_embedding.", "add_embedding.")) for n in names)
    version_2 = 1024 in widths or any(n.startswith("cond_stage_model.") for n in names)
    if labels and (version_2 or not sizes):  # classes, levels of noise, images: unCLIP, upscalers
        return UNKNOWN
    if sizes or any(n.startswith("conditioner.embedders.") for n in names):
        return REFINER if 1280 in widths else SDXL
    if any(n.startswith("cond_stage_model.model.") for n in names):
        return SD2
    if any(n.startswith("cond_stage_model.transformer.") for n in names):
        return SD1
    shapes = [e.shape for n, e in names.items() if n.endswith("proj_in.weight")]
    if shapes:  # a convolution of 1x1, or since version 2 a linear layer
        return SD1 if len(shapes[0]) == 4 else SD2
    return UNKNOWN


SPEC = "modelspec.architecture"
ARCHITECTURE_KEYS = ("ss_base_model_version", SPEC)
WORDS = (
    (("sdxl", "-xl-"), SDXL),
    (("sd3", "diffusion-3", "diffusion-v3"), SD3),
    (("flux",), FLUX),
    (("sd_v2", "-v2", "sd2"), SD2),
    (("sd_v1", "-v1", "sd1"), SD1),
)
"""Words of metadata on an architecture."""


NAMED = tuple(base for _, base in WORDS)
PIPELINES = {
    "StableDiffusionXL": (SDXL.name, REFINER.name),
    "StableDiffusion3": (SD3.name,),
    "StableDiffusion": (SD1.name, SD2.name),
    "Flux": (FLUX.name,),
}
"""Architectures by the beginning of the class of a pipeline, of which the first counts."""


def in_words(text: str) -> Architecture:
    """Architecture that a text of metadata names, UNKNOWN where it names none."""
    return next((a for words, a in WORDS if any(w in text.lower() for w in words)), UNKNOWN)


def lora_base(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Architecture:
    """Architecture that a LoRA was trained on, by its tensors, else by its metadata."""
    base = _of_lora(entries)
    if base is UNKNOWN:
        base = in_words(" ".join(metadata.get(key, "") for key in ARCHITECTURE_KEYS))
    if base is UNKNOWN and metadata.get("ss_v2", "").lower() == "true":
        base = SD2
    second = any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in entries)
    return SDXL if base is UNKNOWN and second else base


def _of_lora(entries: Mapping[str, Entry]) -> Architecture:
    """By the width of the text, or blocks that no other network has."""
    inputs = re.compile(r"attn2[._](processor\.)?to_k[._]lora[._](down|A)(\.|$)")
    widths = {e.shape[-1] for n, e in entries.items() if inputs.search(n) and len(e.shape) == 2}
    blocks = ((FLUX, r"double_blocks|single_transformer_blocks"), (SD3, "joint_blocks"))
    texts = ((SD1, 768), (SD2, 1024), (SDXL, 2048))
    for base, pattern in blocks:
        if any(re.search(pattern, name) for name in entries):
            return base
    if not widths:  # the width of a joint attention, which Flux and Qwen share with no SD 3
        joint = re.compile(r"attn[._]add_k_proj[._]lora[._](down|A)\b")
        widths = {e.shape[-1] for n, e in entries.items() if joint.search(n)}
        return SD3 if widths & {1536, 2432} else UNKNOWN
    return next((a for a, width in texts if width in widths), UNKNOWN)


def current_name(name: str) -> str:
    """Name of a tensor in diffusers today, which still reads attention under its names of 2022."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\..*)", name)
    return f"{old[1]}{new[old[2]]}{old[3]}" if old else name


def unet_config(entries: Mapping[str, Entry], kind: Architecture) -> dict[str, Any]:
    """Config of diffusers for a UNet in the original layout, from its shapes.

    Numbers of heads leave no trace in shapes: version 1 has 8, later ones have 64 channels a head.

    Raises:
        InputError: tensors that say the shape are missing.
    """
    shapes = {n.removeprefix(PREFIX): e.shape for n, e in entries.items()}
    try:
        levels = _levels(shapes)
        widths = [level[0][0] for level in levels]
        depths = [max(depth for _, depth in level) for level in levels]
        key = next(n for n in shapes if n.endswith("attn2.to_k.weight"))
        linear = len(next(s for n, s in shapes.items() if n.endswith("proj_in.weight"))) == 2
        config = {
            "sample_size": kind.latent[1] if kind.latent else None,
            "in_channels": shapes["input_blocks.0.0.weight"][1],
            "out_channels": shapes["out.2.weight"][0],
            "block_out_channels": widths,
            "layers_per_block": len(levels[0]),
            "down_block_types": [_block("Down", depth) for depth in depths],
            "up_block_types": [_block("Up", depth) for depth in reversed(depths)],
            "transformer_layers_per_block": [max(depth, 1) for depth in depths],
            "cross_attention_dim": shapes[key][1],
            "attention_head_dim": [max(w // 64, 1) for w in widths] if linear else 8,
            "use_linear_projection": linear,
            "norm_num_groups": gcd(32, *widths),
        }
        return {"_class_name": kind.network, **config, **_labels(shapes)}
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        named = isinstance(error, KeyError)
        lost = error if named else "those of its residual blocks or attention"
        text = f"tensors that say the shape of the network are missing: {lost}"
        raise InputError(text) from error


def _levels(shapes: Mapping[str, tuple[int, ...]]) -> list[list[tuple[int, int]]]:
    """Channels and depth of transformers of each residual block, by resolution."""
    levels: list[list[tuple[int, int]]] = [[]]
    numbers = {int(m[1]) for n in shapes if (m := re.match(r"input_blocks\.(\d+)\.", n))}
    for i in range(1, max(numbers) + 1):
        if f"input_blocks.{i}.0.op.weight" in shapes:
            levels.append([])
        else:
            width = shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0]
            blocks = re.compile(rf"input_blocks\.{i}\.1\.transformer_blocks\.(\d+)\.")
            depth = len({m[1] for n in shapes if (m := blocks.match(n))})
            levels[-1].append((width, depth))
    return levels


def _block(direction: str, depth: int) -> str:
    return f"CrossAttn{direction}Block2D" if depth else f"{direction}Block2D"


def _labels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Config of the embedding of sizes and pooled text that SDXL has."""
    if "label_emb.0.0.weight" not in shapes:
        return {}
    width = shapes["label_emb.0.0.weight"][1]
    part = 256 if width > 6 * 256 else max(width // 12 * 2, 2)
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": part,
        "projection_class_embeddings_input_dim": width,
    }

"""Real diffusers components, small and with random weights."""

import json
from pathlib import Path
from typing import Any

import torch


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer that spells: one token a character."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )


def text_encoder(width: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=190,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
    )
    return CLIPTextModel(config).eval()


def unet(
    channels: int = 4, in_channels: int = 4, width: int = 32, groups: int = 8, seed: int = 1
) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=groups,
    ).eval()


def shallow_unet() -> Any:
    """A UNet of one block down and one up, which is compiled in a fraction of the time."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    ).eval()


def stable_diffusion(scheduler: Any, folder: Path, kind: str = "StableDiffusionPipeline") -> Any:
    """A Stable Diffusion pipeline of the given class: 16 px images, 4x8x8 latents."""
    import diffusers

    pipe = getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "tokenizer"),
        unet=unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def saved(folder: Path) -> str:
    """Folder of a saved Stable Diffusion pipeline with a DDIM scheduler, as a command takes it."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    stable_diffusion(scheduler, folder).save_pretrained(folder / "pipe")
    return str(folder / "pipe")


def sdxl(scheduler: Any, folder: Path) -> Any:
    """A Stable Diffusion XL pipeline: 16 px images, two blocks in the middle."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(4)
    config = text_encoder().config.to_dict() | {"projection_dim": 32}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        use_linear_projection=True,
    ).eval()
    words = tokenizer(folder / "tokenizer")
    pipe = StableDiffusionXLPipeline(
        vae(), text_encoder(), second, words, words, network, scheduler, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unconditional(scheduler: Any, kind: str = "DDIMPipeline") -> Any:
    """A pixel pipeline on UNet2DModel with attention in the middle: 3x16x16."""
    import diffusers

    torch.manual_seed(5)
    network = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
    pipe = getattr(diffusers, kind)(unet=network, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dit(scheduler: Any) -> Any:
    """A DiT pipeline with learned variances: 4x8x8 latents, patches of 2."""
    import diffusers

    torch.manual_seed(6)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=8,
        num_embeds_ada_norm=1000,
    ).eval()
    _perturb(network)
    pipe = diffusers.DiTPipeline(network, vae(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def saved_dit(folder: Path) -> tuple[Any, str]:
    """A DiT pipeline with DDIM, and its folder, which names classes as the published one does."""
    from diffusers import DDIMScheduler

    pipe = dit(DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(folder / "dit")
    index = folder / "dit/model_index.json"
    labels = {"0": "tench, Tinca tinca", "207": "golden retriever", "208": "Labrador retriever"}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": labels}))
    return pipe, str(folder / "dit")


def sd3(scheduler: Any) -> Any:
    """A Stable Diffusion 3 pipeline without text encoders: prompts come as embeddings."""
    import diffusers

    torch.manual_seed(7)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()
    _perturb(network)
    pipe = diffusers.StableDiffusion3Pipeline(
        network, scheduler, vae(), *(None,) * 2, *(None,) * 2, *(None,) * 2
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(
    folder: Path, kind: str = "FluxPipeline", distilled: bool = True, extra_channels: int = 0
) -> Any:
    """A Flux pipeline of the given class: 16 px images, latents of 4x8x8 packed in 16 tokens."""
    import diffusers
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(9)
    network = diffusers.FluxTransformer2DModel(
        in_channels=16 + extra_channels,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=distilled,
    ).eval()
    _perturb(network)
    t5 = T5Config(vocab_size=190, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    words = tokenizer(folder / "tokenizer")
    coder = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        shift_factor=0.1,
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = getattr(diffusers, kind)(
        scheduler=scheduler,
        vae=coder,
        text_encoder=text_encoder(),
        tokenizer=words,
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=words,
        transformer=network,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixart(scheduler: Any) -> Any:
    """A PixArt pipeline without a text encoder: prompts come as embeddings."""
    import diffusers

    torch.manual_seed(8)
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=32,
        use_additional_conditions=False,
    ).eval()
    _perturb(network)
    pipe = diffusers.PixArtAlphaPipeline(None, None, vae(), network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def _perturb(network: torch.nn.Module) -> None:
    """Move parameters off their start, where gates and biases of zero hide every input."""
    for parameter in network.parameters():
        parameter += 0.1 * torch.randn_like(parameter)


@torch.no_grad()
def random_weights(network: Any, seed: int = 0) -> Any:
    """Weights, none of them 0, that keep features of order 1 and outputs small; no gradients."""
    gen = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        size = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        size *= 0.3 if name.startswith("out.2") else 1
        value += size * torch.randn(value.shape, generator=gen)
    return network.eval().requires_grad_(False)

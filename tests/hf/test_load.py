"""A model is loaded whole or refused: weights, classes and precision are as its folder says."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from diffsteer.core.errors import InputError
from diffsteer.generate.pipelines import configured
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance import Auto
from diffsteer.hf.load import load, network
from diffsteer.hf.signature import call_parameters
from diffsteer.steering import steer

NET, TEXT = "diffusion_pytorch_model.safetensors", "model.safetensors"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny.saved(tmp_path_factory.mktemp("model")))


def tensors(part: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Change the weights of a component."""

    def apply(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        save_file(change(load_file(path)), path, {"format": "pt"})

    return apply


def without(part: str, name: str) -> Change:
    """Drop the first weight whose name holds a text."""

    def drop(state: dict[str, Any]) -> dict[str, Any]:
        state.pop(next(key for key in state if name in key))
        return state

    return tensors(part, drop)


def beyond(part: str) -> Change:
    return tensors(part, lambda state: {**state, "more.weight": torch.zeros(2)})


def config(file: str, **changes: Any) -> Change:
    """Change a configuration."""

    def apply(folder: Path) -> None:
        table = json.loads((folder / file).read_text("utf-8"))
        (folder / file).write_text(json.dumps(table | changes), "utf-8")

    return apply


def cut(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:900])  # type: ignore[return-value]


def removed(name: str) -> Change:
    def apply(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def vocabulary(folder: Path) -> None:
    """Leave out the later half of a vocabulary."""
    path = folder / "tokenizer/tokenizer.json"
    table = json.loads(path.read_text("utf-8"))
    words = list(table["model"]["vocab"].items())
    table["model"]["vocab"] = dict(words[: len(words) // 2])
    path.write_text(json.dumps(table), "utf-8")


REFUSED: dict[str, tuple[Change, str]] = {
    "token embedding": (without("text_encoder", "token_embedding"), "1 missing.*token_embedding"),
    "a layer too few": (config("text_encoder/config.json", num_hidden_layers=3), "missing"),
    "a layer too many": (config("text_encoder/config.json", num_hidden_layers=1), "beyond"),
    "width of text": (config("text_encoder/config.json", intermediate_size=32), "another shape"),
    "network": (without("unet", "conv_in.weight"), "UNet2D.*1 missing, such as conv_in.weight"),
    "network's bias": (without("unet", "to_out.0.bias"), "missing"),
    "network beyond": (beyond("unet"), "beyond its config.json, such as more.weight"),
    "network's layers": (config("unet/config.json", layers_per_block=2), "cannot be loaded"),
    "network's width": (config("unet/config.json", cross_attention_dim=64), "expected shape"),
    "autoencoder": (without("vae", "decoder.conv_out.weight"), "AutoencoderKL.*missing"),
    "cut": (cut(f"unet/{NET}"), "cannot be loaded"),
    "cut text": (cut(f"text_encoder/{TEXT}"), "cannot be loaded"),
    "no weights": (removed(f"vae/{NET}"), "cannot be loaded"),
    "no tokenizer": (removed("tokenizer"), "names tokenizer, which the folder does not have"),
    "no vocabulary": (removed("tokenizer/tokenizer.json"), "tokenizer knows no words: its folder"),
    "a cut vocabulary": (cut("tokenizer/tokenizer.json"), "cannot be loaded"),
    "half a vocabulary": (vocabulary, "cannot be loaded.*not found in the vocabulary"),
    "no text encoder": (removed("text_encoder"), "names text_encoder"),
    "scheduler": (
        config("scheduler/scheduler_config.json", _class_name="FooScheduler"),
        "is of 'FooScheduler', which diffusers does not have",
    ),
    "scheduler's name": (
        config("scheduler/scheduler_config.json", _class_name=["x"]),
        "which diffusers does not have",
    ),
    "index": (config("model_index.json", scheduler=["diffusers", "Foo"]), "no class `Foo`"),
    "no index": (removed("model_index.json"), "is a folder without model_index.json: give"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_is_not_whole_is_refused_in_one_line(
    whole: Path, tmp_path: Path, case: str
) -> None:
    change, message = REFUSED[case]
    shutil.copytree(whole, tmp_path / "pipe")
    change(tmp_path / "pipe")
    with pytest.raises(InputError, match=message) as refused:
        load(str(tmp_path / "pipe"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700
    original = vars(diffusers.ModelMixin)["from_pretrained"]
    assert "strict" not in original.__func__.__qualname__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (beyond("text_encoder"), "makes no use of 1 weights"),
        (config("unet/config.json", _class_name="UNet2DModel"), "names UNet2DConditionModel"),
        (config("scheduler/scheduler_config.json", _class_name="PNDMScheduler"), "names DDIM"),
    ],
)
def test_what_may_be_meant_is_said(
    whole: Path, tmp_path: Path, change: Change, message: str
) -> None:
    shutil.copytree(whole, tmp_path / "pipe")
    change(tmp_path / "pipe")
    with pytest.warns(UserWarning, match=message):
        load(str(tmp_path / "pipe"))


def test_weights_of_another_precision_alone_are_loaded(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "pipe")
    for path in [*tmp_path.rglob(NET), *tmp_path.rglob(TEXT)]:
        half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
        path.unlink()
    with pytest.warns(UserWarning, match="weights of variant fp16 alone"):
        pipe = load(str(tmp_path / "pipe"), torch.float32)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    torch.testing.assert_close(
        pipe.unet.conv_in.weight, load(str(whole)).unet.conv_in.weight.half().float()
    )


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_loaded_in_the_precision_that_was_asked(
    whole: Path, dtype: torch.dtype | None
) -> None:
    pipe = load(whole, dtype)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, network(str(whole), dtype))
    assert {part.dtype for part in parts} == {dtype or torch.float32}
    with pytest.raises(InputError, match=r"not in dtype='half' as asked"):
        load(str(whole), "half")


def test_parts_that_are_stored_in_half_are_loaded_alike(tmp_path: Path) -> None:
    """Transformers takes the dtype of a file, diffusers float32: both in one call would fail."""
    pipe = tiny.stable_diffusion(diffusers.DDIMScheduler(), tmp_path)
    pipe.text_encoder.half()
    pipe.save_pretrained(tmp_path / "pipe")
    pipe = load(str(tmp_path / "pipe"))
    assert pipe.unet.dtype == pipe.text_encoder.dtype == pipe.vae.dtype == torch.float32
    pipe("a cat", num_inference_steps=1, guidance_scale=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("critter", "did you mean 'critters'"),
        ("Critters-Guide", "did you mean 'critters-guide'"),
        ("nowhere", "no model 'nowhere': there is no such folder"),
        ("./nowhere/folder", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
    ],
)
def test_a_name_that_is_of_no_model_is_known_without_the_hub(name: str, message: str) -> None:
    for opened in (load, lambda name: network(name, None)):
        with pytest.raises(FileNotFoundError, match=message):
            opened(name)


def test_a_hub_that_does_not_answer_is_asked_once() -> None:
    for opened in (load, lambda name: network(name, None)):
        with pytest.raises(FileNotFoundError, match="no folder 'no-such/model'.*connection") as e:
            opened("no-such/model")
        assert "stacktrace" not in str(e.value)


def test_arguments_that_no_pipeline_of_a_model_takes(tmp_path: Path) -> None:
    tiny.unconditional(diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="DDIMPipeline takes no image, and diffusers has no"):
        load(str(tmp_path), takes=["image"])


def test_arguments_of_calls_are_those_of_a_base() -> None:
    inherited, own = map(call_parameters, ("StableDiffusionOnnxPipeline", "DDIMPipeline"))
    assert inherited == call_parameters("OnnxStableDiffusionPipeline") and "prompt" in inherited
    assert "batch_size" in own and not call_parameters("OfNobodyPipeline")


def test_files_and_folders_of_something_else_say_what_to_give(whole: Path) -> None:
    with pytest.raises(InputError, match="is a file, and models are folders"):
        load(str(whole / "unet" / NET))
    with pytest.raises(InputError, match=r"without model_index.json: give .*pipe"):
        load(str(whole.parent))
    with pytest.raises(InputError, match="without config.json or model_index.json"):
        network(str(whole / "tokenizer"), None)


GUIDES: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"cross_attention_dim": 64}, "text of width 64"),
    "channels": ({"in_channels": 3, "out_channels": 3}, "3 channels"),
    "classes": ({"num_class_embeds": 10}, "num_class_embeds=10, the network None"),
    "added": (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        "addition_embed_type='text_time'",
    ),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_end": 0.02}, "other noise at the same timestep"),
        ({"prediction_type": "v_prediction"}, "both have to predict the same"),
        ({"_class_name": "EulerDiscreteScheduler"}, ""),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, ""),  # which none of ours is
    ],
)
def test_a_guide_in_the_folder_of_a_pipeline_has_its_schedule(
    whole: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """By name, as in a recipe, where nothing but the network of the folder is loaded."""
    folder = shutil.copytree(whole, tmp_path / "guide")
    config("scheduler/scheduler_config.json", **changes)(folder)
    pipe, recipe = load(str(whole)), Recipe(str(whole), "a cat", guidance="Auto(2)")
    for use in (
        lambda: steer(pipe, "Auto(2)", guide=str(folder)),
        lambda: configured(pipe, replace(recipe, guide=str(folder))),
    ):
        with pytest.raises(InputError, match=message) if message else nullcontext(), use():
            pass


@pytest.mark.parametrize("case", GUIDES)
def test_a_guide_of_other_conditions_is_refused(whole: Path, tmp_path: Path, case: str) -> None:
    changes, message = GUIDES[case]
    pipe = load(str(whole))
    config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
    diffusers.UNet2DConditionModel(**config | changes).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        steer(pipe, Auto(2), network(str(tmp_path), None))
    with pytest.raises(InputError, match="a guide of AutoencoderKL"):
        steer(pipe, Auto(2), network(str(whole / "vae"), None))
    with pytest.raises(InputError, match="a guide of UNet2DModel"):
        steer(pipe, Auto(2), tiny.unconditional(diffusers.DDIMScheduler()).unet)


def test_a_model_that_ships_is_named_by_a_path_too() -> None:
    assert load(Path("critters-eps"), torch.float32).scheduler.config.prediction_type == "epsilon"


def test_one_text_is_a_list_of_one() -> None:
    """Not one of its letters."""
    with pytest.raises(FileNotFoundError, match=r"no LoRA 'style\.safetensors'"):
        load("critters", lora="style.safetensors")
    with pytest.raises(InputError, match="takes no sound, and"):
        load("critters", takes="sound")

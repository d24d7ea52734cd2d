"""How a recipe's model is loaded: precision, offloading, LoRA, one file, image to image."""

import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.utils as hub
import pytest
import tiny
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from diffsteer.cli.sample import sample
from diffsteer.core.errors import InputError
from diffsteer.generate import pipelines
from diffsteer.generate.call import require_a_step
from diffsteer.generate.generator import open_generator
from diffsteer.generate.recipe import Recipe, read, recipe_of_png
from diffsteer.generate.setting_values import value_of
from diffsteer.hf import load as loading
from diffsteer.hf import offload
from diffsteer.hf.load import load
from diffsteer.hf.lora import add_loras, lora_of, require_lora
from diffsteer.hf.offload import file_size
from diffsteer.hf.signature import Argument
from diffsteer.hf.single_file import load_single_file
from diffsteer.hf.weights import quiet
from diffsteer.io.device import free_memory
from diffsteer.io.hashing import weights_hash

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(pipe: str) -> Recipe:
    return Recipe(pipe, prompt="a cat", guidance="CFG(2)", steps=2)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where weights are read; loaded pipelines are forgotten."""

    def read(*_: Any) -> Any:
        raise AssertionError("weights were read")

    pipelines._loaded.cache_clear()
    monkeypatch.setattr(loading, "_loaded", read)
    yield
    pipelines._loaded.cache_clear()


def made(recipe: Recipe, seeds: tuple[int, ...] = (3,)) -> torch.Tensor:
    with open_generator(recipe, "cpu") as generate:
        return generate(seeds)


def lora(folder: Path, delta: float = 0.3) -> torch.Tensor:
    """Write a LoRA of rank 1 on one layer; returns what it adds to that layer's weight."""
    size = tiny.unet().get_submodule(LAYER).in_features
    down, up = torch.randn(1, size), torch.full((size, 1), delta)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}
    save_file(weights, folder / "pytorch_lora_weights.safetensors")
    return up @ down


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
    + [("float16", torch.float16)],
)
def test_weights_have_the_precision_that_is_asked(pipe: str, name: Any, dtype: Any) -> None:
    with open_generator(Recipe(pipe, prompt="a", steps=1, dtype=name), "cpu") as generate:
        assert {generate.pipe.unet.dtype, generate.pipe.text_encoder.dtype} == {dtype}
    assert load(pipe, name).vae.dtype == dtype


def test_layers_that_wait_elsewhere_make_the_same_image(recipe: Recipe, tmp_path: Path) -> None:
    assert torch.equal(made(replace(recipe, offload="group")), made(recipe))
    sample(replace(recipe, offload="group"), "3", tmp_path, device="cpu")
    assert recipe_of_png(tmp_path / "000003.png")[0] == replace(recipe, offload="group")
    sample(recipe, "3", tmp_path, device="cpu")  # is there, and not made otherwise


def test_a_part_whose_layers_cannot_wait_elsewhere_is_named(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers.AutoencoderKL, "_supports_group_offloading", False)
    with pytest.raises(InputError, match="which the vae of StableDiffusionPipeline cannot do"):
        offload.place(load(recipe.model), "cpu", "group")


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("changes", "free", "message"),
    [
        ({"offload": "model"}, 10**12, "device=cpu is none: leave --offload out"),
        ({"offload": "sequential"}, 10**12, "device=cpu is none: leave --offload out"),
        (
            {},
            10**5,
            r"needs 0.00 GB for its weights and cpu has 0.00 GB left: take a lower --dtype",
        ),
        ({"lora": ("nowhere.safetensors",)}, 10**12, "no LoRA 'nowhere.safetensors'"),
        ({"dtype": "float8"}, 10**12, "dtype must be one of .*'bfloat16'.*, got 'float8'"),
        ({"image": "nowhere.png"}, 10**12, "no image nowhere.png"),
        ({"mask": "nowhere.png"}, 10**12, "of no image: give --image as well"),
        ({"config": "x"}, 10**12, "leave it out"),
        ({"num_frames": 9}, 10**12, "StableDiffusionPipeline takes no num_frames"),
        ({"audio_seconds": 1.0}, 10**12, "leave --audio-seconds out"),
        ({"settings": ("eta",)}, 10**12, "write KEY=VALUE"),
        ({"settings": ("et=1",)}, 10**12, "takes no et .did you mean 'eta'.*: it takes clip_skip"),
        ({"settings": ("prompt=x",)}, 10**12, "--set prompt: use --prompt"),
        ({"settings": ("frame_rate=12",)}, 10**12, "--set frame_rate: use --fps"),
        ({"settings": ("eta=null",)}, 10**12, "eta=null: StableDiffusionPipeline takes float"),
        ({"settings": ("clip_skip=1.5",)}, 10**12, "takes int . None .None by default"),
        ({"settings": ("cross_attention_kwargs=1",)}, 10**12, "takes dict"),
        ({"settings": ("ip_adapter_image=a.png",)}, 10**12, "takes PipelineImageInput"),
        ({"fps": 8}, 10**12, "makes no videos: leave --fps out"),
    ],
)
def test_a_mistake_is_told_before_weights_are_read(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, changes: Any, free: int, message: str
) -> None:
    monkeypatch.setattr(offload, "free_memory", lambda _: free)
    with pytest.raises((InputError, OSError), match=message):
        made(replace(recipe, **changes))


@pytest.mark.parametrize(
    ("annotation", "default", "text", "value"),
    [
        ("bool", "True", "False", False),
        ("bool", "True", "false", False),
        ("float", "0.0", "1", 1),
        ("float | None", "None", "None", None),
        ("int", "None", "None", None),
        ("Optional[int]", "1", "2", 2),
        ("str | None", "None", "5", "5"),
        ("str", "''", "a=b", "a=b"),
        ("list[int] | None", "None", "[1, 2]", [1, 2]),
        ("tuple[int, int]", "(0, 0)", "[8, 8]", (8, 8)),
        ("float | list[float]", "1.0", "[1, 0.5]", [1, 0.5]),
        ("dict[str, Any] | None", "None", '{"a": 1}', {"a": 1}),
        ("Literal['first', 'last']", "'first'", "last", "last"),
        ("", "0.5", "0.7", 0.7),
        ("SomethingNew", "None", "text", "text"),
        ("bool", "True", "no", InputError),
        ("int", "1", "1.5", InputError),
        ("int", "1", "True", InputError),
        ("float", "0.0", "NaN", InputError),
        ("float", "0.0", "None", InputError),
        ("tuple[int, int]", "(0, 0)", "8", InputError),
        ("list[int]", "None", "[900.0, 0.5]", [900.0, 0.5]),
        ("int", "1", "3.0", 3),
        ("float", "1.0", ".5", 0.5),
        ("float", "1.0", "+5", 5.0),
        ("str", "''", ".5", ".5"),
        ("list[int]", "None", "[true]", InputError),
        ("Literal['first', 'last']", "'first'", "mid", InputError),
        ("torch.Tensor | None", "None", "[1]", InputError),
        ("list", "[16, 2, 1]", "[1, 2]", [1, 2]),
        ("list", "[16, 2, 1]", "3", InputError),
        ("'PIL.Image.Image' | torch.Tensor | None", "None", "a.png", InputError),
        ("'int' | None", "None", "3", 3),
        ("", None, "[1]", [1]),
        ("", "0.5", "x", InputError),
    ],
)
def test_a_setting_has_the_type_that_the_call_names(
    annotation: str, default: str, text: str, value: Any
) -> None:
    arguments = {"name": Argument(annotation, default)}
    if value is InputError:
        with pytest.raises(InputError, match="--set name=.*: Pipe takes"):
            value_of("Pipe", "name", text, arguments)
    else:
        made = value_of("Pipe", "name", text, arguments)
        assert made == value and type(made) is type(value)


def test_a_setting_of_a_call_that_no_source_shows_has_any_type() -> None:
    assert value_of("Mine", "name", "0.5", {}) == 0.5


def test_what_a_pipeline_stumbles_over_names_the_settings(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="fails with --set clip_skip=99 .IndexError"):
        made(replace(recipe, settings=("clip_skip=99",)))
    with pytest.raises(IndexError), pipelines._blaming(()):
        [][0]


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("StableDiffusionInpaintPipeline", "starts from an image: give one by --image"),
        ("StableDiffusionInstructPix2PixPipeline", "starts from an image: give one by --image"),
        ("StableVideoDiffusionPipeline", "starts from an image: give one by --image"),
        ("PaintByExamplePipeline", "starts from an image: give one by --image"),
        ("BlipDiffusionPipeline", "without reference_image, .*: where texts can, give it by --set"),
    ],
)
def test_an_image_that_a_pipeline_needs_is_missed_before_it_is_loaded(
    pipe: str, tmp_path: Path, picture: str, kind: str, message: str
) -> None:
    index = json.loads(Path(pipe, "model_index.json").read_text()) | {"_class_name": kind}
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe/model_index.json").write_text(json.dumps(index))
    recipe = Recipe(str(tmp_path / "pipe"), prompt="a")
    with pytest.raises(InputError, match=message):
        made(recipe)
    if "Inpaint" in kind:
        with pytest.raises(InputError, match="paints where a mask is white: give one by --mask"):
            made(replace(recipe, image=picture))


def test_memory_that_suffices_for_half_precision_does_not_for_single(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = offload.weights_sizes(Path(recipe.model), torch.float32)
    values = sum(p.numel() for p in load(recipe.model).unet.parameters())
    assert sizes["unet"] == 4 * values and sizes.keys() == {"unet", "vae", "text_encoder"}
    monkeypatch.setattr(offload, "free_memory", lambda _: sum(sizes.values()) - 1)
    assert made(replace(recipe, dtype="bfloat16")).shape == (1, 3, 16, 16)
    pipelines._loaded.cache_clear()
    with pytest.raises(InputError, match="a lower --dtype"):
        made(recipe)
    assert free_memory("cpu") > 0 and free_memory("meta") is None
    free = {"cpu": 2**40, "cuda": max(sizes.values())}
    monkeypatch.setattr(offload, "free_memory", lambda device: free[device])
    offload.require_memory("m", sizes, "cuda", "model")
    with pytest.raises(InputError, match="and cuda has .* take --offload model"):
        offload.require_memory("m", sizes, "cuda", "none")


def test_two_open_recipes_of_one_model_make_the_images_of_each(recipe: Recipe) -> None:
    plain = replace(recipe, guidance="", sampler="DDIM()")
    alone = made(recipe), made(plain)
    assert not torch.equal(*alone)
    with open_generator(recipe, "cpu") as first, open_generator(plain, "cpu") as second:
        assert torch.equal(first([3]), alone[0]) and torch.equal(second([3]), alone[1])
    assert torch.equal(made(recipe), alone[0])


def test_a_lora_adds_its_product_at_its_scale(recipe: Recipe, tmp_path: Path) -> None:
    delta = lora(tmp_path / "lora")
    assert "lora" in load(recipe.model, lora=f"{tmp_path}/lora").get_list_adapters()["unet"]
    merged = load(recipe.model)
    merged.unet.get_submodule(LAYER).weight.data += 0.5 * delta
    merged.save_pretrained(tmp_path / "merged")
    adapted = made(replace(recipe, lora=(f"{tmp_path}/lora:0.5",)))
    wanted = made(replace(recipe, model=str(tmp_path / "merged")))
    assert (adapted.int() - wanted.int()).abs().max() <= 1
    assert not torch.equal(adapted, made(recipe))
    file = f"{tmp_path}/lora/pytorch_lora_weights.safetensors"
    assert torch.equal(made(replace(recipe, lora=(f"{file}:0.25", f"{file}:0.25"))), adapted)
    one = replace(recipe, lora=(f"{tmp_path}/lora:0.5",), guidance="")
    alike, apart = (f"Auto(2, adapter='lora@{scale}')" for scale in (0.5, 0.0))
    assert (made(replace(one, guidance=alike)).int() - made(one).int()).abs().max() <= 1
    assert not torch.equal(made(replace(one, guidance=apart)), made(one))


@pytest.mark.parametrize("name", ["half", "keys"])
def test_a_lora_is_named_as_no_method_of_torch(recipe: Recipe, tmp_path: Path, name: str) -> None:
    """The file may be: guidances mean its adapter with a "_" at the end."""
    lora(tmp_path / "lora")
    file = tmp_path / f"{name}.safetensors"
    (tmp_path / "lora/pytorch_lora_weights.safetensors").rename(file)
    guided = replace(recipe, lora=(str(file),), guidance=f"Auto(2, adapter='{name}_@0.5')")
    assert not torch.equal(made(guided), made(replace(recipe, lora=(str(file),))))


def test_a_lora_brings_the_scheduler_it_was_trained_for(recipe: Recipe, tmp_path: Path) -> None:
    lora(tmp_path / "lora")
    own = load(recipe.model).scheduler
    repaired = diffusers.DDIMScheduler.from_config(
        own.config, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    repaired.save_pretrained(tmp_path / "lora/scheduler")
    with open_generator(replace(recipe, lora=(str(tmp_path / "lora"),)), "cpu") as generate:
        assert generate.pipe.scheduler.config.prediction_type == "v_prediction"
        generate([0])
    with open_generator(recipe, "cpu") as generate:
        assert generate.pipe.scheduler.config.prediction_type == "epsilon"
    lora(tmp_path / "other")
    own.save_pretrained(tmp_path / "other/scheduler")
    both = tuple(str(tmp_path / name) for name in ("lora", "other"))
    with pytest.raises(InputError, match="lora and .*other were trained for different schedulers"):
        made(replace(recipe, lora=both))


def test_a_lora_is_a_path_and_a_scale() -> None:
    assert lora_of("a/b:0.5") == ("a/b", 0.5) and lora_of("a/b:c") == ("a/b:c", 1.0)
    with pytest.raises(InputError, match="the scale must be a finite number, got inf"):
        lora_of("a/b:inf")
    require_lora("some/lora:0.5")  # of the hub
    with pytest.raises(InputError, match="DDIMPipeline takes no LoRA"):
        add_loras(tiny.unconditional(diffusers.DDIMScheduler()), ["a/b"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.weight", "holds no low-rank weights"),
        ("unet.nowhere.lora_A.weight", "other.safetensors fits no part of this Stable"),
        (f"unet.{LAYER}.lora_A.weight", "other.safetensors fits no part of .*size mismatch"),
        ("transformer.layer.lora_A.weight", "other.safetensors fits no part of this Stable"),
    ],
)
def test_weights_that_are_no_lora_of_the_model_are_refused(
    recipe: Recipe, tmp_path: Path, name: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {name: torch.zeros(1, 2), name.replace("lora_A", "lora_B"): torch.zeros(2, 1)}
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=message):
        made(replace(recipe, lora=(str(tmp_path / "other.safetensors"),)))
    assert not caplog.records  # which the command line would show beside its one line


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_B", "lora_A")])
def test_a_lora_with_one_factor_is_damaged(
    recipe: Recipe, tmp_path: Path, names: tuple[str, str]
) -> None:
    weights = {f"unet.{LAYER}.{names[0]}.weight": torch.ones(1, 2)}
    weights[f"unet.{LAYER}.lora_B.bias"] = torch.ones(2)  # which has no counterpart
    save_file(weights, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=f"half.safetensors is damaged: .* no .*{names[1]}.weight"):
        made(replace(recipe, lora=(str(tmp_path / "half.safetensors"),)))


def test_what_a_converter_of_loras_stumbles_over_names_the_lora(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: Any, **__: Any) -> None:
        raise IndexError("list index out of range")

    lora(tmp_path / "lora")
    mixin = diffusers.StableDiffusionPipeline
    monkeypatch.setattr(mixin, "load_lora_weights", stumble)
    with pytest.raises(InputError, match="lora cannot be read as a LoRA of this Stable.*IndexE"):
        made(replace(recipe, lora=(str(tmp_path / "lora"),)))


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", "is of FlowMatch.* .flow., and the model samples by"),
        ("NoSuchScheduler", "is of 'NoSuchScheduler', which diffusers does not have"),
    ],
)
def test_a_scheduler_that_cannot_take_the_models_place_is_refused(
    recipe: Recipe, tmp_path: Path, name: str, message: str
) -> None:
    lora(tmp_path / "lora")
    (tmp_path / "lora/scheduler").mkdir()
    config = json.dumps({"_class_name": name})
    (tmp_path / "lora/scheduler/scheduler_config.json").write_text(config)
    with pytest.raises(InputError, match=message):
        made(replace(recipe, lora=(str(tmp_path / "lora"),)))


def test_weights_of_a_lora_that_have_no_layer_are_told(recipe: Recipe, tmp_path: Path) -> None:
    lora(tmp_path / "lora")
    file = tmp_path / "lora/pytorch_lora_weights.safetensors"
    other = {f"unet.nowhere.to_q.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    whole = replace(recipe, lora=(str(file),))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made(whole)
    save_file(load_file(file) | other, tmp_path / "more.safetensors")
    with pytest.warns(UserWarning, match=r"does not have do nothing .1 in all.: nowhere\.to_q$"):
        made(replace(recipe, lora=(str(tmp_path / "more.safetensors"),)))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.byte().numpy()).save(tmp_path / "start.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    return str(tmp_path / "start.png")


@pytest.mark.parametrize("mask", [False, True])
def test_an_image_is_where_sampling_starts(recipe: Recipe, picture: str, mask: bool) -> None:
    start = replace(recipe, image=picture, strength=0.6, steps=4, guidance="")
    more: dict[str, Any] = {}
    cls = diffusers.StableDiffusionImg2ImgPipeline
    if mask:
        start = replace(start, mask=picture.replace("start", "mask"))
        cls, more = diffusers.StableDiffusionInpaintPipeline, {"mask_image": Image.open(start.mask)}
    pipe = cls.from_pipe(load(recipe.model), requires_safety_checker=False)
    wanted = pipe(
        "a cat",
        image=Image.open(picture),
        strength=0.6,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        **more,
    ).images
    assert torch.equal(
        made(start)[0], torch.from_numpy((wanted * 255).round()).byte()[0].permute(2, 0, 1)
    )
    assert not torch.equal(made(replace(start, strength=None)), made(start))
    assert torch.equal(made(start, (1, 3))[1:], made(start))


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_strength_that_leaves_no_step_is_refused(recipe: Recipe, picture: str) -> None:
    with pytest.raises(InputError, match="strength=0.1 of 4 steps leaves none .* --steps 10"):
        made(replace(recipe, image=picture, strength=0.1, steps=4))


def test_a_strength_of_the_pipelines_own_may_leave_no_step(recipe: Recipe, picture: str) -> None:
    with pytest.raises(InputError, match="strength=0.8 of 1 steps leaves none"):
        made(replace(recipe, image=picture, strength=None, steps=1))
    short, name = replace(recipe, image=picture, steps=4), "StableDiffusionImg2ImgPipeline"
    require_a_step(short, name, 0.1, flow=True)  # these round up
    for kind in ("LatentConsistencyModelImg2ImgPipeline", "SanaSprintImg2ImgPipeline"):
        require_a_step(short, kind, 0.1, flow=False)  # these take all steps, or round up
    own = replace(short, settings=("timesteps=[900, 500, 100]",))
    require_a_step(own, name, 0.4, flow=False)
    with pytest.raises(InputError, match="leaves none"):
        require_a_step(short, name, 0.1, flow=False)


def test_a_png_repeats_an_image_to_image(recipe: Recipe, picture: str, tmp_path: Path) -> None:
    lora(tmp_path / "lora")
    start = replace(recipe, image=picture, strength=0.5, steps=4, settings=("eta=0.5",))
    start = replace(start, lora=(f"{tmp_path}/lora:0.5",), dtype="float32")
    sample(start, "7", tmp_path / "a", device="cpu")
    sample(out=tmp_path / "b", device="cpu", file=tmp_path / "a/000007.png")
    a, b = (Image.open(tmp_path / side / "000007.png") for side in "ab")
    assert a.tobytes() == b.tobytes() and recipe_of_png(tmp_path / "b/000007.png") == (start, 7)
    Path(picture).write_bytes((tmp_path / "a/000007.png").read_bytes())
    with pytest.raises(InputError, match="was made otherwise: weights"):
        sample(start, "7", tmp_path / "a", device="cpu")


def test_a_recipe_in_json_is_followed_and_varied(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.to_dict() | {"dtype": "bfloat16", "lora": []}))
    assert read(file) == replace(recipe, dtype="bfloat16")
    sample(Recipe(guidance="CFG(3)"), "2", tmp_path / "a", device="cpu", file=file)
    wanted = replace(recipe, dtype="bfloat16", guidance="CFG(3)")
    assert recipe_of_png(tmp_path / "a/000002.png") == (wanted, 2)


def test_what_an_older_version_wrote_holds_no_later_fields(recipe: Recipe) -> None:
    assert not {"dtype", "lora", "image", "settings"} & recipe.to_dict().keys()
    assert "dtype" in replace(recipe, dtype="float16").to_dict()


def ldm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the tiny UNet under their names in checkpoints of one file."""
    parts = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    parts |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    first = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    first |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    first |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    first |= {"mid_block.resnets.1": "middle_block.2"}
    for block in (0, 1):
        down, up = f"down_blocks.{block}", f"up_blocks.{block}"
        first |= {f"{down}.resnets.0": f"input_blocks.{2 * block + 1}.0"}
        first |= {f"{down}.attentions.0": f"input_blocks.{2 * block + 1}.1"}
        first |= {f"{down}.downsamplers.0.conv": f"input_blocks.{2 * block + 2}.0.op"}
        first |= {f"{up}.upsamplers.0.conv": f"output_blocks.{2 * block + 1}.{2 - block}.conv"}
        for layer in (0, 1):
            first |= {f"{up}.resnets.{layer}": f"output_blocks.{2 * block + layer}.0"}
            first |= {f"{up}.attentions.{layer}": f"output_blocks.{2 * block + layer}.1"}
    made = {}
    for name, value in state.items():
        prefix = next(p for p in first if name.startswith(p + "."))
        rest = name[len(prefix) + 1 :]
        head, _, tail = rest.partition(".")
        rest = f"{parts[head]}.{tail}" if "resnets" in prefix else rest
        made[f"model.diffusion_model.{first[prefix]}.{rest}"] = value
    return made


@pytest.fixture
def single(recipe: Recipe, tmp_path: Path) -> tuple[Recipe, Path]:
    """The same model as one file without a VAE, and a folder of configurations with one."""
    diffusers.DiffusionPipeline.from_pretrained(recipe.model).save_pretrained(tmp_path / "config")
    unet, text = (tmp_path / "config" / part for part in ("unet", "text_encoder"))
    weights = {path: next(path.glob("*.safetensors")) for path in (unet, text)}
    state = ldm(load_file(weights[unet]))
    names = load_file(weights[text]).items()
    state |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in names}
    save_file(state, tmp_path / "model.safetensors")
    for path in weights.values():
        path.unlink()
    changes = {"model": str(tmp_path / "model.safetensors"), "config": str(tmp_path / "config")}
    return replace(recipe, **changes), tmp_path


def test_one_file_is_the_model_of_its_folder(recipe: Recipe, single: tuple[Recipe, Path]) -> None:
    with pytest.warns(UserWarning, match="holds no vae: that of"):
        assert torch.equal(made(single[0]), made(recipe))
    with pytest.raises(InputError, match="give --config FOLDER as well, a local folder"):
        made(replace(single[0], config=""))
    with pytest.raises(InputError, match="has to be a local folder with model_index.json"):
        made(replace(single[0], config="some/model"))
    with pytest.raises(InputError, match="DiTPipeline does not load from one file"):
        load_single_file(diffusers.DiTPipeline, single[0].model, single[0].config, None)
    next((single[1] / "config/vae").glob("*.safetensors")).unlink()
    with pytest.raises(
        InputError, match="holds no vae, and neither does .*config: put its weights"
    ):
        made(single[0])
    (single[1] / "config/vae/config.json").unlink()
    with pytest.raises(InputError, match="cannot be loaded as a model of diffusers .*config.json"):
        made(single[0])


@pytest.mark.parametrize("part", ["vae", "text_encoder", "lora"])
def test_a_file_that_holds_no_network_is_no_model(
    recipe: Recipe, tmp_path: Path, part: str
) -> None:
    """Or the network of the folder of configurations would be sampled in its place."""
    lora(tmp_path / "lora")
    file = next((tmp_path if part == "lora" else Path(recipe.model)).glob(f"{part}/*.safetensors"))
    message = "is a LoRA, .* give it by --lora" if part == "lora" else "holds no unet, the network"
    with pytest.raises(InputError, match=message):
        made(replace(recipe, model=str(file), config=recipe.model))


def test_a_file_of_another_kind_than_its_config_says_so(
    single: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = single
    other = folder / "sdxl"
    tiny.sdxl(diffusers.EulerDiscreteScheduler(), tmp_path).save_pretrained(other)
    with pytest.raises(InputError, match="model.safetensors is not of the kind of model that .*xl"):
        made(replace(recipe, config=str(other)))
    index = json.loads((folder / "config/model_index.json").read_text())
    index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    (folder / "config/model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"several networks .unet, transformer_2."):
        made(recipe)


def test_one_file_without_a_weight_is_refused(single: tuple[Recipe, Path]) -> None:
    recipe, folder = single
    state = load_file(recipe.model)
    state.pop("model.diffusion_model.middle_block.0.in_layers.2.weight")
    save_file(state, recipe.model)
    with pytest.raises(InputError, match="model.safetensors lacks weights that .*config names"):
        made(recipe)
    save_file({}, recipe.model)
    with pytest.raises(InputError, match="model.safetensors holds no weights"):
        made(recipe)


def test_sizes_of_weights_that_keep_their_precision(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64)}, tmp_path / "a")
    assert [file_size(tmp_path / "a", dtype) for dtype in (None, torch.float16)] == [28, 22]


def test_the_hash_of_quantised_weights_has_all_that_they_are_made_of() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    def hashed(first: float, second: float) -> str:
        net = torch.nn.Linear(2, 2, bias=False)
        weight = TwoTensor(torch.full((2, 2), first), torch.full((2, 2), second))
        net.weight = torch.nn.Parameter(weight, requires_grad=False)
        return weights_hash(net)

    assert len({hashed(1, 1), hashed(1, 2), hashed(2, 1)}) == 3 and hashed(1, 2) == hashed(1, 2)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_quantised_weights_name_the_package_that_reads_them(
    pipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(pipe, tmp_path / "pipe")
    config = tmp_path / "pipe/unet/config.json"
    table = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "torchao"}}
    config.write_text(json.dumps(table))
    monkeypatch.setattr("diffsteer.hf.weights.distributions", lambda **_: iter(()))
    with pytest.raises(InputError, match="unet is quantised by torchao, .*: pip install torchao"):
        made(Recipe(str(tmp_path / "pipe"), prompt="a"))


@pytest.mark.parametrize("bar", [True, False])
@pytest.mark.parametrize("shown", [*itertools.product([True, False], repeat=3)])
def test_progress_bars_are_shown_after_loading_where_they_were_before(
    shown: tuple[bool, bool, bool], bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of transformers, which also switches those of the hub, of the hub, and of diffusers."""
    module = sys.modules["huggingface_hub.utils.tqdm"]
    monkeypatch.setattr(module, "progress_bar_states", {"_global": shown[1]})
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", shown[0])
    monkeypatch.setattr(diffusers.utils.logging, "_tqdm_active", shown[2])

    def states() -> tuple[bool, bool, bool]:
        own, other = diffusers.utils.logging, transformers.utils.logging
        on = not hub.are_progress_bars_disabled()
        return other.is_progress_bar_enabled(), on, own.is_progress_bar_enabled()

    with quiet(bar):
        assert states() == shown if bar else not any((states()[0], states()[2]))
    assert states() == shown

"""Guidance of all families, against the pipeline's own and against the algebra."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial, wraps
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks import apply_first_block_cache as apply_cache
from torch import Tensor

from diffsteer import steer
from diffsteer.core.errors import InputError
from diffsteer.guidance import sag, second_context
from diffsteer.guidance.attention_edits import BlurQuery, Identity
from diffsteer.guidance.attention_taps import Tap, tapped
from diffsteer.guidance.image_tokens import ImageTokens
from diffsteer.hf import batches, guided_output
from diffsteer.hf.families import Patch, by_sdpa, packed, patch_of, unpacked
from diffsteer.hf.guided_output import GuidedOutput
from diffsteer.hf.measured_image_tokens import MeasuredLayers
from diffsteer.hf.network import PARTS
from diffsteer.hf.several_images import SampledImage
from diffsteer.hf.time_arguments import TimeArgument, Timeline
from families import FAMILIES, MODULAR
from families.calls import first
from families.parts import WEIGHTS, TinyFamily, image, randomised, sampling, wan_vae
from families.test_tiny import built, guidable
from families.tiny_video_unet import animatediff

UNKNOWN = {
    "AnyFlowFAR": "several outputs",
    "Cosmos3Omni": "7 and 11 rows that are not the same",
    "LTX2-all": "more than 2 times a step",
    "SanaWM": "neither the first nor the last",
    "StableDiffusionInstructPix2Pix": "3 rows",
}
"""Pipelines that are refused, with words of the reason."""


def sampled(family: TinyFamily, guidance: str = "", weaker: bool = False, **more: Any) -> Tensor:
    """Final sample of a tiny pipeline with its own guidance switched on, steered or not."""
    pipe = built(family)
    torch.manual_seed(0)  # some draw from the global generator
    call = family.kwargs(pipe) | family.guided(pipe) | more
    if not guidance:
        return first(pipe(**call))
    guide = {"guide": weak(family)} if weaker else {}
    with steer(pipe, guidance, **guide):
        return first(pipe(**call))


@cache
def weak(family: TinyFamily) -> Any:
    pipe = built(family)
    network = next(part for name in PARTS if (part := getattr(pipe, name, None)))
    return randomised(copy.deepcopy(network), seed=5)


@cache
def own(family: TinyFamily) -> Tensor:
    return sampled(family)


@cache
def unguided(family: TinyFamily) -> Tensor:
    """By the prompt alone, steered."""
    return sampled(family, "CFG(1)")


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of two orders of float32 sums, over a few steps."""
    return bool((a - b).abs().max() <= 1e-4 * (1 + b.abs().max()))


def require_steerable(family: TinyFamily) -> None:
    name = family.name.partition("-")[2]
    if name not in UNKNOWN:
        return
    with pytest.raises(InputError, match=UNKNOWN[name]):
        sampled(family, "CFG(2)")
    pytest.skip("refused")


@guidable
def test_cfg_is_the_pipelines_own(family: TinyFamily) -> None:
    require_steerable(family)
    weights = WEIGHTS[family.pattern] if family.weights == () else family.weights
    guided = sampled(family, f"CFG({max(weights or (4.0,))})")
    assert torch.equal(sampled(family), own(family))  # the pipeline is as it was
    if weights is None:  # it changes the norm of the sum, or more
        assert not close(guided, own(family))
    else:
        assert close(guided, own(family))


@guidable
def test_without_effect(family: TinyFamily) -> None:
    require_steerable(family)
    pipe = built(family)
    torch.manual_seed(0)
    plain = first(pipe(**family.kwargs(pipe)))
    assert close(unguided(family), plain)
    torch.manual_seed(0)
    with steer(pipe, "0.0 * CFG(3)"):  # nor does it ask for the null prompt
        assert close(first(pipe(**family.kwargs(pipe))), plain)


@guidable
def test_sums(family: TinyFamily) -> None:
    require_steerable(family)
    one, both = sampled(family, "CFG(3)"), sampled(family, "CFG(2) + CFG(2)")
    assert close(one, both)
    if family.name.partition("-")[2] in CACHED:
        with pytest.raises(InputError, match="keeps a cache"):
            sampled(family, "Auto(2)", weaker=True)
    else:
        auto = sampled(family, "Auto(2)", weaker=True)
        assert auto.isfinite().all()
        assert not close(auto, one)
    assert not close(sampled(family, "CFG(3).over(0, 1)"), unguided(family))


@guidable
def test_asks_at_another_level(family: TinyFamily) -> None:
    require_steerable(family)
    if family.pipeline == "Cosmos2_5_PredictBasePipeline":  # it is told sigma, by a rule of its own
        with pytest.raises(InputError, match="it is not certain how"):
            sampled(family, "AutoNoise(2, noise=0.1)")
        return
    # the first step of EDM has the most noise that there is, and the last goes nowhere
    more = {"num_inference_steps": 3} if family.pipeline == "CosmosTextToWorldPipeline" else {}
    noisier = sampled(family, "AutoNoise(2, noise=0.1)", **more)
    assert noisier.isfinite().all()
    plain = sampled(family, "CFG(1)", **more) if more else unguided(family)
    assert not close(noisier, plain)


def test_state_of_a_pipeline_that_is_guided_at_its_steps() -> None:
    """Copies are not steered, and parts that are replaced are refused, as for any pipeline."""
    family = next(f for f in FAMILIES if f.name.endswith("-Sana"))
    pipe = family.build()

    def run(made: Any) -> Tensor:
        return first(made(**(family.kwargs(made) | family.guided(made))))

    plain = run(pipe)
    with steer(pipe, "CFG(2)"):
        guided, other = run(pipe), copy.deepcopy(pipe)
        assert torch.equal(run(other), plain) and not close(guided, plain)
        with steer(other, "CFG(2)"):
            assert close(run(other), guided)
    with steer(pipe, "CFG(2)"):
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        assert close(run(pipe), guided)
        pipe.transformer = copy.deepcopy(pipe.transformer)
        with pytest.raises(InputError, match="^transformer of this pipeline was replaced"):
            run(pipe)
    assert torch.equal(run(pipe), plain)


def test_a_run_ends_with_a_step_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that never steps is refused in its call; one that failed leaves nothing behind."""
    family = next(f for f in FAMILIES if f.name.endswith("-Sana"))
    pipe = family.build()
    call = family.kwargs(pipe) | family.guided(pipe)
    with steer(pipe, "CFG(2)"):
        guided = first(pipe(**call))
        with monkeypatch.context() as patched:
            forward = pipe.transformer.forward

            def skipping(*args: Any, **more: Any) -> Any:
                out = forward(*args, **more)
                patched.setattr(pipe.scheduler, "step", lambda out, t, x, **_: (x,))
                return out

            patched.setattr(pipe.transformer, "forward", skipping)
            with pytest.raises(InputError, match="ended without a step of its scheduler"):
                pipe(**call | {"num_inference_steps": 1})
        handle = pipe.transformer.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe(**family.kwargs(pipe) | family.guided(pipe))
        handle.remove()
        assert torch.equal(first(pipe(**family.kwargs(pipe) | family.guided(pipe))), guided)
        handle = pipe.transformer.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe(**family.kwargs(pipe) | family.guided(pipe))
    handle.remove()


def test_a_probe_is_not_the_latents_of_any_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model output that holds the sample is refused, also where latents have the seed 0."""
    family = next(f for f in FAMILIES if f.name.endswith("-Sana"))
    pipe = family.build()
    call = family.kwargs(pipe) | family.guided(pipe)
    with steer(pipe, "CFG(2)"), monkeypatch.context() as patched:
        forward = pipe.transformer.forward

        def mixed(x: Tensor, **more: Any) -> Any:
            return (0.4 * x + 0.6 * forward(x, **more)[0],)

        patched.setattr(pipe.transformer, "forward", mixed)
        with pytest.raises(InputError, match="no part of what its network"):
            pipe(**call | {"num_inference_steps": 1})


@pytest.mark.parametrize(
    ("name", "guidance", "rows", "want"),
    [
        ("LTX", "CFG(4)", None, [2, 2, 2]),
        ("LTX", "CFG(4)", 1, [2, 1, 1, 1, 1, 1, 1]),  # the first call tells the form of answers
        ("CogView4", "CFG(4)", None, [1, 2, 2, 2]),
        ("CogView4", "CFG(4)", 1, [1] * 6),
        ("CogView4", "CFG(4) + AutoNoise(2, noise=0.1)", None, [1, 2, 2, 1, 2, 1]),
    ],
)
def test_both_conditions_are_one_batch(
    name: str, guidance: str, rows: int | None, want: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, call, sizes = counted(name, monkeypatch)
    plain = first(pipe(**call()))
    sizes.clear()
    with steer(pipe, guidance, max_rows=rows):
        got = first(pipe(**call()))
    assert sizes == want
    assert close(got, plain) == (guidance == "CFG(4)")


@pytest.mark.parametrize("guidance", ["ICG(2)", "CFG(4) + PAG(2)"])
def test_one_row_at_a_time_is_the_same(guidance: str) -> None:
    family = named("CogView4")
    pipe = family.build()
    with steer(pipe, guidance, max_rows=1):
        alone = first(pipe(**family.kwargs(pipe) | family.guided(pipe)))
    assert close(alone, sampled(family, guidance))


def test_a_batch_that_answers_otherwise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says that the rows of a network do not see each other: it is measured."""
    pipe, call, sizes = counted("CogView4", monkeypatch)
    plain, answer = first(pipe(**call())), type(pipe.transformer).forward
    for wrong in (lambda out: out * len(out), lambda out: out.flip(0), lambda out: out[:3] / 0):
        sizes.clear()

        def seeing(*args: Any, wrong: Any = wrong, **kwargs: Any) -> Any:
            out = answer(*args, **kwargs)[0]
            if len(out) > 1 and wrong(out).isinf().any():
                raise RuntimeError("shapes do not fit")
            return (wrong(out) if len(out) > 1 else out,)

        monkeypatch.setattr(type(pipe.transformer), "forward", wraps(answer)(seeing))
        with steer(pipe, "CFG(4)"):
            assert close(first(pipe(**call())), plain)
        assert sizes == [1, 2, 1, 1, 1, 1, 1]


def counted(name: str, patch: pytest.MonkeyPatch) -> tuple[Any, Any, list[int]]:
    """A pipeline, its arguments for three steps, and the batch sizes of its network."""
    pipe, sizes = named(name).build(), list[int]()
    forward = type(pipe.transformer).forward

    @wraps(forward)
    def noted(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    patch.setattr(type(pipe.transformer), "forward", noted)

    def call() -> dict[str, Any]:
        return named(name).kwargs(pipe) | named(name).guided(pipe) | {"num_inference_steps": 3}

    return pipe, call, sizes


def test_texts_of_each_frame_are_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of four would be answered almost the same under the null prompt's text."""
    pipe = animatediff().to(torch.bfloat16)
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(1, 5, pipe.unet.config.cross_attention_dim, generator=draw)
    null = text + 0.02 * torch.randn(text.shape, generator=draw)
    latents = torch.randn(1, 4, 2, 8, 8, generator=draw).bfloat16()
    given = {"prompt_embeds": text.bfloat16(), "negative_prompt_embeds": null.bfloat16()}
    given |= {"num_frames": 2, "height": 64, "width": 64, "guidance_scale": 7.0}
    call = partial(pipe, **sampling(latents=latents, **given))
    with steer(pipe, "PAG(3)"):
        taken = first(call())
    monkeypatch.setattr(batches, "LOSSY", ())  # only what is equal to 1e-3 is taken
    with steer(pipe, "PAG(3)"):
        assert torch.equal(first(call()), taken)


CACHED = ("QwenImage21",)
"""Pipelines whose networks keep keys and values between calls."""


@guidable
def test_perturbed_attention(family: TinyFamily) -> None:
    require_steerable(family)
    name = family.name.partition("-")[2]
    if name == "KandinskyV22":
        with pytest.raises(InputError, match="no attention layer is called 'mid'"):
            sampled(family, "PAG(2)")
        return
    layer = LAYERS.get(family.network, "mid")
    one_token = family.network == "PriorTransformer"
    scale = 40 if name == "StableAudio3" else 2  # whose tiny network hardly follows one layer
    assert one_token == close(sampled(family, f"PAG({scale}, layer='{layer}')"), unguided(family))


@pytest.mark.parametrize("key", [0, 2])
def test_keys_of_a_text_beside_those_of_the_image(key: int) -> None:
    """Under PAG an image token attends to itself and to the text that the mask leaves."""
    generator = torch.Generator().manual_seed(key)
    q = torch.randn(2, 1, 4, 3, generator=generator)
    k, v = torch.randn(2, 2, 1, 6, 3, generator=generator)
    text = [i for i in range(6) if not key <= i < key + 4]
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[..., text[0]] = False
    tap = Tap(edits=[(slice(1, 2), Identity())])
    out = tap.attend(q, k, v, {"attn_mask": mask}, ImageTokens((2, 2), key=key))
    torch.testing.assert_close(out[0], F.scaled_dot_product_attention(q, k, v, mask)[0])
    for i in range(4):
        seen = [key + i, text[1]]
        weights = (k[1, 0, seen] @ q[1, 0, i] / 3**0.5).softmax(dim=0)
        torch.testing.assert_close(out[1, 0, i], weights @ v[1, 0, seen])


@pytest.mark.parametrize(("name", "key"), [("PRX", 5), ("StableCascadePrior", 0)])
def test_places_of_the_image_among_keys(
    name: str, key: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: set[int | None] = set()
    attend = Tap.attend

    def noted(tap: Tap, *args: Any) -> Tensor:
        keys.add(args[4].key)
        return attend(tap, *args)

    monkeypatch.setattr(Tap, "attend", noted)
    sampled(named(name), "PAG(2)")
    assert keys == {key}


def test_attention_to_other_tokens_is_none_to_itself() -> None:
    q, k = torch.ones(1, 1, 4, 2), torch.ones(1, 1, 3, 2)
    with pytest.raises(InputError, match="attends from 4 tokens to 3 others, which is no self-att"):
        Tap().attend(q, k, k, {}, ImageTokens((2, 2)))


def test_linear_attention_keeps_its_values() -> None:
    """PAG in a row leaves the values, and other rows as they were; there is no map for others."""
    layer = named("Sana").build().transformer.transformer_blocks[0].attn1
    x = torch.randn(2, 6, layer.to_q.in_features, generator=torch.Generator().manual_seed(0))
    plain, tap = layer(x), Tap(edits=[(slice(1, 2), Identity())])
    with tapped({"a": layer}, {"a": tap}, lambda *_: ImageTokens((2, 3)), by_sdpa, 2):
        edited = layer(x)
    assert torch.equal(edited[0], plain[0]) and torch.equal(layer(x), plain)
    torch.testing.assert_close(edited[1], layer.to_out[0](layer.to_v(x))[1])
    assert not close(edited[1], plain[1])
    with pytest.raises(InputError, match="linear attention, without a map"):
        sampled(named("Sana"), "SEG(2)")
    tap = Tap(records=[(slice(0, 2), [])])
    with (
        pytest.raises(InputError, match="linear attention, without a map"),
        tapped({"a": layer}, {"a": tap}, lambda *_: ImageTokens((2, 3)), by_sdpa, 2),
    ):
        pass


def test_a_processor_that_takes_no_other_backend_keeps_its_own() -> None:
    layer = named("AnyFlowFAR").build().transformer.blocks[0].attn1
    with by_sdpa(layer):
        assert layer.processor._attention_backend == "flex"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AnimateDiff", "encoder_hidden_states has no row for each"),
        ("KandinskyV22", "could replace in timestep, image_embeds, return_dict"),
    ],
)
def test_what_a_random_condition_cannot_replace(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sampled(named(name), "ICG(2)")


LAYERS = {"Kandinsky3UNet": "down_blocks.1"}
"""Layers of more than one token, where the middle one of the tiny network has no more."""

TOKENS = {
    "AuraFlow": ((4, 4), 13),
    "Chroma": ((4, 4), 5),
    "CogVideoX": ((2, 2, 2), 5),
    "CogView4": ((4, 4), 5),
    "Flux2Klein": ((4, 4), 5),
    "HiDreamImage": ((4, 4), 0),
    "HunyuanVideo": ((2, 2, 2), 0),
    "HunyuanVideoFramepack": ((2, 2, 2), 13),
    "Krea2": ((4, 4), 5),
    "Mochi": ((2, 2, 2), 0),
    "QwenImage": ((4, 4), 5),
    "QwenImage21": ((4, 4), 0),
    "Wan": ((2, 2, 2), 0),
    "ZImage": ((4, 4), 0),
}
"""Shape of the image in tokens and place of the first, as the networks of diffusers join them."""


@guidable
def test_image_tokens(family: TinyFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    name = family.name.partition("-")[2]
    if name not in TOKENS:
        pytest.skip("joins image and text as others do")
    layers: list[MeasuredLayers] = []
    measured = GuidedOutput._measured_layers

    def noted(self: GuidedOutput, guide: Any, layout: Any) -> MeasuredLayers:
        layers.append(measured(self, guide, layout))
        return layers[-1]

    monkeypatch.setattr(GuidedOutput, "_measured_layers", noted)
    sampled(family, "PAG(2)")
    places = {(t.shape, t.start) for _, t, _ in layers[0]._layers.values()}
    assert places == {TOKENS[name]}


@pytest.mark.parametrize(
    "name", ["StableDiffusionXL", "StableDiffusion3", "Flux", "PixArtAlpha", "DiT"]
)
def test_the_table_of_families_says_what_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers and places of the image, which the table names to save evaluations."""
    guidance = "PAG(2, layer='all') + SEG(1, sigma=1.0) + SAG(0.5, on='cond')"
    known, measured = sampled(named(name), guidance), list[str]()
    places = MeasuredLayers.tokens
    monkeypatch.setattr(guided_output, "known_family", lambda _: None)
    monkeypatch.setattr(
        MeasuredLayers,
        "tokens",
        lambda self, n, count, rows: measured.append(n) or places(self, n, count, rows),
    )
    assert close(sampled(named(name), guidance), known)
    assert measured


@guidable
def test_sag(family: TinyFamily) -> None:
    require_steerable(family)
    name = family.name.partition("-")[2]
    if name not in ("CogView4", "HunyuanImage", "UNetMotion", "Wan", "TextToVideoSD", "ZImage"):
        pytest.skip("blurs as others do")
    assert not close(sampled(family, "SAG(1, on='cond')"), unguided(family))


PACKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "Flux2Klein": lambda pipe, x: pipe._pack_latents(pipe._patchify_latents(x)),
    "Krea2": lambda pipe, x: pipe._pack_latents(x, 1, *x.shape[1:]),
    "LTX": lambda pipe, x: pipe._pack_latents(x),
    "NucleusMoEImage": lambda pipe, x: pipe._pack_latents(x, 1, *x.shape[1:], 2),
    "QwenImage": lambda pipe, x: pipe._pack_latents(x, 1, *x.shape[1:]),
    "QwenImage21": lambda pipe, x: pipe._pack_latents(x, 1, *x.shape[1:]),
}
"""Pipelines that pack patches into tokens, and how."""


@pytest.mark.parametrize("name", PACKED)
def test_tokens_that_are_packed_patches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAG blurs the image that the pipeline packs; with a norm of each token it is refused."""
    family, images = named(name), []
    pipe = built(family)
    own = sag.blur
    monkeypatch.setattr(sag, "blur", lambda x, *a: images.append(x) or own(x, *a))
    plain = unguided(family)
    blurred = sampled(family, "SAG(1, on='cond', mask='global')")
    assert not close(blurred, plain)
    (shape,) = {x.shape[1:] for x in images}
    assert shape == {"LTX": (4, 2, 2, 2), "QwenImage21": (16, 4, 4)}.get(name, (4, 8, 8))
    tokens = packed(images[0], patch_of(pipe))
    assert torch.equal(tokens, PACKED[name](pipe, images[0]))
    assert torch.equal(unpacked(tokens, grid(shape, patch_of(pipe)), patch_of(pipe)), images[0])
    assert close(sampled(family, "FDG(4, 4)"), sampled(family, "CFG(4)"))
    with pytest.raises(InputError, match="SAG blurs images"):
        sampled(family, "SAG(1, on='cond') + CFGNorm(2)")


def grid(shape: torch.Size, patch: Patch) -> tuple[int, ...]:
    """Frames, height and width in tokens of an image or video `(C, *D)`."""
    return (*shape[1:-2], shape[-2] // patch.side, shape[-1] // patch.side)


def blurred(name: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[Tensor, Tensor]:
    """Sample of a pipeline under SAG, and the first that is blurred, `(1, C, *D)`."""
    images, own = list[Tensor](), sag.blur
    monkeypatch.setattr(sag, "blur", lambda x, *a: images.append(x) or own(x, *a))
    sample = sampled(named(name), "SAG(1, on='cond')", **more)
    assert not close(sample, sampled(named(name), "CFG(1)", **more))
    return sample, images[0]


def test_patches_with_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAG blurs the image that Ideogram 4 makes of its latents, after the last step alone."""
    _, image = blurred("Ideogram4", monkeypatch)
    pipe, decoded = named("Ideogram4").build(), list[Tensor]()
    norm = SimpleNamespace(running_mean=torch.zeros(16), running_var=torch.ones(16))
    pipe.vae = SimpleNamespace(
        bn=norm,
        dtype=torch.float32,
        config=SimpleNamespace(batch_norm_eps=0.0),
        decode=lambda z, **_: decoded.append(z) or (z[:, :3],),
    )
    call = named("Ideogram4").kwargs(pipe) | {"output_type": "pt"}
    latents = list[Tensor]()
    noted = {"callback_on_step_end": lambda *a: latents.append(a[3]["latents"]) or {}}
    pipe(**call | noted)
    patch = patch_of(pipe)
    assert patch is not None and image.shape == decoded[0].shape
    assert torch.equal(packed(decoded[0], patch), latents[-1])
    assert torch.equal(unpacked(latents[-1], grid(image.shape[1:], patch), patch), decoded[0])


@pytest.mark.parametrize("frames", [9, 17])
def test_a_video_beside_sound_is_blurred(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the map of its own layer, also where sound (17 frames) has as many tokens, in no grid."""
    shapes, own = list[Any](), sag.attention_mask
    monkeypatch.setattr(
        sag, "attention_mask", lambda a, x, t: shapes.append(a[0].shape) or own(a, x, t)
    )
    more = {"num_frames": frames, "frame_rate": 2.0 * frames}
    _, video = blurred("LTX2", monkeypatch, **more)
    assert video.shape == (1, 8, (frames + 7) // 8, 2, 2)
    assert shapes[-1] == (1, *video.shape[2:])
    tokens = packed(video, Patch(1))
    assert torch.equal(tokens, named("LTX2").build()._pack_latents(video))
    sound = "SAG(1, on='cond', layer='transformer_blocks.0.audio_attn1')"
    with pytest.raises(InputError, match="neither height nor width is known"):
        sampled(named("LTX2"), sound, **more)


@pytest.mark.parametrize("name", ["JoyImageEdit", "JoyImageEditPlus"])
def test_images_beside_the_one_that_is_sampled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are given anew in every call, and the sampled one alone is blurred and edited."""
    pipe, calls = named(name).build(), list[Tensor]()
    call = named(name).kwargs(pipe) | named(name).guided(pipe)
    if name == "JoyImageEdit":
        pipe.vae, more = wan_vae(), {"image": image(size=64)}
    else:
        more = {"images": [image(size=64), image(1, size=64)]}
    processor = getattr(pipe, "vae_image_processor", None) or pipe.image_processor
    monkeypatch.setattr(processor, "get_default_height_width", lambda *_: (64, 64))
    forward = pipe.transformer.forward

    @wraps(forward)
    def noted(hidden_states: Tensor, **arguments: Any) -> Any:
        calls.append(hidden_states[-1:])
        return forward(hidden_states=hidden_states, **arguments)

    monkeypatch.setattr(pipe.transformer, "forward", noted)

    def run(guidance: str = "") -> Tensor:
        torch.manual_seed(0)
        call["generator"].manual_seed(0)
        with steer(pipe, guidance) if guidance else nullcontext():
            return first(pipe(**call | more))[:, :16]

    assert close(run("CFGNorm(4)"), run())  # the norm over channels, which are third
    images = (2, 1) if name == "JoyImageEdit" else (48, 0, (1, 4, 4))
    sampled_image = SampledImage(*images)
    others, edited = list(sampled_image.others), list[Any]()
    own = BlurQuery.__call__
    monkeypatch.setattr(BlurQuery, "__call__", lambda *a: edited.append(a[5]) or own(*a))
    for guidance in ("SAG(1, on='cond')", "AutoNoise(2, noise=0.1)", "SEG(2, sigma=1.0)"):
        assert not close(run(guidance), run("CFG(1)"))
    assert all(torch.equal(x[:, others], calls[0][:, others]) for x in calls)
    assert {tuple(size) for size in edited} == {(4, 4)}
    taken = sampled_image.taken(calls[0])
    assert torch.equal(sampled_image.taken(sampled_image.whole(taken)), taken)
    assert not sampled_image.whole(taken)[:, others].any()


def test_patches_of_the_image_that_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the pipeline packs them, before those of the images that are given."""
    pipe = named("JoyImageEditPlus").build()
    monkeypatch.setattr(pipe.image_processor, "get_default_height_width", lambda *_: (64, 64))
    x = torch.randn(1, 4, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    settings = 4, 64, 96, torch.float32, torch.device("cpu"), None, [[image(size=64)]]
    patches, mask, shapes = pipe.prepare_latents(1, *settings, latents=x)
    place = SampledImage(patches.shape[1], 0, shapes[0][0])
    assert torch.equal(place.taken(patches), x)
    assert torch.equal(place.whole(x), patches * mask[..., None, None, None, None])


@pytest.mark.parametrize("name", ["CogVideoX", "ConsisID", "StableVideoDiffusion"])
def test_frames_before_channels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAG lays its map on frames, also of videos `(B, F, C, H, W)`, with or without conditions."""
    shapes, own = [], sag.attention_mask
    monkeypatch.setattr(
        sag, "attention_mask", lambda a, x, t: shapes.append(x.shape) or own(a, x, t)
    )
    assert sampled(named(name), "SAG(1, on='cond')").shape[:3] == (1, 2, 4)
    assert set(shapes) == {(1, 4, 2, 4, 4)}


@pytest.mark.parametrize("guidance", ["PAG(1, on='null')", "SEG(1, on='null')"])
def test_a_network_of_the_null_prompt_is_not_edited(guidance: str) -> None:
    with pytest.raises(InputError, match="has another network for the null prompt"):
        sampled(named("Ideogram4"), guidance)


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in MODULAR])
def test_modular_pipelines(family: TinyFamily) -> None:
    weights = WEIGHTS[family.pattern] if family.weights == () else family.weights
    guided = sampled(family, f"CFG({max(weights or (4.0,))})")
    assert close(guided, sampled(family)) == (weights is not None)
    assert not close(sampled(family, "CFG(2) + AutoNoise(2, noise=0.1)"), guided)


@pytest.mark.parametrize("name", ["CosmosTextToWorld", "Cosmos2TextToImage"])
def test_model_outputs_that_hold_the_sample(name: str) -> None:
    """Of x0, or eps, of both prompts that one is taken which the pipeline moves away from."""
    family = named(name)
    call = family.guided(built(family)) if family.guided else {}
    null = {name: value for name, value in call.items() if name.startswith("negative")}
    alone = sampled(family, "CFG(4) + PAG(2)", guidance_scale=1.0, **null)
    assert close(sampled(family, "CFG(4) + PAG(2)"), alone)
    assert not close(sampled(family, "CFG(4)"), alone)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 80.0])
def test_a_flow_of_samples_beyond_its_noise(sigma: float) -> None:
    """Cosmos 2: x0 = c (x - sigma out) at the network's input c x, c = 1 / (1 + sigma)."""
    scheduler = named("Cosmos2TextToImage").build().scheduler
    scheduler.set_timesteps(sigmas=[0.0, 1.0])
    timeline, c = Timeline.of(scheduler), 1 / (1 + sigma)
    level = timeline.level(1000 * sigma)
    x, out = torch.randn(2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(timeline.prediction.x0(c * x, out, level), c * (x - sigma * out))
    assert timeline.time(level) == pytest.approx(1000 * sigma)
    assert timeline.holds(1 / c, 1000 * sigma)  # eps = c x + c out
    assert timeline.holds(-1 / (sigma * c), 1000 * sigma)  # x0
    assert not timeline.holds(0.95 / c, 1000 * sigma)


def test_video_and_sound_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are guided by evaluations of one network, each with norms and noise of its own."""
    family = named("LTX2")
    pipe = family.build()
    call = family.kwargs(pipe) | family.guided(pipe) | {"return_dict": False}
    call |= {"num_frames": 17, "frame_rate": 34.0}  # 12 tokens of both
    seeds = {"generator": torch.Generator().manual_seed(0)}
    count = [0]
    forward = pipe.transformer.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += len(kwargs["hidden_states"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", counted)

    def run(guidance: str = "", **more: Any) -> Any:
        seeds["generator"].manual_seed(0)
        if not guidance:
            return pipe(**call | seeds | more)
        with steer(pipe, guidance):
            return pipe(**call | seeds | more)

    own = run()
    assert all(map(close, run("CFG(4)"), own))
    assert close(run("CFG(4)")[0], run(audio_guidance_scale=1.0)[0]) is False  # they see each other
    both = run("PAG(1, layer='all')")
    assert not any(map(close, both, run("CFG(1)")))
    assert not any(map(close, run("AutoNoise(2, noise=0.1)"), run("CFG(1)")))
    assert not any(map(close, run("CFG(4).rescaled(1)"), own))
    count[0] = 0
    run("CFG(4)")
    assert count[0] == 2 * 2  # the prompt and the null prompt, in each step
    for scale, words in ((0.5, "0.5 and 0.5 of its two"), (-3.0, "its two samples .* whole and")):
        with pytest.raises(InputError, match=words):
            run("CFG(4)", audio_guidance_scale=scale)
    monkeypatch.setattr(copy, "deepcopy", lambda scheduler, *_: scheduler)
    with pytest.raises(InputError, match="no second scheduler"):
        run("CFG(4)")


def named(name: str) -> TinyFamily:
    return next(f for f in FAMILIES if f.name.partition("-")[2] == name)


def test_prompts_of_other_lengths_in_one_steering() -> None:
    """Where the image starts depends on the mask of the prompt, not on shapes alone."""
    family = named("Lumina2")
    pipe = family.build()

    def run(mask: list[int]) -> Tensor:
        call = family.kwargs(pipe) | {"prompt_attention_mask": torch.tensor([mask])}
        return first(pipe(**call))

    with steer(pipe, "PAG(2)"):
        fresh = run([1, 1, 1, 0, 0])
    with steer(pipe, "PAG(2)"):
        run([1, 1, 1, 1, 1])
        assert torch.equal(run([1, 1, 1, 0, 0]), fresh)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize(
    "guidance",
    ["PAG(2)", "SEG(2, sigma=1.0)", "SAG(1, on='cond')", "NAG(4)", "CFG(2) + PAG(1, on='null')"],
)
def test_a_batch_of_prompts_of_two_lengths(guidance: str, rows: int | None) -> None:
    """Each is guided as alone, where the image follows the tokens that its mask leaves."""
    family = named("Lumina2")
    pipe = family.build()
    generator = torch.Generator().manual_seed(5)
    texts = torch.randn(2, 2, 5, 16, generator=generator)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    masks = torch.tensor([[[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]])

    def run(samples: slice, guidance: str = guidance) -> Tensor:
        call = family.kwargs(pipe) | family.guided(pipe) | {"latents": latents[samples]}
        for prefix, text, mask in zip(("", "negative_"), texts, masks, strict=True):
            call[f"{prefix}prompt_embeds"] = text[samples]
            call[f"{prefix}prompt_attention_mask"] = mask[samples]
        with steer(pipe, guidance, max_rows=rows):
            return first(pipe(**call))

    both, plain = run(slice(0, 2)), run(slice(0, 2), "CFG(1)")
    for row in range(2):
        alone = run(slice(row, row + 1))
        torch.testing.assert_close(both[row], alone[0], atol=1e-4, rtol=1e-4)
        assert not close(alone, plain[row : row + 1])


def test_the_image_under_a_second_text_of_another_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """NAG combines the same tokens of the image, wherever each of its texts puts them."""
    family, places = named("Lumina2"), set[tuple[int, ...]]()
    pipe, image_of = family.build(), second_context._image_of

    def noted(*args: Any) -> Any:
        def image(q: Tensor, k: Tensor) -> Any:
            parts = image_of(*args)(q, k)
            places.add(tuple(part.start for part in parts or () if part.start is not None))
            return parts

        return image

    monkeypatch.setattr(second_context, "_image_of", noted)
    call = family.kwargs(pipe) | family.guided(pipe)
    call |= {"negative_prompt_attention_mask": torch.tensor([[1, 1, 0, 0, 0]])}
    with steer(pipe, "NAG(4)"):
        pipe(**call)
    assert places - {()} == {(5, 2)}


@pytest.mark.parametrize("guidance", ["PAG(1)", "PAG(1, on='null')", "SAG(1)"])
@pytest.mark.parametrize("count", [3, 5])
def test_masked_prompts_of_two_lengths_are_not_one_batch(guidance: str, count: int) -> None:
    """The image follows the tokens that a mask leaves: in one batch it would have two places."""
    family, masks = named("Lumina2"), {3: [1, 1, 1, 0, 0], 5: [1, 1, 1, 1, 1]}
    pipe = family.build()

    def run(rows: int | None) -> Tensor:
        call = family.kwargs(pipe) | family.guided(pipe)
        call |= {"prompt_attention_mask": torch.tensor([masks[count]])}
        call |= {"negative_prompt_attention_mask": torch.tensor([masks[8 - count]])}
        with steer(pipe, f"CFG(2) + {guidance}", max_rows=rows):
            return first(pipe(**call | {"num_inference_steps": 3, "sigmas": None}))

    assert close(run(None), run(1))


@pytest.mark.parametrize("name", ["QwenImage", "Flux2Klein-edit"])
def test_a_null_prompt_of_another_length(name: str) -> None:
    """With the null prompt for the prompt, PAG moves the same tokens of the image."""
    family = named(name)
    pipe = family.build()
    call = family.kwargs(pipe) | family.guided(pipe)
    lengths = {call[n].shape[1] for n in ("prompt_embeds", "negative_prompt_embeds")}
    assert len(lengths) == 2
    moved, plain = (sampled(family, f"CFG(0) + {g}") for g in ("PAG(2, on='null')", "CFG(1)"))
    names = [name for name in call if name.startswith("prompt_embeds")]
    swapped = call | {n: call[f"negative_{n}"] for n in names}
    swapped |= {f"negative_{n}": call[n] for n in names}
    with steer(pipe, "PAG(2)"):
        alone = first(pipe(**swapped))
    torch.testing.assert_close(moved, alone, atol=1e-4, rtol=1e-4)
    assert (moved - plain).abs().max() > 1e-3


def test_times_that_two_rules_say() -> None:
    """At t = 500 of 1000, t / n is 1 - t / n; the other steps tell which one it is."""
    family, clock = named("Lumina2"), TimeArgument()
    pipe = family.build()
    told: list[float] = []
    forward = pipe.transformer.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        told.append(float(kwargs["timestep"][0]))
        return forward(*args, **kwargs)

    pipe.transformer.forward = noted
    with steer(pipe, "AutoNoise(2, noise=0.1)"):
        pipe(**family.kwargs(pipe) | {"num_inference_steps": 4, "sigmas": None})
    others = [time for time in told if all(abs(time - t) > 1e-3 for t in (0, 0.25, 0.5, 0.75))]
    assert len(others) == 3 and all(
        min(abs(o - t) for t in (0.25, 0.5, 0.75)) < 0.05 for o in others
    )
    assert sum(other < 0.5 for other in others[1:2]) == 1
    with pytest.raises(InputError, match="it is not certain how"):
        clock.told({"timestep": torch.tensor([0.5])}, 520.0, 500.0, 1000.0)


def test_two_sizes_with_equally_many_tokens() -> None:
    family = named("QwenImage")
    pipe = family.build()

    def run(height: int, width: int) -> Tensor:
        call = family.kwargs(pipe) | {"height": height, "width": width}
        return first(pipe(**call))

    with steer(pipe, "SEG(3, sigma=1.0)"):
        fresh = run(128, 64)
    with steer(pipe, "SEG(3, sigma=1.0)"):
        run(64, 128)
        assert torch.equal(run(128, 64), fresh)


@pytest.mark.parametrize(
    ("name", "guidance", "changes", "says"),
    [
        ("QwenImage21", "PAG(2)", {"max_rows": 1}, "samples 2 at once, more than max_rows=1, and"),
        ("CogVideoX", "SAG(1, on='cond')", {"num_frames": 13}, "of 4 channels, whose frames SAG"),
    ],
)
def test_samples_that_cannot_be_divided_or_told(
    name: str, guidance: str, changes: dict[str, int], says: str
) -> None:
    pipe = named(name).build()
    call = named(name).kwargs(pipe) | named(name).guided(pipe) | changes
    call |= {n: torch.cat([v, v]) for n, v in call.items() if isinstance(v, Tensor)}
    rows = call.pop("max_rows", None)
    with steer(pipe, guidance, max_rows=rows), pytest.raises(InputError, match=says):
        pipe(**call)


def test_networks_that_keep_keys_and_values() -> None:
    family = named("QwenImage21")
    with pytest.raises(InputError, match="keeps a cache"):
        sampled(family, "Auto(3)", weaker=True)
    pipe = family.build()
    call = family.kwargs(pipe) | family.guided(pipe)
    with steer(pipe, "CFG(4).over(1, 4)"):
        one = first(pipe(**call))
        assert close(first(pipe(**family.kwargs(pipe) | family.guided(pipe))), one)
    with pytest.raises(InputError, match="keeps a cache"):
        sampled(family, "SLG(2)")
    assert sampled(family, "SLG(2)", use_kv_cache=False).isfinite().all()


@pytest.mark.parametrize(
    "guidance", ["PAG(2)", "CFG(4) + PAG(2, on='null')", "SEG(2, sigma=1.0)", "SAG(1, on='cond')"]
)
def test_attention_beside_keys_and_values_that_are_kept(guidance: str) -> None:
    """Text sees no image, so that what is kept is the same under an edit of the image."""
    kept, anew = (sampled(named("QwenImage21"), guidance, use_kv_cache=c) for c in (True, False))
    torch.testing.assert_close(kept, anew, atol=1e-4, rtol=1e-4)
    assert not close(kept, sampled(named("QwenImage21"), "CFG(1)"))


@pytest.mark.parametrize("guidance", ["PAG(2)", "SEG(2, sigma=1.0)", "SAG(1, on='cond')"])
def test_samples_that_attend_one_after_another(guidance: str) -> None:
    """Prompts of two lengths in one batch are guided as each alone, beside their null prompts."""
    family = named("Mochi")
    pipe = family.build()
    call = family.kwargs(pipe) | family.guided(pipe)
    latents = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)

    def run(rows: slice) -> Tensor:
        given = {
            n: v.repeat(2, *[1] * (v.ndim - 1))[rows] for n, v in call.items() if "prompt" in n
        }
        given |= {"prompt_attention_mask": mask[rows], "latents": latents[rows]}
        with steer(pipe, guidance):
            return first(pipe(**call | given))

    both, plain = run(slice(0, 2)), sampled(family, "CFG(1)")
    for row in range(2):
        torch.testing.assert_close(both[row], run(slice(row, row + 1))[0], atol=1e-4, rtol=1e-4)
    assert not close(both[:1], plain)


@pytest.mark.parametrize("name", ["Kandinsky5T2V", "Wan", "ZImage", "StableDiffusion"])
def test_guidance_of_the_pipeline_that_ends_early(name: str) -> None:
    """The null prompt is evaluated at each step, also where latents are changed in their place."""
    family, steps = named(name), dict[str, Any](num_inference_steps=3)

    def end(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0
        return {n: v.chunk(2)[-1] for n, v in given.items() if step == 0 and n == "prompt_embeds"}

    if name == "StableDiffusion":
        steps |= {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    ended = sampled(family, "CFG(4)", callback_on_step_end=end, **steps)
    assert close(ended, sampled(family, "CFG(4)", **steps))


def test_guides_and_caches_that_do_not_fit() -> None:
    family, other = named("Sana"), named("CogView4").build().transformer
    with pytest.raises(InputError, match="a guide of CogView4Transformer2DModel"):
        steer(family.build(), "Auto(2)", guide=other)
    wan = named("Wan")
    pipe = wan.build()
    config = diffusers.FirstBlockCacheConfig(threshold=0.1)
    for put_in in (pipe.transformer.enable_cache, partial(apply_cache, pipe.transformer)):
        put_in(config)
        with steer(pipe, "CFG(2)"), pytest.raises(InputError, match=r"disable_cache\(\)"):
            pipe(**wan.kwargs(pipe) | wan.guided(pipe))
        pipe.transformer.disable_cache()

"""Flux steered: packed tokens, text first, and prompts that come in calls apart."""

import pytest
import tiny
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from diffsteer import CFG, PAG, SAG, SEG, Auto, AutoNoise
from diffsteer.guidance.attention_edits import received
from diffsteer.hf import guided_output
from diffsteer.hf.families import packed, unpacked
from diffsteer.steering import steer

PROMPTS = ["a cat", "a red dog"]
DOUBLE, SINGLE = "transformer_blocks.1", "single_transformer_blocks.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("flux")


@pytest.fixture
def flux(folder):
    return lambda *args, **kwargs: tiny.flux(folder, *args, **kwargs)


def sampled(pipe, prompt=PROMPTS, **more):
    more = {"height": 16, "width": 16, "max_sequence_length": 8, "num_inference_steps": 3} | more
    generator = torch.Generator().manual_seed(0)
    return pipe(
        prompt, generator=generator, guidance_scale=3.5, output_type="latent", **more
    ).images


def counted(network):
    sizes = []
    network.x_embedder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("kind", ["FluxPipeline", "FluxImg2ImgPipeline"])
def test_cfg_is_the_pipelines_own_true_cfg(flux, kind: str, distilled: bool) -> None:
    """With a negative prompt and without, and in one pass where the pipeline takes two."""
    pipe = flux(kind, distilled)
    more = {"image": torch.rand(2, 3, 16, 16), "strength": 0.6} if "Img2Img" in kind else {}
    negative = {"negative_prompt": ["blue", ""], "true_cfg_scale": 4.0}
    want = sampled(pipe, **negative, **more)
    empty = sampled(pipe, **(negative | {"negative_prompt": ["", ""]}), **more)
    sizes = counted(pipe.transformer)
    with steer(pipe, CFG(4)):
        got = sampled(pipe, **(negative | {"true_cfg_scale": 1.5}), **more)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(sampled(pipe, **more), empty, atol=1e-4, rtol=1e-5)
    assert set(sizes) == {4} and len(sizes) == (2 * 3 if not more else 2 * 2)
    assert (want - empty).abs().max() > 1e-2


def test_the_null_prompt_is_encoded_once_a_call(flux) -> None:
    pipe = flux()
    calls = []
    pipe.text_encoder_2.register_forward_pre_hook(lambda *_: calls.append(1))
    with steer(pipe, CFG(4), null="a blue dog"):
        got = sampled(pipe)
        sampled(pipe, PROMPTS[:1])
    assert len(calls) == 6  # the prompt, and both once more
    negative = {"negative_prompt": ["a blue dog"] * 2, "true_cfg_scale": 4.0}
    torch.testing.assert_close(got, sampled(pipe, **negative), atol=1e-4, rtol=1e-5)
    calls.clear()
    with steer(pipe, PAG(4, layer=DOUBLE)):
        sampled(pipe)
    assert len(calls) == 1  # who does not ask for it does not pay for it


class Perturbed(FluxAttnProcessor):
    """Attention of the image to itself alone taken away, without our taps."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        masked = torch.nn.functional.scaled_dot_product_attention

        def act(query, key, value, **more):
            n = query.shape[2]
            mask = torch.ones(n, n, dtype=torch.bool)
            mask[-16:, -16:] = torch.eye(16, dtype=torch.bool)
            return masked(query, key, value, **(more | {"attn_mask": mask}))

        torch.nn.functional.scaled_dot_product_attention = act
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        finally:
            torch.nn.functional.scaled_dot_product_attention = masked


def call(network, x, t=0.6):
    gen = torch.Generator().manual_seed(3)
    text, pooled = torch.randn(2, 8, 32, generator=gen), torch.randn(2, 32, generator=gen)
    places = torch.stack(torch.meshgrid(*map(torch.arange, (1, 4, 4)), indexing="ij"), dim=-1)
    with torch.no_grad():
        return network(
            x,
            text,
            pooled,
            torch.full((2,), t),
            places.reshape(16, 3).float(),
            torch.zeros(8, 3),
            torch.full((2,), 3.5),
        ).sample


X = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("layer", [DOUBLE, SINGLE])
def test_pag_perturbs_the_image_tokens_alone(flux, layer: str) -> None:
    pipe = flux()
    plain = call(pipe.transformer, X)
    block = pipe.transformer.get_submodule(layer).attn
    before, block.processor = block.processor, Perturbed()
    worse = call(pipe.transformer, X)
    block.processor = before
    with steer(pipe, PAG(3, layer=layer)):
        got = call(pipe.transformer, X)
    assert (plain - worse).abs().max() > 1e-3
    torch.testing.assert_close(got, plain + 3 * (plain - worse), atol=1e-4, rtol=1e-4)


def test_sag_looks_at_the_image_tokens(flux, monkeypatch) -> None:
    """The map is that of the layer's own queries and keys of the image."""
    pipe, maps = flux(), []
    monkeypatch.setattr(
        "diffsteer.guidance.attention_taps.received",
        lambda q, k: maps.append((q, k)) or received(q, k),
    )
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention
    block = pipe.transformer.get_submodule(SINGLE).attn

    class Watch(FluxAttnProcessor):
        def __call__(self, *args, **kwargs):
            monkeypatch.setattr(
                torch.nn.functional,
                "scaled_dot_product_attention",
                lambda *a, **k: seen.append(k) or attend(*a, **k),
            )
            out = super().__call__(*args, **kwargs)
            monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
            return out

    before, block.processor = block.processor, Watch()
    call(pipe.transformer, X)
    block.processor = before
    with steer(pipe, SAG(0.5, layer=SINGLE, on="cond")):
        call(pipe.transformer, X)
    assert maps[0][0].shape[2] == 16
    torch.testing.assert_close(maps[0], (seen[0]["query"][:, :, 8:], seen[0]["key"][:, :, 8:]))


def test_all_of_them_and_one_row_at_a_time(flux) -> None:
    pipe = flux()
    total = CFG(4) + PAG(3, layer=DOUBLE) + SEG(2, layer=SINGLE) + SAG(0.5, layer=SINGLE)
    total = total + AutoNoise(1.5) + Auto(1.5)
    with steer(pipe, total, guide=flux("FluxPipeline", True).transformer):
        want = sampled(pipe)
    sizes = counted(pipe.transformer)
    with steer(pipe, total, guide=flux(), max_rows=1):
        torch.testing.assert_close(sampled(pipe), want, atol=1e-4, rtol=1e-4)
    assert set(sizes) == {1} and want.isfinite().all()


def test_places_are_no_rows(flux) -> None:
    """As many samples as text tokens, and as many as image tokens: each as alone."""
    pipe = flux()
    for batch in (8, 16):
        prompts = [f"cat {i}" for i in range(batch)]
        latents = torch.randn(batch, 16, 16, generator=torch.Generator().manual_seed(1))
        with steer(pipe, CFG(4)):
            got = sampled(pipe, prompts, latents=latents)
            alone = sampled(pipe, prompts[2:4], latents=latents[2:4])
        torch.testing.assert_close(got[2:4], alone, atol=1e-4, rtol=1e-4)


def test_packing_is_the_pipelines(flux) -> None:
    image = torch.randn(2, 4, 8, 12)
    tokens = flux()._pack_latents(image, 2, 4, 8, 12)
    assert torch.equal(packed(image), tokens)
    assert torch.equal(unpacked(tokens, (4, 6)), image)


def test_fill_has_channels_that_are_not_denoised(flux) -> None:
    pipe = flux("FluxFillPipeline", extra_channels=32)
    more = {"image": torch.rand(2, 3, 16, 16), "mask_image": torch.ones(2, 1, 16, 16)}
    want = sampled(pipe, **more)
    with steer(pipe, CFG(1)):
        torch.testing.assert_close(sampled(pipe, **more), want, atol=1e-5, rtol=1e-5)
    with steer(pipe, CFG(3) + PAG(3, layer=DOUBLE)):
        assert sampled(pipe, **more).isfinite().all()


def test_restored(flux) -> None:
    pipe = flux()
    want = sampled(pipe)
    before = set(pipe.__dict__), set(pipe.transformer.__dict__)
    with pytest.raises(ValueError, match="no attention"), steer(pipe, PAG(3, layer="no")):
        sampled(pipe)
    with steer(pipe, CFG(4)):
        sampled(pipe)
    assert (set(pipe.__dict__), set(pipe.transformer.__dict__)) == before
    assert torch.equal(sampled(pipe), want)


def test_errors_before_the_first_call(flux) -> None:
    pipe = flux()
    parts = pipe.encode_prompt(PROMPTS, None, max_sequence_length=8)
    calls = counted(pipe.transformer)
    pipe.text_encoder_2 = None
    given = {"prompt_embeds": parts[0], "pooled_prompt_embeds": parts[1]}
    late = CFG(4).over(2, 3)
    with steer(pipe, late), pytest.raises(ValueError, match="no text_encoder_2 to encode it"):
        sampled(pipe, None, **given)
    with steer(pipe, CFG(4)), pytest.raises(ValueError, match="without a prompt of its pipeline"):
        call(pipe.transformer, X)
    with steer(pipe, CFG(4)), pytest.raises(ValueError, match="are not an image of 4x4"):
        call(pipe.transformer, X.repeat(1, 2, 1))
    assert calls == []
    negative = {"negative_" + name: value.roll(1, dims=0) for name, value in given.items()}
    with steer(pipe, CFG(4)):
        assert sampled(pipe, None, **given, **negative, true_cfg_scale=2.0).isfinite().all()


def test_low_precision(flux) -> None:
    """The level comes from the scheduler, not from what bf16 left of the timestep."""
    pipe = flux().to(torch.bfloat16)
    levels = []
    own = guided_output.Denoiser.predict

    def watched(self, x, level):
        levels.append(level.t.item())
        return own(self, x, level)

    guided_output.Denoiser.predict = watched
    try:
        with steer(pipe, CFG(4)):
            assert sampled(pipe).dtype == torch.bfloat16
    finally:
        guided_output.Denoiser.predict = own
    times = (pipe.scheduler.timesteps.double() / 1000).tolist()
    assert levels == pytest.approx(times, rel=1e-12)
    assert times[1] != pipe.scheduler.timesteps.bfloat16()[1].item() / 1000


def test_layers_that_are_edited_leave_their_attention_backend(flux) -> None:
    """A backend whose package is not there is not asked in a layer whose attention is edited."""
    pipe = flux()
    with steer(pipe, PAG(2, layer=SINGLE)):
        want = sampled(pipe)
    processor = pipe.transformer.get_submodule(SINGLE).attn.processor
    processor._attention_backend = "flash"
    with steer(pipe, PAG(2, layer=SINGLE)):
        torch.testing.assert_close(sampled(pipe), want, atol=0, rtol=0)
    assert processor._attention_backend == "flash"


def test_the_image_prompt_of_each_condition(flux) -> None:
    """The pipeline writes that of the null prompt into the dict that the other call was given."""
    pipe, draw = flux(), torch.Generator().manual_seed(8)
    projection = {"proj.weight": torch.randn(128, 16, generator=draw), "proj.bias": torch.ones(128)}
    projection |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    layers = {}
    for name in (f"{i}.{part}_ip" for i in range(2) for part in ("to_k", "to_v")):
        layers[f"{name}.weight"] = 0.3 * torch.randn(32, 32, generator=draw)
        layers[f"{name}.bias"] = torch.zeros(32)
    states = [{"image_proj": projection, "ip_adapter": layers}]
    pipe.transformer._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    image, other = torch.randn(1, 1, 16, generator=draw), torch.zeros(1, 1, 16)
    more = {"negative_prompt": ["dog"], "true_cfg_scale": 4.0, "ip_adapter_image_embeds": [image]}
    more["negative_ip_adapter_image_embeds"] = [other]
    want = sampled(pipe, ["a cat"], **more)
    without = sampled(pipe, ["a cat"], **more | {"ip_adapter_image_embeds": [other]})
    assert (want - without).abs().max() > 0.1
    with steer(pipe, CFG(4)):
        torch.testing.assert_close(sampled(pipe, ["a cat"], **more), want, atol=1e-4, rtol=1e-4)
        off = more | {"true_cfg_scale": 1.0}  # where the pipeline does not send the other one
        torch.testing.assert_close(sampled(pipe, ["a cat"], **off), want, atol=1e-4, rtol=1e-4)

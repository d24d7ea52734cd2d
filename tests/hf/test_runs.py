"""Steering belongs to one pipeline and its network; what would lose it in silence is refused."""

import copy
import pickle
import threading

import accelerate
import diffusers
import pytest
import tiny
import torch
from accelerate.hooks import remove_hook_from_module

from diffsteer import CFG, PAG, Auto
from diffsteer.refine.hook import started_from
from diffsteer.steering import steer

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipe")


@pytest.fixture
def sd(folder):
    def made(kind="epsilon"):
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type=kind)
        return tiny.stable_diffusion(scheduler, folder)

    return made


def sampled(pipe, **more):
    more = {"latents": START, "output_type": "latent", "num_inference_steps": 3} | more
    return pipe(["a cat", "a red dog"], guidance_scale=5.0, **more).images


def offload(network):
    """Hooks of accelerate, as a pipeline takes them off and puts them on in every call."""
    remove_hook_from_module(network, recurse=True)
    accelerate.cpu_offload_with_hook(network, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("how", ["guided", "offloaded", "offloaded before", "zero SNR"])
def test_copies_are_not_steered(sd, how: str) -> None:
    """Copies and pickles hold no steering, and can be steered; the pipeline stays steered."""
    pipe = sd("v_prediction")
    own = sampled(pipe)
    settings = {"zero_snr": True} if how == "zero SNR" else {}
    if how == "offloaded before":
        offload(pipe.unet)
    with steer(pipe, CFG(3) + PAG(2) + Auto(2), guide=sd("v_prediction"), **settings):
        if how == "offloaded":
            offload(pipe.unet)
        steered = sampled(pipe)
        other, network = copy.deepcopy(pipe), copy.deepcopy(pipe.unet)
        if "offloaded" not in how:  # hooks of accelerate cannot be pickled
            assert torch.equal(pickle.loads(pickle.dumps(pipe.unet))(START, 9, EMBEDS)[0], plain())
        assert torch.equal(sampled(other), own)
        assert torch.equal(network(START, 9, EMBEDS)[0], plain())
        assert torch.equal(sampled(pipe), steered) and not torch.allclose(steered, own)
        with steer(other, CFG(5)):
            torch.testing.assert_close(sampled(other), own, atol=1e-4, rtol=1e-5)
    assert torch.equal(sampled(pipe), own)


EMBEDS = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))


def plain():
    return tiny.unet()(START, 9, EMBEDS)[0]


def test_copies_of_a_pipeline_of_separate_prompts(folder) -> None:
    """Flux, whose prompts are watched where it encodes them."""
    pipe = tiny.flux(folder)
    more = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}

    def run(made):
        return made("a cat", generator=torch.Generator().manual_seed(0), **more).images

    own = run(pipe)
    with steer(pipe, CFG(3)):
        other = copy.deepcopy(pipe)
        steered = run(pipe)
        assert torch.equal(run(other), own) and not torch.allclose(steered, own)
    assert "encode_prompt" not in vars(pipe) and torch.equal(run(pipe), own)


def test_hooks_put_on_and_taken_off_while_steered(sd) -> None:
    """Pipelines that offload their network do both in every call."""
    pipe = sd()
    own = sampled(pipe)
    for offloaded in (False, True):
        if offloaded:
            offload(pipe.unet)
        with steer(pipe, CFG(3)):
            steered = sampled(pipe)
            for _ in range(2):
                offload(pipe.unet)
                assert torch.equal(sampled(pipe), steered) and not torch.allclose(steered, own)
            with pytest.raises(ValueError, match="steered already"):
                steer(pipe, CFG(3))
        assert torch.equal(sampled(pipe), own)
        assert pipe.unet._hf_hook is not None
        with started_from(pipe, START.flip(0)):
            torch.testing.assert_close(
                sampled(pipe), sampled(sd(), latents=START.flip(0)), atol=1e-4, rtol=1e-5
            )
        remove_hook_from_module(pipe.unet, recurse=True)
        assert torch.equal(sampled(pipe), own)


def test_parts_that_are_replaced_while_steered(sd) -> None:
    for part, made, settings in (
        ("unet", lambda pipe: tiny.unet(), {}),
        ("unet", lambda pipe: torch.compile(pipe.unet, backend="eager"), {}),
        ("scheduler", lambda pipe: diffusers.DDIMScheduler(**SD), {"zero_snr": True}),
    ):
        pipe, calls = sd("v_prediction"), []
        with steer(pipe, CFG(3), **settings):
            other = made(pipe)
            pipe.unet.conv_in.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            setattr(pipe, part, other)
            with pytest.raises(ValueError, match=f"^{part} of this pipeline was replaced"):
                sampled(pipe)
        assert not calls and getattr(pipe, part) is other
        if not hasattr(other, "_orig_mod"):  # compiling takes a minute; test_steering does
            sampled(pipe)


def test_another_pipeline_with_the_same_network(sd) -> None:
    """It has a scheduler and conditions of its own."""
    pipe = sd()
    other = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    more = {"image": torch.rand(2, 3, 16, 16), "num_inference_steps": 3, "guidance_scale": 5.0}
    with steer(pipe, CFG(3)):
        with pytest.raises(ValueError, match="Img2ImgPipeline shares its network with"):
            other(["a", "b"], **more)
        with pytest.raises(ValueError, match="steered already"):
            steer(other, CFG(3))
        sampled(pipe)
        with pytest.raises(ValueError, match="shares its network with"):
            other(["a", "b"], **more)
    with steer(other, CFG(3)):
        other(["a", "b"], **more)


def test_two_threads_in_one_pipeline(sd) -> None:
    """Both are refused, whoever comes first; afterwards, and in turns, they sample."""
    pipe, errors, inside, go_on = sd(), {}, threading.Event(), threading.Event()
    with steer(pipe, CFG(3) + PAG(2)):
        want = sampled(pipe)

        def sample(name, **more):
            try:
                assert torch.equal(sampled(pipe, **more), want)
            except ValueError as error:
                errors[name] = str(error)

        def wait(*_):
            inside.set()
            go_on.wait(30)
            return {}

        first = threading.Thread(
            target=sample, args=["first"], kwargs={"callback_on_step_end": wait}
        )
        first.start()
        assert inside.wait(30)
        sample("second")
        go_on.set()
        first.join()
        assert errors.keys() == {"first", "second"} and "two threads" in errors["first"]
        errors.clear()
        for name in ("third", "fourth"):
            turn = threading.Thread(target=sample, args=[name])
            turn.start()
            turn.join()
        sample("fifth")
    assert not errors


def test_a_run_that_fails_does_not_bind_the_pipeline_to_its_thread(sd) -> None:
    pipe, errors = sd(), []
    with steer(pipe, CFG(3)):
        want = sampled(pipe)

        def fail(*_):
            raise RuntimeError("stop")

        def sample():
            try:
                sampled(pipe, callback_on_step_end=fail)
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=sample)
        thread.start()
        thread.join()
        assert len(errors) == 1 and torch.equal(sampled(pipe), want)


def test_a_network_that_no_step_follows(sd) -> None:
    """DiffEdit compares two predictions for its mask, and inverts by another scheduler."""
    base = sd()
    inverse = diffusers.DDIMInverseScheduler.from_config(base.scheduler.config)
    parts = {k: v for k, v in base.components.items() if k != "image_encoder"}
    pipe = diffusers.StableDiffusionDiffEditPipeline(
        **parts, inverse_scheduler=inverse, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64)

    def mask():
        generator = torch.Generator().manual_seed(0)
        texts = {"source_prompt": "a cat", "target_prompt": "a red dog"}
        return pipe.generate_mask(image, **texts, num_inference_steps=4, generator=generator)

    own = mask()
    with steer(pipe, CFG(3)):
        assert pipe.progress_bar(total=3).total == 3  # of pipelines that move it themselves
        with pytest.raises(ValueError, match="outside of its own call"):
            mask()
        with pytest.raises(ValueError, match="more than 2 times a step"):
            pipe.invert("a cat", image=image, num_inference_steps=4)
    assert (mask() == own).all()

"""Every pipeline under guidances whose result is known from the pipeline itself.

`python -m pytest -m slow tests/hf/test_sweep.py` runs the whole; a sample of it runs always. In
float64, step by step: a result is the pipeline's own, or refused before the network is evaluated.
"""

import pytest
import torch
import zoo

from diffsteer.core.errors import InputError
from diffsteer.hf.network import network_of
from diffsteer.steering import steer

OWN = ["CFG(4)", "CFG(4) + PAG(0) + SEG(0)", "CFG(4).over(0, 99)", "CFG(4).rescaled(0)"]
"""Guidances that do what the pipeline's own at scale 4 does."""
OFF = ["CFG(1)", "PAG(0)", "AutoNoise(1)", 'SAG(0, on="cond")']
"""Guidances that leave the prediction of the prompt."""
ALIKE = ["PAG(2)", "SEG(2, sigma=1.0)", 'SAG(0.5, on="cond")', "AutoNoise(2, noise=0.2)"]
"""Guidances of the prompt's prediction alone: the same, whether the pipeline sends null or not."""
OPTIONS = {"two samples": (2, None), "one sample": (1, None), "one row at a time": (2, 1)}
LAYER = {"DiT": "transformer_blocks.1", "PixArt": "transformer_blocks.1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def pipelines(folder):
    made = {}

    def make(name):
        if name not in made:
            pipe = zoo.CASES[name][0](folder / str(len(made)))
            pipe.set_progress_bar_config(disable=True)
            made[name] = pipe.to(torch.float64), {}
        return made[name]

    return make


def text_for(name, guidance):
    layers = [layer for part, layer in LAYER.items() if part in name]
    if "Flux" in name or "Diffusion3" in name:
        layers = ["transformer_blocks.1"]
    for term in ("PAG(2", "SEG(2", "SAG(0.5"):
        if layers:
            guidance = guidance.replace(term, f'{term}, layer="{layers[0]}"')
    return guidance


def evaluations(network):
    """Evaluations of a network, noted by its first layer."""
    names = ("conv_in", "pos_embed", "x_embedder")
    first = next(getattr(network, name) for name in names if hasattr(network, name))
    seen = []
    handle = first.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen, handle


def outcome(pipelines, name, guidance, n, max_rows, scale=2.5):
    """Samples of a steered call after each step, or the error that refused it."""
    pipe, _ = pipelines(name)
    seen, handle = evaluations(network_of(pipe))
    try:
        with steer(pipe, text_for(name, guidance), max_rows=max_rows):
            return zoo.steps_of(pipe, zoo.CASES[name][1](scale, n))
    except InputError as error:
        assert not seen, f"refused after an evaluation: {error}"
        return str(error)
    finally:
        handle.remove()


def own(pipelines, name, scale, n):
    pipe, known = pipelines(name)
    if (scale, n) not in known:
        known[scale, n] = zoo.steps_of(pipe, zoo.CASES[name][1](scale, n))
    return known[scale, n]


def check(pipelines, name, guidance, option):
    """Compare one triple; returns why it was refused, or None."""
    n, max_rows = OPTIONS[option]
    got = outcome(pipelines, name, guidance, n, max_rows)
    if isinstance(got, str):
        return got
    if guidance in ALIKE:
        want = outcome(pipelines, name, guidance, n, max_rows, scale=1.0)
    else:
        want = own(pipelines, name, 4.0 if guidance in OWN else 1.0, n)
    assert not isinstance(want, str), want
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        half = slice(len(b)) if len(a) >= len(b) else slice(None)
        torch.testing.assert_close(a[half], b[: len(a)], atol=1e-6, rtol=1e-6)
    return None


def guidances(name):
    """Guidances of the sweep whose result for a pipeline is known."""
    return [*([] if name in WITHOUT_CFG else OWN), *OFF, *ALIKE]


WITHOUT_CFG = ("FluxFillPipeline", "FluxControlPipeline")
"""Pipelines without guidance of their own whose null prompt is known: CFG has no comparison."""
REFUSED = {
    "StableDiffusionLatentUpscalePipeline": "does not give its scheduler what its network answers",
    "StableDiffusionInstructPix2PixPipeline": "rows that are not the same samples",
    "StableDiffusionXLInstructPix2PixPipeline": "rows that are not the same samples",
    "StableDiffusionPAGPipeline": "rows that are not the same samples",
    "StableDiffusionSAGPipeline": "looks at attention of the rows",
}
"""Pipelines that no guidance can steer, and why."""
UNCONDITIONAL = ("Marigold", "DDIM", "DDPM", "LDMSuper")
"""Pipelines without a null prompt."""
NO_ATTENTION = ("Kandinsky", "IF")
"""Pipelines whose networks have no attention of the image to itself alone."""
SAMPLE = [
    ("1 IP-Adapter with masks", "PAG(2)", "one sample"),
    ("2 IP-Adapters with masks", "PAG(2)", "one sample"),
    ("3 IP-Adapters with masks", "CFG(4)", "one row at a time"),
    ("KandinskyV22InpaintPipeline", "CFG(4)", "two samples"),
    ("IFSuperResolutionPipeline", "CFG(4).over(0, 99)", "two samples"),
    ("StableDiffusionUpscalePipeline", "CFG(4) + PAG(0) + SEG(0)", "two samples"),
    ("StableDiffusion3InpaintPipeline of 33 channels", "CFG(4)", "one sample"),
    ("StableDiffusionPanoramaPipeline", "CFG(4)", "two samples"),
    ("StableDiffusionPanoramaPipeline", "PAG(2)", "two samples"),
    ("StableDiffusionGLIGENPipeline", "PAG(2)", "one sample"),
    ("StableDiffusionLatentUpscalePipeline", "PAG(0)", "two samples"),
    ("StableDiffusionSAGPipeline", "CFG(4)", "one sample"),
    ("MarigoldDepthPipeline", "AutoNoise(1)", "two samples"),
    ("FluxFillPipeline", "PAG(0)", "two samples"),
    ("DiTPipeline", "CFG(4)", "one sample"),
]


def refusal(name, guidance):
    """Part of the error that a triple has to be refused with; empty where it is not refused."""
    if name in REFUSED:
        return REFUSED[name]
    if guidance in OWN and name.startswith(UNCONDITIONAL):
        marigold = name.startswith("Marigold")  # by a UNet that others guide by a prompt
        return "neither sends nor encodes" if marigold else "asks for the condition 'null'"
    if name.startswith(NO_ATTENTION) and guidance.startswith(("PAG(2", "SEG(2", "SAG(0.5")):
        return "no attention layer"
    return ""


@pytest.mark.parametrize(("name", "guidance", "option"), SAMPLE)
def test_a_sample_of_the_sweep(pipelines, name, guidance, option) -> None:
    expected, got = refusal(name, guidance), check(pipelines, name, guidance, option)
    assert bool(expected) == bool(got) and expected in (got or "")


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", zoo.CASES)
def test_the_whole_sweep(pipelines, name, option) -> None:
    for guidance in guidances(name):
        expected, got = refusal(name, guidance), check(pipelines, name, guidance, option)
        assert bool(expected) == bool(got) and expected in (got or ""), guidance

"""The small network that changes low frequencies: its band, its start, its files, its refusals."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from torch import Tensor

from diffsteer.refine.hook import refine
from diffsteer.refine.low_frequency import LowFrequencyNetwork, low_pass
from diffsteer.refine.refiner import NoiseRefiner
from diffsteer.steering import steer

START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", "a red dog"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> Any:
    return tiny.stable_diffusion(diffusers.DDIMScheduler(), tmp_path_factory.mktemp("pipe"))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(network: Any) -> Any:
    """Give a network weights that change something, always the same."""
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(0.2 * drawn(*p.shape, seed=i))
    return network


def cosines(x: Tensor) -> Tensor:
    """Cosine transform of rows, DCT-II but for its scale: the FFT of each row and its mirror."""
    n = x.shape[-1]
    turn = torch.exp(-0.5j * torch.pi / n * torch.arange(n).double())
    return (torch.fft.fft(torch.cat([x, x.flip(-1)], -1))[..., :n] * turn).real


def refiner_of(pipe: Any) -> NoiseRefiner:
    made = NoiseRefiner(pipe, rank=8, head="low_frequency")
    moved(made.part)
    return made


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (7, 9), (1, 3)])
def test_the_change_is_zero_at_first_and_in_the_band_alone(size: tuple[int, int]) -> None:
    """By cosine transforms from FFTs; what is above the band of the noise changes nothing."""
    network = LowFrequencyNetwork(4, 6, 8).double()
    x, cond = drawn(2, 4, *size), {"encoder_hidden_states": drawn(2, 5, 6, seed=1)}
    assert torch.equal(network(x, cond), torch.zeros_like(x))
    with torch.no_grad():
        change = moved(network)(x, cond)
    h, w = (-(-n // 4) for n in size)
    band = cosines(cosines(change).mT).mT
    assert band[..., :h, :w].abs().min() > 1e-6
    band[..., :h, :w] = 0
    assert band.abs().max() < 1e-12
    down, right = map(low_pass, size)
    above = drawn(*x.shape, seed=2)
    above = above - down.mT @ (down @ above @ right.mT) @ right
    with torch.no_grad():
        torch.testing.assert_close(network(x + above, cond), change, atol=1e-12, rtol=0)
        assert (network(2 * x, cond) - change).abs().max() > 1e-3


@pytest.mark.parametrize("n", [1, 5, 8, 64])
def test_low_pass_noise_stays_unit_noise_and_constants_stay_constant(n: int) -> None:
    matrix = low_pass(n)
    k = -(-n // 4)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(k).double(), atol=1e-12, rtol=0)
    ones = torch.ones(n).double()
    torch.testing.assert_close(matrix @ ones, torch.full((k,), (n / k) ** 0.5).double())


def test_the_prompt_counts_and_padding_of_it_does_not() -> None:
    network = moved(LowFrequencyNetwork(4, 6, 8).double())
    x, text = drawn(1, 4, 8, 8), drawn(1, 5, 6, seed=1)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        short = network(x, {"encoder_hidden_states": text[:, :3]})
        padded = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
        torch.testing.assert_close(network(x, padded), short, atol=1e-12, rtol=0)
        whole = network(x, {"encoder_hidden_states": text})
    assert (whole - short).abs().max() > 1e-4


def test_in_a_pipeline_it_costs_no_evaluation_of_the_network(pipe: Any) -> None:
    def sampled(**more: Any) -> Tensor:
        call = {"latents": START, "num_inference_steps": 2, "output_type": "latent"} | more
        return pipe(PROMPTS, guidance_scale=1.0, **call).images

    want, rows = sampled(), []
    made = NoiseRefiner(pipe, rank=8, head="low_frequency")
    handle = pipe.unet.conv_in.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    with steer(pipe, refiner=made):
        assert torch.equal(sampled(), want)
    assert rows == [2, 2]
    moved(made.part)
    start = refine(pipe, START, PROMPTS, made)
    alone = torch.cat([refine(pipe, START[i : i + 1], PROMPTS[i : i + 1], made) for i in (0, 1)])
    torch.testing.assert_close(start, alone, atol=1e-5, rtol=1e-5)  # kernels differ by batch
    rows.clear()
    with steer(pipe, refiner=made, strength=0.5):
        got = sampled()
    handle.remove()
    assert rows == [2, 2]
    want = sampled(latents=START + 0.5 * (start - START))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    made.remove()


def test_load_gives_back_what_was_saved_and_checks_what_it_is_for(
    pipe: Any, tmp_path: Path
) -> None:
    made = refiner_of(pipe)
    want = refine(pipe, START, PROMPTS, made)
    made.save(tmp_path, {"steps": 10})
    made.remove()
    with steer(pipe, "CFG(2)", refiner=tmp_path):  # loads without a call of the pipeline
        pass
    loaded = NoiseRefiner.load(tmp_path, pipe)
    own = made.parameters
    assert all(torch.equal(p, own[n]) for n, p in loaded.parameters.items())
    got = refine(pipe, START, PROMPTS, loaded)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)  # kernels differ by alignment
    assert not any(p.requires_grad for p in loaded.parameters.values())
    about = tmp_path / "refiner.json"
    table = json.loads(about.read_text())
    assert table["head"] == "low_frequency" and table["rank"] == table["alpha"] == 8
    v = pipe.scheduler
    pipe.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="prediction type"):
        NoiseRefiner.load(tmp_path, pipe)
    pipe.scheduler = v
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 0.01
    with pytest.raises(ValueError, match="other weights"):
        NoiseRefiner.load(tmp_path, pipe)
    NoiseRefiner.load(tmp_path, pipe, any_model=True)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] -= 0.01
    about.write_text(json.dumps(table | {"rank": 12}))
    with pytest.raises(ValueError, match="not what was written"):
        NoiseRefiner.load(tmp_path, pipe, any_model=True)


def test_what_it_cannot_do_is_refused_before_work_begins(pipe: Any, tmp_path: Path) -> None:
    for rank, alpha in ((6, 0), (0, 0), (8, 4)):
        with pytest.raises(ValueError, match=f"rank={rank}, alpha=.* multiple of 4"):
            NoiseRefiner(pipe, rank, "low_frequency", alpha)
    with pytest.raises(ValueError, match="takes no prompt"):
        NoiseRefiner(tiny.dit(diffusers.DDIMScheduler()), 8, "low_frequency")
    with pytest.raises(ValueError, match=r"noise \(B, C, H, W\) .* take another head"):
        NoiseRefiner(tiny.flux(tmp_path), 8, "low_frequency")

"""Guidance rescale: algorithm 2, and its centred form."""

import math

import pytest
import torch

from diffsteer import DDIM, X0, Discrete, V, Velocity, grid
from diffsteer.core.oracle import Gaussian
from diffsteer.guidance import rescale, rescale_centred

BOTH = pytest.mark.parametrize("act", [rescale, rescale_centred])


def pair(shape=(3, 4, 8, 8), dtype=torch.float32):
    gen = torch.Generator().manual_seed(0)
    cond = torch.randn(shape, generator=gen, dtype=torch.float64) + 0.7
    return (4 * cond + torch.randn(shape, generator=gen, dtype=torch.float64)).to(dtype), cond.to(
        dtype
    )


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 4, 3, 8, 8), (2, 16)])
def test_algorithm_2(phi: float, shape) -> None:
    """Lin et al. 2023 in their own order of operations; 5-D videos alike."""
    guided, cond = pair(shape)
    dims = list(range(1, len(shape)))
    std_pos, std_cfg = cond.std(dims, keepdim=True), guided.std(dims, keepdim=True)
    want = phi * (guided * (std_pos / std_cfg)) + (1 - phi) * guided
    torch.testing.assert_close(rescale(guided, cond, phi), want, atol=1e-5, rtol=1e-5)


def test_centred_keeps_the_mean_and_takes_the_spread() -> None:
    guided, cond = pair()
    got = rescale_centred(guided, cond, 1.0)
    torch.testing.assert_close(got.mean((1, 2, 3)), guided.mean((1, 2, 3)))
    torch.testing.assert_close(got.std((1, 2, 3)), cond.std((1, 2, 3)))


@BOTH
def test_each_sample_by_itself(act) -> None:
    guided, cond = pair()
    alone = torch.cat([act(g[None], c[None]) for g, c in zip(guided, cond, strict=True)])
    torch.testing.assert_close(act(guided, cond), alone)


@BOTH
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_half_precision(act, dtype, rel: float) -> None:
    """Computed in float32: what is lost is the rounding of input and output, two units each."""
    guided, cond = pair(dtype=dtype)
    got = act(guided, cond)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), act(guided.float(), cond.float()), rtol=rel, atol=rel)


@BOTH
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 1), (1, 3, 100, 100), (1, 4, 128, 128)])
def test_flat_samples_stay(act, shape) -> None:
    """A converged solid colour has no spread but the rounding of its mean (0.9, 100^2)."""
    flat, cond = torch.full(shape, 0.9), torch.full(shape, 0.3)
    torch.testing.assert_close(act(flat, cond, 1.0), flat, atol=1e-6, rtol=0)
    torch.testing.assert_close(act(flat, torch.randn(shape), 1.0), flat, atol=1e-6, rtol=0)
    noisy = torch.randn(shape)
    assert act(noisy, flat).isfinite().all()


@BOTH
def test_a_last_bit_is_no_spread(act) -> None:
    """Values one unit in the last place apart are as flat as equal ones."""
    flat = torch.full((1, 4, 64, 64), 0.9)
    flat[..., ::2] = torch.nextafter(flat, torch.tensor(1.0))[..., ::2]
    torch.testing.assert_close(act(flat, torch.randn_like(flat), 1.0), flat, atol=1e-6, rtol=0)


@BOTH
def test_bad_input(act) -> None:
    guided, cond = pair()
    for phi in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="no share of rescaling"):
            act(guided, cond, phi)
    with pytest.raises(ValueError, match="one shape"):
        act(guided, cond[:1])
    with pytest.raises(ValueError, match=r"shape \(8,\) has no samples"):
        act(torch.ones(8), torch.ones(8))


@pytest.mark.parametrize("kind", [V(), X0(), Velocity()], ids=repr)
def test_only_the_centred_form_keeps_brightness(kind) -> None:
    """Sample a bright, nearly flat prompt at CFG 7.5 from zero SNR, 50 steps.

    The mean of a Gaussian oracle depends on the mean of x alone, so the centred form cannot move
    it; the paper's form does, by 0.05 and more at phi = 0.7.
    """
    cond, null = Gaussian(0.9, 0.05), Gaussian(0.0, 0.5)
    levels = grid(Discrete.scaled_linear().zero_snr(), 50)
    gen = torch.Generator().manual_seed(0)
    start = torch.randn(8, 4, 16, 16, generator=gen, dtype=torch.float64)

    def brightness(act, phi: float) -> torch.Tensor:
        def denoise(x, level):
            pos = cond(x, level)
            guided = kind.output_for_x0(x, pos + 6.5 * (pos - null(x, level)), level)
            return kind.x0(x, act(guided, kind.output_for_x0(x, pos, level), phi), level)

        *_, x = DDIM()(start, levels, denoise)
        return x.mean((1, 2, 3))

    plain = brightness(rescale, 0.0)
    torch.testing.assert_close(brightness(rescale_centred, 0.7), plain, atol=1e-9, rtol=0)
    assert (brightness(rescale, 0.7) - plain).abs().min() > 0.05

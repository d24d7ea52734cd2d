"""Schedulers with continuous timesteps, against what they make of samples and outputs."""

import importlib
import sys
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.schedule import Flow
from diffsteer.hf.timesteps import level_at, timestep_schedule

F64 = torch.float64


def made(monkeypatch: pytest.MonkeyPatch, name: str, **settings: Any) -> Any:
    """A scheduler of diffusers, of which one needs torchsde for its noise alone."""
    if not name.startswith("Cosine"):
        return getattr(diffusers, name)(**settings)
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = "diffusers.schedulers.scheduling_cosine_dpmsolver_multistep"
    return getattr(importlib.import_module(module), name)(**settings)


def pair(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, out = torch.randn(2, 2, 4, 3, dtype=F64, generator=generator)
    return x, out


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EDMEulerScheduler", {"sigma_data": 0.5}),
        ("EDMDPMSolverMultistepScheduler", {"sigma_data": 1.0, "sigma_max": 50.0}),
        ("CosineDPMSolverMultistepScheduler", {}),
    ],
)
def test_edm(
    name: str, settings: dict[str, Any], prediction_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's input is c_in x; what is predicted is data / sigma_data."""
    scheduler = made(monkeypatch, name, prediction_type=prediction_type, **settings)
    scheduler.set_timesteps(5)
    schedule, prediction = timestep_schedule(scheduler)
    x, out = pair(0)
    for time, sigma in zip(scheduler.timesteps.double(), scheduler.sigmas.double(), strict=False):
        level = level_at(schedule, time)
        s = scheduler.config.sigma_data
        torch.testing.assert_close(level.ratio, sigma / s, atol=0, rtol=1e-4)
        torch.testing.assert_close(schedule.time(level.ratio), time, atol=1e-9, rtol=1e-9)
        exact = (level.ratio * s).to(F64)
        denoised = scheduler.precondition_outputs(x, out, exact)
        x0 = prediction.x0(scheduler.precondition_inputs(x, exact), out, level)
        torch.testing.assert_close(x0 * s, denoised, atol=1e-9, rtol=1e-9)
    assert schedule.at(schedule.last).ratio * s >= level.ratio


def test_continuous_v_prediction() -> None:
    """Stable Video Diffusion."""
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(4)
    schedule, prediction = timestep_schedule(scheduler)
    x, out = pair(1)
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, time)
        step = scheduler.step(out, time, x)
        level = level_at(schedule, time.double())
        x0 = prediction.x0(scaled, out, level)
        torch.testing.assert_close(x0, step.pred_original_sample, atol=1e-4, rtol=1e-4)


def test_wuerstchen() -> None:
    scheduler = diffusers.DDPMWuerstchenScheduler()
    scheduler.set_timesteps(10)
    schedule, _ = timestep_schedule(scheduler)
    for time in scheduler.timesteps:
        bar = scheduler._alpha_cumprod(time, "cpu").double()
        level = level_at(schedule, time.double())
        torch.testing.assert_close((level.alpha**2)[None], bar, atol=1e-6, rtol=1e-4)
        assert (level.alpha**2 + level.sigma**2 - 1).abs() < 1e-14
        if schedule.first <= time <= schedule.last:
            back = schedule.time(level.ratio)
            torch.testing.assert_close(back, time.double(), atol=1e-12, rtol=0)
    with pytest.raises(InputError, match="scaler=2"):
        timestep_schedule(diffusers.DDPMWuerstchenScheduler(scaler=2.0))


def test_flow_maps_have_the_levels_of_flows() -> None:
    schedule, _ = timestep_schedule(diffusers.FlowMapEulerDiscreteScheduler())
    assert schedule == Flow()


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made(monkeypatch, "CosineDPMSolverMultistepScheduler", sigma_data=0.5)
    with pytest.raises(InputError, match="sigma_data=0.5"):
        timestep_schedule(scheduler)

"""Networks of transformers, measured in their pipelines: perfect ones, and of random weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES
from families.parts import TinyFamily
from tiny import flux, saved_dit

from diffsteer.core.errors import InputError
from diffsteer.core.oracle import Bright
from diffsteer.core.prediction import X0, Eps, Prediction, V, Velocity
from diffsteer.doctor.by_pipeline import measured_by_pipeline, side_of
from diffsteer.doctor.diagnosis import diagnose
from diffsteer.doctor.measure import measured
from diffsteer.hf.hooks import replaced
from diffsteer.hf.network import bind_arguments, network_of, sample_argument
from diffsteer.hf.probed_calls import Form, tensor_of
from diffsteer.hf.timesteps import level_at, timestep_schedule

BY_NAME = {family.name: family for family in FAMILIES}
TIMES: dict[str, Callable[[float], float]] = {
    "t": lambda told: told,
    "t / 1000": lambda told: 1000 * told,
    "1 - t / 1000": lambda told: 1000 * (1 - told),
    "t - 1": lambda told: told + 1,
}
FLOWS = (
    *("SD3Transformer2D-StableDiffusion3", "FluxTransformer2D-Flux", "SanaTransformer2D-Sana"),
    *("QwenImageTransformer2D-QwenImage", "Lumina2Transformer2D-Lumina2"),
    *("ZImageTransformer2D-ZImage", "Flux2Transformer2D-Flux2", "AuraFlowTransformer2D-AuraFlow"),
)
BETAS = ("DiTTransformer2D-DiT", "PixArtTransformer2D-PixArtAlpha", "HunyuanDiT2D-HunyuanDiT")


def perfect(family: TinyFamily, pipe: Any, kind: Prediction, zero: bool) -> Any:
    """Let the network of a pipeline answer as a perfect one of a prediction type."""
    network, schedule = network_of(pipe), timestep_schedule(pipe.scheduler)[0]
    own = network.forward
    argument, _, rule = family.time.partition(" = ")
    sign = -1 if family.output.startswith("-1") else 1

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = bind_arguments(network, args, kwargs)
        given = arguments[sample_argument(network)]
        x = torch.stack(list(given)) if isinstance(given, list) else given
        time = TIMES[rule](torch.as_tensor(arguments[argument]).double().flatten()[0])
        level = level_at(schedule.zero_snr() if zero else schedule, time)
        out = own(*args, **kwargs)
        answer = torch.zeros_like(tensor_of(out))
        wanted = sign * kind.output_for_x0(x, Bright()(x, level), level)
        answer[tuple(slice(n) for n in wanted.shape)] = wanted.to(answer)
        return Form.of(out, None).wrap(answer)  # of one output

    return replaced(network, "forward", forward)


def words(family: TinyFamily, pipe: Any) -> list[str]:
    pipe.set_progress_bar_config(disable=True)
    call = family.kwargs(pipe)
    return [c.value for c in measured_by_pipeline(pipe, measured, side_of(pipe, 32), **call).claims]


@pytest.mark.parametrize("name", FLOWS)
def test_a_perfect_flow(name: str) -> None:
    family = BY_NAME[name]
    pipe = family.build()
    assert words(family, pipe) == []  # its weights are random
    with perfect(family, pipe, Velocity(), zero=False):
        assert words(family, pipe) == ["flow_prediction"]


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize(
    ("kind", "zero", "expected"),
    [
        (Eps(), False, ["epsilon"]),
        (V(), False, ["v_prediction", "above zero"]),
        (V(), True, ["v_prediction", "zero"]),
        (X0(), False, ["sample", "above zero"]),
        (X0(), True, ["sample", "zero"]),
        (Velocity(), False, ["flow_prediction"]),
    ],
    ids=repr,
)
def test_a_perfect_network_of_betas(name: str, kind: Any, zero: bool, expected: list[str]) -> None:
    family = BY_NAME[name]
    pipe = family.build()
    with perfect(family, pipe, kind, zero):
        assert words(family, pipe) == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in FAMILIES])
def test_random_weights_say_nothing(family: TinyFamily) -> None:
    """On all families: no verdict, or one line that says why there is no measurement."""
    try:
        assert words(family, family.build()) == []
    except InputError as error:
        assert "\n" not in str(error)


def test_a_folder_of_a_transformer_against_its_config(tmp_path, monkeypatch) -> None:
    """Doctor loads the pipeline, believes its network, and names the config that lies."""
    pipe, folder = saved_dit(tmp_path)
    diagnosis = diagnose(folder, deep=True)  # random weights
    assert (diagnosis.prediction.value, diagnosis.prediction.confidence) == ("epsilon", "declared")
    assert "no-type-fits" in {finding.code for finding in diagnosis.findings}
    family = replace(BY_NAME["DiTTransformer2D-DiT"], kwargs=lambda _: {})
    with perfect(family, pipe, V(), zero=True):
        config = pipe.scheduler.config  # of levels that the measurement may not believe in
        pipe.scheduler = type(pipe.scheduler).from_config(config, rescale_betas_zero_snr=True)
        monkeypatch.setattr("diffsteer.doctor.measure.load", lambda *_: pipe)
        diagnosis = diagnose(folder, deep=True)
    assert (diagnosis.prediction.value, diagnosis.snr.value) == ("v_prediction", "zero")
    assert diagnosis.prediction.confidence == diagnosis.snr.confidence == "measured"
    assert "epsilon by config" in diagnosis.prediction.disagreement


def test_a_network_that_answers_nothing_but_0_is_not_measured() -> None:
    """As one of adaLN-Zero before it is trained."""
    family = BY_NAME["DiTTransformer2D-DiT"]
    pipe = family.build()
    torch.nn.init.zeros_(network_of(pipe).proj_out_2.weight)
    torch.nn.init.zeros_(network_of(pipe).proj_out_2.bias)
    with pytest.raises(InputError, match="ended without an answer of its network but 0"):
        words(family, pipe)


def test_a_folder_of_flux(tmp_path) -> None:
    """With text encoders, saved and loaded: certain by its architecture, random by its weights."""
    flux(tmp_path).save_pretrained(tmp_path / "flux")
    diagnosis = diagnose(tmp_path / "flux", deep=True)
    assert (diagnosis.prediction.value, diagnosis.prediction.confidence) == (
        *("flow_prediction", "certain"),
    )
    assert diagnosis.measurement is not None and diagnosis.measurement.claims == ()

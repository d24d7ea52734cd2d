"""The network itself: measured on perfect networks, and on the models that ship."""

import json
import shutil

import pytest
import torch
from doctor.made import original_name, unet
from safetensors.torch import load_file, save_file

from diffsteer.core.identify import data_level, data_slope
from diffsteer.core.oracle import Bright
from diffsteer.core.prediction import X0, Eps, V, Velocity
from diffsteer.core.schedule import Discrete, Flow
from diffsteer.doctor.brightness import expected, gain
from diffsteer.doctor.diagnosis import diagnose
from diffsteer.doctor.measure import _ask, measured
from diffsteer.doctor.verdict import PREDICTION
from diffsteer.hf.shipped import shipped

SD, LIKE = Discrete.scaled_linear(), torch.empty(8, 4, 16, 16)


def network(kind, schedule):
    """A perfect network; asked at the levels of SD, it takes its time from them."""

    def ask(x, level):
        own = schedule.at(level.t)
        return kind.output_for_x0(x, Bright()(x, own), own)

    return ask


@pytest.mark.parametrize("kind", [Eps(), V(), X0(), Velocity()], ids=repr)
def test_slope_of_the_mean(kind) -> None:
    """g / alpha of x0 is 1 within the Wiener gain g; the outputs' slopes follow from their rows."""
    level = data_level(SD)
    size = LIKE[0].numel()
    var = 0.3**2 + 0.2**2 / size
    share = level.alpha**2 * var / (level.alpha**2 * var + level.sigma**2 / size)
    a, b = kind.coefficients(level.alpha, level.sigma)
    want = a * share + b * (level.alpha - level.alpha * share) / level.sigma
    assert data_slope(network(kind, SD), SD, LIKE) == pytest.approx(want.item(), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "zero", "prediction", "snr"),
    [
        (Eps(), False, "epsilon", []),
        (V(), False, "v_prediction", ["above zero"]),
        (V(), True, "v_prediction", ["zero"]),
        (X0(), False, "sample", ["above zero"]),
        (X0(), True, "sample", ["zero"]),
        (Velocity(), False, "flow_prediction", []),
    ],
)
def test_perfect_networks(kind, zero: bool, prediction: str, snr: list[str]) -> None:
    schedule = SD.zero_snr() if zero else SD
    claims = measured(network(kind, schedule), SD, LIKE).claims
    assert [c.value for c in claims] == [prediction, *snr]


def test_an_untrained_network_is_nothing() -> None:
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 4, 3, 3, generator=gen) / 6
    weight -= weight.mean()  # an answer of v, in noise of its own that hides it
    true = network(V(), SD)
    outputs = [
        lambda x, level: 0 * x + 0.3,
        lambda x, level: torch.conv2d(x, weight, padding=1),
        lambda x, level: x,
        lambda x, level: x.mean((2, 3), keepdim=True) * (0 * x + 0.7),
        lambda x, level: x.mean((2, 3), keepdim=True) * (0 * x - 0.7),
        lambda x, level: true(x, level) + 2 * torch.conv2d(x, weight, padding=1),
    ]
    assert all(measured(output, SD, LIKE).claims == () for output in outputs)


@pytest.mark.parametrize("schedule", [SD, Discrete.linear(), Flow()], ids=["SD", "linear", "flow"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.9])
def test_a_network_that_learned_little_is_never_taken_for_another(share: float, schedule) -> None:
    """x0 is a share of what a perfect network says, the rest the mean of all data."""
    for kind, name in ((Eps(), "epsilon"), (V(), "v_prediction"), (X0(), "sample"),
                       (Velocity(), "flow_prediction")):  # fmt: skip

        def ask(x, level, kind=kind):
            x0 = 0.6 + share * (Bright()(x, level) - 0.6)
            return kind.output_for_x0(x, x0, level)

        if schedule == Flow() and kind == Eps():
            continue  # eps is not defined at the end of a flow
        claims = measured(ask, schedule, LIKE).claims
        assert {c.value for c in claims if c.subject == PREDICTION} <= {name}


@pytest.mark.parametrize(
    ("name", "prediction", "snr"),
    [("critters", "v_prediction", "zero"), ("critters-eps", "epsilon", "above zero")],
)
def test_models_that_ship_against_a_config_that_lies(name, prediction, snr, tmp_path) -> None:
    """The network is believed, and the lie is named."""
    folder = tmp_path / "model"
    for source in (shipped(name).base, shipped(name).folder):
        if source is not None:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    path = folder / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    v = prediction == "v_prediction"
    config |= {
        "prediction_type": "epsilon" if v else "v_prediction",
        "rescale_betas_zero_snr": not v,
    }
    path.write_text(json.dumps(config))
    diagnosis = diagnose(folder, deep=True)
    assert (diagnosis.prediction.value, diagnosis.prediction.confidence) == (prediction, "measured")
    assert "by config" in diagnosis.prediction.disagreement
    assert diagnosis.exit_status == 3
    if v:
        assert (diagnosis.snr.value, diagnosis.snr.confidence) == (snr, "measured")


def test_the_network_of_sdxl_is_told_sizes() -> None:
    level, x = SD.at(500.0), torch.randn(2, 4, 8, 8)
    sizes = torch.tensor([1024.0, 1024, 0, 0, 1024, 1024]).expand(2, -1)
    words = torch.full((2, 77, 32), 0.5)
    given = {"text_embeds": torch.zeros(2, 48), "time_ids": sizes}
    with torch.no_grad():
        out = unet("SDXL")(x, 500.0, words, added_cond_kwargs=given).sample
    assert torch.equal(_ask(unet("SDXL"))(x, level), out)


def test_a_single_file_is_measured(tmp_path, monkeypatch) -> None:
    """The network that ships, in the original layout; its heads and groups are its own."""
    from diffsteer.doctor import measure

    place = shipped("critters").folder / "unet"
    config = json.loads((place / "config.json").read_text())
    traceless = {name: config[name] for name in ("attention_head_dim", "norm_num_groups")}
    weights = load_file(place / "diffusion_pytorch_model.safetensors")
    names = {name: f"model.diffusion_model.{original_name(name, 1)}" for name in weights}
    save_file({names[n]: value for n, value in weights.items()}, tmp_path / "a.safetensors")
    monkeypatch.setattr(measure, "SIDE", 16)  # latents of the images that it was trained on
    assert not diagnose(tmp_path / "a.safetensors", deep=True).prediction.known
    own = measure.unet_config
    monkeypatch.setattr(measure, "unet_config", lambda *a: own(*a) | traceless)
    diagnosis = diagnose(tmp_path / "a.safetensors", deep=True)
    assert (diagnosis.prediction.value, diagnosis.snr.value) == ("v_prediction", "zero")
    assert diagnosis.prediction.confidence == "measured"


@pytest.mark.parametrize(
    ("side", "mean", "std"), [(8, 0.413, 0.286), (16, 0.271, 0.251), (64, 0.039, 0.107)]
)
def test_brightness_of_the_paper(side: int, mean: float, std: float) -> None:
    """Samples of Stable Diffusion's schedule, data 0.600 +- 0.300, at 4 x side x side."""
    light = expected(SD, (4, side, side))
    assert (light.mean, light.std) == pytest.approx((mean, std), abs=1e-3)
    fixed = expected(SD.zero_snr(), (4, side, side))
    assert (fixed.mean, fixed.std) == pytest.approx((0.6, 0.3), abs=1e-3)
    assert fixed.gain == 0


def test_gain_of_the_paper() -> None:
    assert gain(SD, (4, 64, 64)) == pytest.approx(12.8, abs=0.05)

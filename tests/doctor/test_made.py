"""No wrong verdict on made checkpoints, and each repaired one samples right."""

import json
from dataclasses import replace

import pytest
import torch
from doctor.made import SILENT, Made, Marks, config, unet

from diffsteer.core.oracle import Bright
from diffsteer.core.schedule import Discrete, Flow
from diffsteer.doctor.diagnosis import Diagnosis, diagnose
from diffsteer.doctor.fix import fix
from diffsteer.doctor.verdict import ABOVE, PREDICTION, SNR, UNKNOWN, ZERO, Claim, judge
from diffsteer.hf.scheduler_config import KINDS

LAYOUTS = ("SD 1", "SD 2", "SDXL")
TRUTHS = (
    Marks("epsilon", False),
    Marks("v_prediction", False),
    Marks("v_prediction", True),
    Marks("epsilon", True),
    Marks("sample", True),
    Marks("sample", False),
    Marks("flow_prediction", True),
)
LIES = {"epsilon": "v_prediction"}


def lie(truth: Marks) -> Marks:
    return Marks(LIES.get(truth.prediction or "", "epsilon"), not truth.zero)


def made() -> dict[str, Made]:
    """Each layout and truth: told by all sources, by one, by none, and with one that lies."""
    cases = {}
    for i, layout in enumerate(LAYOUTS):
        for j, truth in enumerate(TRUTHS):
            name = (
                f"{layout.replace(' ', '')}-{truth.prediction}-{'zero' if truth.zero else 'above'}"
            )
            keys = truth if truth.prediction == "v_prediction" else SILENT
            half = torch.float16 if (i + j) % 2 else torch.float32
            cases[f"{name}-right"] = Made(layout, truth, keys, truth, truth, half)
            if (i + j) % 3 == 0:
                cases[f"{name}-missing"] = Made(layout, truth, dtype=half)
                cases[f"{name}-lying-metadata"] = Made(layout, truth, keys, lie(truth), truth)
            elif (i + j) % 3 == 1:
                cases[f"{name}-config"] = Made(layout, truth, config=truth)
                cases[f"{name}-lying-config"] = Made(layout, truth, keys, truth, lie(truth))
            else:
                cases[f"{name}-metadata"] = Made(layout, truth, metadata=truth)
                if keys is SILENT:
                    wrong = Marks("v_prediction", True)
                    cases[f"{name}-lying-keys"] = Made(layout, truth, wrong, truth, truth)
    return cases


CASES = made()


def told(case: Made) -> set[str | None]:
    """Prediction types that the sources of a case name."""
    return {m.prediction for m in (case.keys, case.metadata, case.config)} - {None}


def snr_told(case: Made) -> set[bool | None]:
    """Words on zero SNR; placeholder keys cannot deny it."""
    said = {case.metadata.zero, case.config.zero}
    return (said | ({True} if case.keys.zero else set())) - {None}


def test_there_are_forty() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, n in enumerate(CASES)],
)
def test_verdicts_and_repair(name: str, tmp_path) -> None:
    case = CASES[name]
    path = case.save(tmp_path / "model.safetensors")
    diagnosis = diagnose(path)
    assert diagnosis.checkpoint.architecture.name == case.layout
    words, truth = told(case), case.truth
    assert diagnosis.prediction.value == (
        truth.prediction if words == {truth.prediction} else UNKNOWN
    )
    assert bool(diagnosis.prediction.disagreement) == (len(words) > 1)
    said, zero = snr_told(case), ZERO if truth.zero else ABOVE
    if said == {truth.zero}:
        assert diagnosis.snr.value == zero
    else:
        assert diagnosis.snr.value in (UNKNOWN, zero if diagnosis.prediction.known else UNKNOWN)
    assert bool(diagnosis.snr.disagreement) == (len(said) > 1)
    _check_repair(case, diagnosis, tmp_path)


def _check_repair(case: Made, before: Diagnosis, folder) -> None:
    """What a user who knows the truth gets from --fix."""
    truth, out = case.truth, folder / "fixed.safetensors"
    zero = ZERO if truth.zero else ABOVE
    stated = [
        Claim(PREDICTION, str(truth.prediction), "user", "test"),
        Claim(SNR, zero, "user", "test"),
    ]
    prediction, snr = judge([*before.claims, *stated])
    files = fix(replace(before, prediction=prediction, snr=snr), out)
    after = diagnose(out)
    assert (after.prediction.value, after.snr.value) == (truth.prediction, zero)
    assert not after.prediction.disagreement and not after.snr.disagreement
    assert after.scan.hash == before.scan.hash
    problems = {f.code for f in after.findings if f.severity == "problem"}
    assert problems == ({"epsilon-at-zero"} if truth == Marks("epsilon", True) else set())
    v = truth.prediction == "v_prediction"
    assert ("v_pred" in after.checkpoint.names) == v
    assert ("ztsnr" in after.checkpoint.names) == (
        truth.zero and truth.prediction != "flow_prediction"
    )
    scheduler = next(f for f in files if f.suffix == ".json")
    mean = sampled_mean(scheduler, truth)
    assert mean == pytest.approx(expected_mean(truth, scheduler), abs=0.02)


def expected_mean(truth: Marks, scheduler) -> float:
    """Mean brightness by the closed form of the probability-flow ODE: 0.6 where T is reached."""
    from diffsteer.doctor.brightness import expected

    if truth.prediction == "flow_prediction":
        return 0.6
    if truth == Marks("epsilon", True):
        return 0.55  # starts below T, as it has to
    spacing = json.loads(scheduler.read_text())["timestep_spacing"]
    schedule = Discrete.scaled_linear()
    if truth.zero:
        return expected(schedule.zero_snr(), (4, 8, 8)).mean
    start = {"trailing": 999.0, "leading": 961.0}[spacing]
    return expected(schedule, (4, 8, 8), steps_from(schedule, start)).mean


def steps_from(schedule, start: float):
    from diffsteer.core.level import CLEAN

    return [*(schedule.at(t) for t in torch.linspace(start, 1, 200).double()), CLEAN]


def sampled_mean(path, truth: Marks) -> float:
    """Mean brightness of samples of a perfect network by diffusers' own scheduler."""
    import diffusers

    kind = getattr(diffusers, json.loads(path.read_text())["_class_name"])
    scheduler = kind.from_pretrained(path)
    scheduler.set_timesteps(25)
    prediction, flow = KINDS[str(truth.prediction)], truth.prediction == "flow_prediction"
    schedule = Discrete.scaled_linear()
    schedule = schedule.zero_snr() if truth.zero else schedule
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, 8, 8, generator=generator)
    x = torch.cat([x, -x])  # the mean brightness of linear samplers has no error
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        level = Flow().at(t.double() / 1000) if flow else schedule.at(t.double().clamp(0, 999))
        out = prediction.output_for_x0(given, Bright()(given, level), level)
        x = scheduler.step(out.float(), t, x, return_dict=False)[0]
    assert x.isfinite().all()
    return x.mean().item()


@pytest.mark.parametrize(
    "layout", ["SD 1", *(pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS[1:])]
)
def test_a_repaired_file_loads_in_diffusers(layout: str, tmp_path) -> None:
    """With the config of its network, and with the yaml that was written beside it."""
    from diffusers import UNet2DConditionModel

    truth = Marks("v_prediction", True)
    path = Made(layout, truth, truth).save(tmp_path / "model.safetensors")
    fix(diagnose(path), tmp_path / "fixed.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config(layout)))
    loaded = UNet2DConditionModel.from_single_file(
        tmp_path / "fixed.safetensors", config=str(tmp_path), low_cpu_mem_usage=False
    )
    for name, value in unet(layout).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_repaired_file_samples_as_the_true_pipeline(tmp_path) -> None:
    """Whole, in diffusers: with the scheduler that was written, and not with the one it had."""
    import diffusers
    import tiny

    truth, file = Marks("v_prediction", True), tmp_path / "fixed.safetensors"
    path = Made("SD 1", truth, truth).save(tmp_path / "model.safetensors")
    files = fix(diagnose(path), file)
    (tmp_path / "config.json").write_text(json.dumps(config("SD 1")))
    loaded = diffusers.UNet2DConditionModel.from_single_file(
        file, config=str(tmp_path), low_cpu_mem_usage=False
    )
    settings = next(f for f in files if f.suffix == ".json")
    kind = getattr(diffusers, json.loads(settings.read_text())["_class_name"])
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    right = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    flawed, true = (
        diffusers.DDIMScheduler(**betas, clip_sample=False, steps_offset=1),
        kind(**betas, **right, timestep_spacing="trailing"),
    )
    pipe = tiny.stable_diffusion(true, tmp_path)

    def sampled(network, scheduler) -> torch.Tensor:
        pipe.unet, pipe.scheduler = network, scheduler
        generator = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 4, "generator": generator, "output_type": "latent"}
        return pipe("a cat", height=16, width=16, guidance_scale=3.0, **call).images

    repaired = sampled(loaded, kind.from_pretrained(settings))
    assert torch.equal(repaired, sampled(unet("SD 1"), true))
    assert (repaired - sampled(loaded, flawed)).abs().max() > 0.1


def test_a_lying_source_is_named(tmp_path) -> None:
    case = Made("SDXL", Marks("v_prediction"), Marks("v_prediction"), Marks("epsilon"))
    diagnosis = diagnose(case.save(tmp_path / "model.safetensors"))
    text = diagnosis.prediction.disagreement
    assert "v_prediction by keys (key v_pred)" in text
    assert "epsilon by metadata (modelspec.prediction_type = epsilon)" in text
    assert diagnosis.exit_status == 3


def test_one_source_is_declared_and_two_agree(tmp_path) -> None:
    truth = Marks("v_prediction", True)
    case = Made("SD 1", truth, truth)
    assert diagnose(case.save(tmp_path / "a.safetensors")).prediction.confidence == "declared"
    case = replace(case, metadata=truth)
    assert diagnose(case.save(tmp_path / "b.safetensors")).prediction.confidence == "agreed"

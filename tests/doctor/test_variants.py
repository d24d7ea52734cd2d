"""Folders whose words lie, forms of LoRAs, and files of kinds that lie beside Stable Diffusion."""

import json
import re
from pathlib import Path

import pytest
import torch
from doctor.made import Made, Marks, original, unet
from safetensors.torch import load_file, save_file
from tiny import saved

from diffsteer.core.schedule import EDM, Flow
from diffsteer.doctor.diagnosis import diagnose
from diffsteer.doctor.fix import fix
from diffsteer.doctor.present import _levels
from diffsteer.doctor.schedulers import findings
from diffsteer.io.safetensors_header import read_header


def codes(found) -> set[str]:
    return {finding.code for finding in found}


def diffusers_folder(tmp_path: Path, **changes: dict[str, object]) -> Path:
    """A pipeline whose JSON files say something else, by their first word."""
    folder = Path(saved(tmp_path))
    files = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
    for name, change in changes.items():
        path = folder / files[name]
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"index": {"_class_name": "StableDiffusionXLPipeline"}}, {"pipeline"}),
        (
            {"index": {"feature_extractor": ["transformers", "CLIPImageProcessor"]}},
            {"missing-files"},
        ),
        ({"scheduler": {"prediction_type": "v"}}, {"prediction-type"}),
        (
            {
                "index": {"scheduler": ["diffusers", "PNDMScheduler"]},
                "scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
                | {"timestep_spacing": "trailing"},
            },
            {"flag-dropped", "scheduler-class", "pndm-v"},
        ),
    ],
    ids=["pipeline", "missing part", "word", "scheduler"],
)
def test_an_index_or_a_config_that_lies(changes, expected: set[str], tmp_path) -> None:
    diagnosis = diagnose(diffusers_folder(tmp_path, **changes))
    assert expected <= codes(diagnosis.findings) and diagnosis.exit_status == 3
    if "scheduler" in changes:
        assert diagnosis.prediction.value == "v_prediction"
        fix(diagnosis, tmp_path / "fixed")
        assert diagnose(tmp_path / "fixed").exit_status == 0


def test_attention_under_its_names_of_2022_is_not_missing(tmp_path) -> None:
    """As of the autoencoder of Stable Diffusion 1.5; diffusers still reads them."""
    folder = Path(saved(tmp_path))
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    names = {n: n for n in weights if "attentions" not in n}
    for name in weights.keys() - names.keys():
        names[name] = re.sub("|".join(map(re.escape, old)), lambda m: old[m[0]], name)
    assert any("query" in name for name in names.values())
    save_file({names[n]: value for n, value in weights.items()}, path)
    assert "missing-tensors" not in codes(diagnose(folder).findings)


NAMES = "down_blocks.0.attentions.0.transformer_blocks.0.attn2."


@pytest.mark.parametrize(
    ("down", "up", "base"),
    [
        (f"base_model.model.{NAMES}to_k.lora_A", f"base_model.model.{NAMES}to_k.lora_B", "SD 2"),
        (f"unet.{NAMES}to_k.lora.down", f"unet.{NAMES}to_k.lora.up", "SD 2"),
        (f"{NAMES}processor.to_k_lora.down", f"{NAMES}processor.to_k_lora.up", "SD 2"),
        ("lora_unet_double_blocks_0_x.lora_down", "lora_unet_double_blocks_0_x.lora_up", "Flux"),
    ],
    ids=["peft", "diffusers", "processor", "kohya of Flux"],
)
def test_forms_of_lora(down: str, up: str, base: str, tmp_path) -> None:
    tensors = {f"{down}.weight": torch.ones(4, 1024), f"{up}.weight": torch.ones(32, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    diagnosis = diagnose(tmp_path / "a.safetensors")
    assert (diagnosis.checkpoint.kind, diagnosis.checkpoint.architecture.name) == ("lora", base)
    assert diagnosis.prediction.value == ("flow_prediction" if base == "Flux" else "unknown")
    assert not any("--deep" in finding.remedy for finding in diagnosis.findings)


@pytest.mark.parametrize("layout", ["SD 1", "SD 2"])
def test_an_inpainting_file_is_measured_and_gets_no_yaml_of_another_model(
    layout: str, tmp_path
) -> None:
    weights, name = original(layout), "model.diffusion_model.input_blocks.0.0.weight"
    weights[name] = torch.cat([weights[name], torch.zeros(len(weights[name]), 5, 3, 3)], 1)
    save_file(weights, tmp_path / "a.safetensors", {"modelspec.prediction_type": "epsilon"})
    diagnosis = diagnose(tmp_path / "a.safetensors", deep=layout == "SD 2")
    assert layout == "SD 1" or "no-type-fits" in codes(diagnosis.findings)  # random weights
    assert diagnosis.to_dict()["pipeline"] == "StableDiffusionInpaintPipeline"
    fix(diagnosis, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.yaml").exists()
    words = {"SD 1": "stable-diffusion-v1", "SD 2": "stable-diffusion-v2-512"}
    assert read_header(tmp_path / "b.safetensors")[1]["modelspec.architecture"] == words[layout]


def test_a_file_under_the_names_of_diffusers_is_not_measured(tmp_path) -> None:
    save_file(unet("SD 1").state_dict(), tmp_path / "a.safetensors")
    (finding,) = (f for f in diagnose(tmp_path / "a.safetensors", deep=True).findings
                  if f.code == "not-measured")  # fmt: skip
    assert "under the names of diffusers" in finding.text


def test_the_plot_of_a_flow_and_of_edm_is_of_their_own_schedule(tmp_path) -> None:
    path = Made("SD 1", Marks("flow_prediction", True), config=Marks("flow_prediction", True))
    schedule, levels = _levels(diagnose(path.save(tmp_path / "a.safetensors")))
    assert schedule == Flow() and len(levels) == 50
    assert levels[0].sigma == 1 and levels[0].alpha == 0
    edm = {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    save_file(original("SDXL") | edm, tmp_path / "b.safetensors")
    assert _levels(diagnose(tmp_path / "b.safetensors")) == (EDM(), [])


def test_a_scheduler_that_takes_no_number_of_steps_is_not_judged(tmp_path) -> None:
    found = [*findings({"_class_name": "SCMScheduler", "num_train_timesteps": 1000}, "unknown", "")]
    assert [(f.code, f.severity) for f in found] == [("scheduler-not-examined", "note")]

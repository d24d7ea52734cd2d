"""Scheduler configs of other types or sizes are refused before anything is made of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffsteer.core.errors import InputError
from diffsteer.hf.load import load
from diffsteer.hf.scheduler import SteerScheduler
from diffsteer.hf.scheduler_config import read, schedule_of, spacing_of

GOOD = {"_class_name": "DDIMScheduler", "beta_start": 0.1, "beta_end": 0.2}


def test_the_spacing_of_a_flag_is_before_the_named_one() -> None:
    config = {"timestep_spacing": "leading"}
    assert spacing_of(config) == "leading"
    assert spacing_of(config | {"use_exponential_sigmas": True}) == "logsigma"


@pytest.mark.parametrize(
    "change",
    [
        *({"_class_name": ["DDIMScheduler"]}, {"prediction_type": []}, {"beta_start": True}),
        *({"trained_betas": [[0.1]]}, {"trained_betas": "x"}, {"trained_betas": ["0.1"]}),
        *({"num_train_timesteps": 10**9}, {"num_train_timesteps": 0}, {"beta_schedule": {}}),
        *({"num_train_timesteps": True}, {"beta_end": float("nan")}, {"beta_start": 1e308}),
    ],
    ids=str,
)
def test_a_config_of_other_types_or_sizes(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(InputError):  # noqa: PT012
        config = read(tmp_path)
        schedule_of(config)
        SteerScheduler.from_config(config)


def test_a_pipeline_with_a_billion_timesteps(tmp_path: Path) -> None:
    """The scheduler of diffusers would take gigabytes for them."""
    (tmp_path / "scheduler").mkdir()
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = GOOD | {"num_train_timesteps": 10**9}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"num_train_timesteps must be in \[1, 100000\]"):
        load(str(tmp_path))

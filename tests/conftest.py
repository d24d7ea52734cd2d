"""One thread a test: the suite runs in parallel, and tiny tensors gain nothing from more."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# scripts that tests start import tests/tiny.py as the tests do
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
)

torch.set_num_threads(1)
settings.register_profile("shared", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("shared")
gc.set_threshold(50_000, 20, 20)  # diffusers and transformers leave a million objects to traverse
for absent in (device for device in (torch.cuda, torch.xpu) if not device.is_available()):
    absent.manual_seed_all = lambda seed: None  # else each seed is queued, with the stack as text


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a file to one worker, so that what its tests share is made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)

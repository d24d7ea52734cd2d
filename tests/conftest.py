"""One thread a test: the suite runs in parallel, and tiny tensors gain nothing from more."""

import os
from pathlib import Path

import torch

# scripts that tests start import tests/tiny.py as the tests do
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
)

torch.set_num_threads(1)

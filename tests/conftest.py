"""One thread a test: the suite runs in parallel, and tiny tensors gain nothing from more."""

import torch

torch.set_num_threads(1)

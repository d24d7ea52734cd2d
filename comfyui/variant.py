"""Other weights of a model in use: those of its clone with other patches, such as a LoRA."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from diffsteer.core.errors import InputError


class Variant:
    """Weights of a clone, which ComfyUI cannot load beside the model that it is a clone of.

    Args:
        model: MODEL that is sampled, loaded again at the end.
        clone: The same with other patches.
        beside: What else is in use.
    """

    def __init__(self, model: Any, clone: Any, beside: Sequence[Any] = ()) -> None:
        self.model = model.model
        comfy.model_management.load_models_gpu([clone])
        try:
            if self.model.model_lowvram:
                raise InputError(
                    "this model is too large to be loaded whole, so that its weights cannot be "
                    "exchanged in each step: free memory, or take a smaller or quantized one"
                )
            self.weights = {
                key: torch.nn.Parameter(value.detach().clone(), requires_grad=False)
                for key in {**model.patches, **clone.patches}
                for value in (comfy.utils.get_attr(self.model, key),)
            }
        finally:
            comfy.model_management.load_models_gpu([model, *beside])

    @contextmanager
    def on(self) -> Iterator[None]:
        """Give the model these weights meanwhile."""
        before = {k: comfy.utils.set_attr(self.model, k, w) for k, w in self.weights.items()}
        try:
            yield
        finally:
            for key, weight in before.items():
                comfy.utils.set_attr(self.model, key, weight)

"""LoRA adapters of a network, loaded by diffusers through peft, that act for one pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from diffsteer.core.errors import InputError
from diffsteer.guidance.adapters import no_adapters, scales


def adapted(network: nn.Module, text: str) -> AbstractContextManager[None]:
    """Context in which the adapters of a text act in a network, and no others.

    Raises:
        InputError: one of them is not loaded, or they are fused into the weights.
    """
    layers: list[Any] = [
        m for m in network.modules() if hasattr(m, "set_scale") and hasattr(m, "base_layer")
    ]
    wanted = scales(text)
    loaded = sorted({name for layer in layers for name in layer.scaling})
    if not loaded:
        return no_adapters(text)
    if missing := [name for name in wanted if name not in loaded]:
        raise InputError(
            f"no adapter {missing[0]!r} is loaded, there is {', '.join(loaded)}: load it with "
            f"pipe.load_lora_weights(..., adapter_name={missing[0]!r})"
        )
    if any(layer.merged for layer in layers):
        raise InputError(
            "the adapters are fused into the weights, where their scale cannot change: call "
            "pipe.unfuse_lora() first"
        )
    return _acting(layers, wanted)


@contextmanager
def _acting(layers: list[Any], wanted: dict[str, float | None]) -> Iterator[None]:
    """Let adapters act in layers of peft.

    Its own `set_adapter` would change which weights require gradients, so private attributes are
    set; without adapters layers are disabled, as by `pipe.disable_lora()`.
    """
    before = [(m._active_adapter, m._disable_adapters, dict(m.scaling)) for m in layers]
    try:
        for layer in layers:
            layer._active_adapter, layer._disable_adapters = list(wanted), not wanted
            for name, scale in wanted.items():
                if scale is not None:
                    layer.set_scale(name, scale)
        yield
    finally:
        for layer, (active, disabled, scaling) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
            layer.scaling.update(scaling)

"""A low-rank adapter of a whole network that is on for one call and leaves no trace when off.

peft does the layers; a user's own adapters keep their names, weights and state. Where no gradient
is asked for and this adapter is the only one of a layer, its product is added to the weight for
that call, which takes the memory of one weight, where peft's sum takes that of two more outputs.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.hf.network import uncompiled

NAME = "noise_refiner"
"""Of the adapter, beside a user's own."""
_TURN = RLock()
"""Held while an adapter is on: whether compiled code runs is decided for all threads at once."""


class Lora:
    """An adapter of every linear layer and every convolution without groups, off until it is used.

    `output` names the last layer of the network, which is not compiled; `alpha` is scale times
    rank, 0 for the rank.
    """

    def __init__(self, network: nn.Module, rank: int, output: str, alpha: int = 0) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        if rank < 1:
            raise InputError(f"rank={rank} adapts nothing: give at least 1")
        if NAME in getattr(network, "peft_config", {}):
            raise InputError("this network has a noise refiner already: remove it first")
        self.network, self.output, self.rank, self.alpha = network, output, rank, alpha or rank
        names = list(adaptable(network))
        for name in names:
            _check_unfused(name, network.get_submodule(name))
        config = LoraConfig(r=rank, lora_alpha=self.alpha, target_modules=names)
        with _undisturbed(network), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a user's
            inject_adapter_in_model(config, network, NAME)
        self.layers: dict[str, Any] = {name: network.get_submodule(name) for name in names}
        for layer in self.layers.values():
            layer._all_available_adapter_names = partial(_others, layer)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its weights by the names that peft and diffusers give them in files."""
        return {
            f"{name}.{side}.weight": getattr(layer, side)[NAME].weight
            for name, layer in self.layers.items()
            for side in ("lora_A", "lora_B")
        }

    @contextmanager
    def on(self, alone: bool = False) -> Iterator[None]:
        """Use the adapter in the calls of the network meanwhile, beside those that are active.

        Compiled networks run uncompiled meanwhile, and other threads wait for their turn. With
        `alone`, the last layer returns what this adapter adds to it, and nothing else.
        """
        with ExitStack() as stack:
            stack.enter_context(_TURN)
            stack.enter_context(uncompiled())
            for name, layer in self.layers.items():
                self._check(name, layer)
                last = alone and name == self.output
                others = [] if last or layer.disable_adapters else layer.active_adapters
                stack.callback(_set, layer, layer._active_adapter, layer._disable_adapters)
                _set(layer, [*others, NAME], False)
                if not last and layer.lora_A.keys().isdisjoint(others) and _plain(layer):
                    stack.callback(layer.__dict__.pop, "forward")
                    layer.forward = partial(_merged, layer)
            if alone:
                base = self.layers[self.output].base_layer
                handle = base.register_forward_hook(lambda m, args, out: torch.zeros_like(out))
                stack.callback(handle.remove)
            yield

    def remove(self) -> None:
        """Give the network its own layers back, but for those with a user's adapters."""
        for name, layer in self.layers.items():
            if not self._holds(name, layer):
                continue
            del layer._all_available_adapter_names
            layer.delete_adapter(NAME)
            if not layer.lora_A:
                parent, _, last = name.rpartition(".")
                setattr(self.network.get_submodule(parent), last, layer.base_layer)
        configs = getattr(self.network, "peft_config", {})
        configs.pop(NAME, None)
        if not configs:
            self.network.__dict__.pop("peft_config", None)

    def _holds(self, name: str, layer: Any) -> bool:
        """Whether a layer is in the network still, and this adapter in the layer."""
        try:
            return NAME in layer.lora_A and self.network.get_submodule(name) is layer
        except AttributeError:
            return False

    def _check(self, name: str, layer: Any) -> None:
        if not self._holds(name, layer):
            raise InputError(
                f"the noise refiner was removed from {name} by others (unload_lora_weights "
                "removes every adapter): load it again"
            )
        _check_unfused(name, layer)


def _check_unfused(name: str, layer: Any) -> None:
    if getattr(layer, "merged", False):
        raise InputError(
            f"{', '.join(layer.merged_adapters)} is fused into {name}, which hides the noise "
            "refiner: call unfuse_lora first, or fuse and unload before loading the refiner"
        )


def own_parameters(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of a network without those of adapters, as if there were none."""
    for name, p in network.named_parameters():
        if not {"lora_A", "lora_B", "lora_magnitude_vector"} & set(name.split(".")):
            yield name.replace(".base_layer.", "."), p


def _others(layer: Any) -> list[str]:
    """Adapters of a layer but this one: peft activates one where a user's active one is deleted."""
    return [name for name in type(layer)._all_available_adapter_names(layer) if name != NAME]


def _set(layer: Any, active: list[str] | str, disabled: bool) -> None:
    """Set the state of a layer; peft's `set_adapter` changes gradients as well."""
    layer._active_adapter, layer._disable_adapters = active, disabled


def _plain(layer: Any) -> bool:
    """Whether the weight of a layer is a matrix at hand, with no gradient to come."""
    base = layer.base_layer
    return (
        not torch.is_grad_enabled()
        and type(base) in (nn.Linear, nn.Conv2d)
        and base.weight.is_floating_point()
        and not base.weight.is_meta
        and "forward" not in {*layer.__dict__, *base.__dict__}  # weights that come and go
    )


def _merged(layer: Any, x: Tensor) -> Tensor:
    """Output of a layer whose weight is W + scale B A."""
    base, (a, b) = layer.base_layer, (getattr(layer, s)[NAME].weight for s in ("lora_A", "lora_B"))
    w = base.weight
    flat = (w.flatten(1), b.flatten(1).to(w), a.flatten(1).to(w))
    whole = torch.addmm(*flat, alpha=layer.scaling[NAME]).view_as(w)
    out: Tensor = torch.func.functional_call(base, {"weight": whole}, (x,))
    return out


def adaptable(network: nn.Module) -> Iterator[str]:
    """Names of the layers to adapt; grouped convolutions would have to divide the rank."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if name.startswith(inside or ("\0",)):
            continue
        base = module
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
            base = module.get_base_layer()
        if isinstance(base, nn.Linear) or (isinstance(base, nn.Conv2d) and base.groups == 1):
            yield name


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Keep which adapters are active and what needs a gradient, which adding an adapter changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    needs = {id(p): p.requires_grad for p in network.parameters()}
    states = {
        id(m): (m._active_adapter, m._disable_adapters)
        for m in network.modules()
        if isinstance(m, BaseTunerLayer)
    }
    off: tuple[Any, bool] = ([], False)
    usual = next(iter(states.values()), off)  # diffusers asks any layer for those in use
    yield
    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            _set(layer, *states.get(id(layer), usual))
    for p in network.parameters():
        p.requires_grad_(needs.get(id(p), p.requires_grad))

"""Refined noise: a refiner of diffsteer, applied to the noise that a sampling starts from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import comfy.lora
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from diffsteer import Level, Prediction, parse
from diffsteer.core.errors import InputError
from diffsteer.hf.families import FAMILIES
from diffsteer.refine.heads import HEADS, RefineInput
from diffsteer.refine.low_frequency import LOW_FREQUENCY
from diffsteer.refine.metadata import (
    RefinerMetadata,
    fingerprint_of,
    read,
    require_level,
    require_weights,
)
from diffsteer.refine.nlg import NLG, TrainingFreeRefiner

from .levels import Sampling
from .variant import Variant

Weights = dict[str, Tensor]
Place = tuple[str, tuple[int, int, int] | None, Callable[[Tensor], Tensor] | None]
"""ComfyUI's name of a weight of diffusers; which part of it (dimension, start, length); how the
part is turned into what diffusers has, and back."""
TABLES = {
    "UNet2DConditionModel": "unet_to_diffusers",
    "SD3Transformer2DModel": "mmdit_to_diffusers",
    "FluxTransformer2DModel": "flux_to_diffusers",
}
"""Tables of names in `comfy.utils`, by the networks of diffusers whose refiners are taken."""
BUFFERS = {"diffusion_model.pos_embed"}
"""Weights of ComfyUI that diffusers computes."""


@dataclass(frozen=True, eq=False)
class Network:
    """The network of a sampling at its noisiest level, as refiners call it."""

    guider: Any
    options: Any

    @property
    def sampling(self) -> Sampling:
        """Its noise schedule."""
        return Sampling.of(self.guider.inner_model.model_sampling)

    @property
    def terminal(self) -> Level:
        """Where sampling starts."""
        return self.sampling.terminal

    @property
    def prediction(self) -> Prediction:
        """Prediction type."""
        return self.sampling.prediction

    def __call__(self, x: Tensor, _: Level, cond: Mapping[str, Any]) -> Tensor:
        """Output for unit noise, `(B, *D)`."""
        sampling = self.sampling
        sigma = sampling.own.sigma_max.to(x).expand(len(x))
        level = sampling.level(float(sigma[0]))
        arguments = sampling.unscaled(x, level), sigma, self.options
        model = self.guider.inner_model
        (x0,) = comfy.samplers.calc_cond_batch(model, [cond["entries"]], *arguments)
        return sampling.prediction.output_for_x0(x, x0.float(), level)


class Trained:
    """A refiner that was trained, of a folder or a hub id."""

    null = False

    def __init__(self, source: str, any_model: bool = False) -> None:
        self.source, self.any_model = source, any_model
        self.metadata, self.weights = read(source)
        if self.metadata.network not in TABLES:
            raise InputError(
                f"{source} is for {self.metadata.network}, whose layers ComfyUI names apart: it "
                "takes refiners of Stable Diffusion 1, 2, XL and 3 and Flux; sample others by "
                "`diffsteer sample --refiner`"
            )
        if self.metadata.head == LOW_FREQUENCY:
            raise InputError(
                f"{source} is a low_frequency network, which ComfyUI does not run: take a refiner "
                "with another head, or sample by `diffsteer sample --refiner`"
            )
        self._known: WeakSet[Any] = WeakSet()  # models whose weights were looked at

    def __call__(self, x: Tensor, conds: Mapping[str, Any], network: Network) -> Tensor:
        """Refined noise, `(B, *D)`."""
        model = network.guider.model_patcher
        require_level(self.metadata, network.prediction, network.terminal, self.source)
        names = layer_names(model.model, self.metadata.network, self.weights)
        if not self.any_model and model.model not in self._known:
            hashes = own_weights(model, self.metadata.network)
            require_weights(self.metadata, hashes, self.source)
            self._known.add(model.model)

        @contextmanager
        def on(alone: bool) -> Iterator[None]:
            adapted = model.clone()
            for patches in adapter(self.metadata, self.weights, names, model.model, alone):
                adapted.add_patches(patches)
            beside = network.guider.loaded_models
            with Variant(model, adapted, beside).on():
                yield

        def out() -> Tensor:
            return network(x, network.terminal, conds["cond"])

        at = RefineInput(x, network.terminal, network.prediction, out, on)
        return x + HEADS[self.metadata.head].delta(at)


def adapter(
    metadata: RefinerMetadata, weights: Weights, names: Mapping[str, Place], model: Any, alone: bool
) -> Iterator[dict[Any, Any]]:
    """Patches of a refiner; with `alone` its last layer has the adapter's part in place of its own.

    Yields:
        Patches as `add_patches` of a MODEL takes them.
    """
    last = FAMILIES[metadata.network].output if alone else ""
    lora = {f"{layer}.alpha": torch.tensor(float(metadata.alpha)) for layer in names}
    lora |= {name: w for name, w in weights.items() if not name.startswith(f"{last}.lora_")}
    targets = {layer: key for layer, key in names.items() if layer != last}
    yield comfy.lora.load_lora(lora, targets, log_missing=False)
    if alone:
        a, b = (weights[f"{last}.lora_{side}.weight"] for side in "AB")
        key, _, _ = names[last]
        bias = key.removesuffix("weight") + "bias"
        own = comfy.utils.get_attr(model, key)
        part = (b.flatten(1) @ a.flatten(1)).reshape(own.shape) * metadata.alpha / metadata.rank
        yield {key: ("set", (part,))}
        yield {bias: ("set", (torch.zeros(len(own)),))}


def places(model: Any, network: str) -> dict[str, Place]:
    """Names of a network's weights in diffusers, and where ComfyUI keeps them."""
    table = getattr(comfy.utils, TABLES[network])(model.model_config.unet_config)
    targets = {n: (to,) if isinstance(to, str) else to for n, to in table.items()}
    return {
        name: (f"diffusion_model.{key}", *(*more, None, None)[:2])
        for name, (key, *more) in targets.items()
    }


def layer_names(model: Any, network: str, weights: Weights) -> dict[str, Place]:
    """Layers of a refiner, as diffusers names them, and where ComfyUI keeps their weights.

    Raises:
        InputError: ComfyUI knows none for a layer.
    """
    known, own = places(model, network), model.state_dict().keys()
    layers = {name.partition(".lora_")[0] for name in weights}
    found = {
        layer: known[name]
        for layer in layers
        if (name := f"{layer}.weight") in known and known[name][0] in own
    }
    if missing := sorted(layers - found.keys()):
        raise InputError(
            f"this model has no layer {missing[0]} (and {len(missing) - 1} more) of the refiner's: "
            "load the model that it was trained for"
        )
    return found


def own_weights(model: Any, network: str) -> dict[str, str]:
    """Hashes of a network's own weights, without patches, by the names of diffusers."""
    patches = model.get_key_patches("diffusion_model.")
    weights, translated = {}, set(BUFFERS)
    for name, (key, part, change) in places(model.model, network).items():
        if key in patches and key not in BUFFERS:
            weight = patches[key][0][0]
            weight = weight if part is None else weight.narrow(*part)
            weights[name] = weight if change is None else change(weight)
            translated.add(key)
    if patches.keys() - translated:
        return {}  # weights that diffusers does not have
    return fingerprint_of(weights)


def opened(source: str, any_model: bool) -> Any:
    """A refiner of a folder or hub id, or one without training by its text, "NLG(20)"."""
    if source.startswith(NLG.__name__):
        return parse(source, TrainingFreeRefiner)
    return Trained(source, any_model)


def refined(refiner: Any, strength: float) -> Callable[..., Any]:
    """Wrapper of a sampler of ComfyUI that starts it from refined noise."""

    def sample(
        execute: Any, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor,
        latent: Tensor | None = None, *more: Any,
    ) -> Any:  # fmt: skip
        if latent is not None and latent.count_nonzero():
            raise InputError(
                "this sampling starts from an image, and only pure noise can be refined: give it "
                "an empty latent, or the model as it was before this node"
            )
        network = Network(guider, extra["model_options"])
        with torch.no_grad():
            x = noise.float()
            change = refiner(x, _conds(guider, refiner.null), network) - x
        moved = (x + strength * change).to(noise)
        return execute(guider, sigmas, extra, callback, moved, latent, *more)

    return sample


def _conds(guider: Any, null: bool) -> dict[str, dict[str, Any]]:
    """Prompts of a sampling, as refiners name them."""
    wanted = {"cond": "positive", **({"null": "negative"} if null else {})}
    if missing := [name for name in wanted.values() if guider.conds.get(name) is None]:
        raise InputError(f"the refiner asks for a {missing[0]} prompt: connect one")
    return {name: {"entries": guider.conds[socket]} for name, socket in wanted.items()}

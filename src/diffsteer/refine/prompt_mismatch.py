"""Registry of refined noise, which warns where it is sampled for another prompt.

A few numbers of each row and of its text are remembered; the first call of each sampling compares.
"""

import warnings
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from diffsteer.core.level import upcast
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.known_family_call import BatchedCall
from diffsteer.hf.network import bind_arguments, network_of, unwrap_compiled
from diffsteer.hf.timesteps import StepTracker

KEPT = 256
"""Rows that are remembered, the latest: less than 10 MB of 512 tokens a prompt."""
SAME_NOISE = 0.999
"""Least cosine of rows that are the same noise, however rounded and scaled."""
SAME_TEXT = 0.1
"""Greatest change of a token, over the size of tokens, that rounding makes in an encoder."""


class Registry:
    """Rows of refined noise of a network and the text that each is for."""

    def __init__(self, pipe: Any) -> None:
        self._rows: deque[tuple[Tensor, Tensor]] = deque(maxlen=KEPT)
        self._pipe, self._tracker = ref(pipe), StepTracker()
        self.remove = network_of(pipe).register_forward_pre_hook(_look, with_kwargs=True).remove

    def add(self, pipe: Any, noise: Tensor, text: Tensor) -> None:
        """Remember rows, of a pipeline around this network."""
        self._pipe = ref(pipe)
        self._rows.extend(zip(noise, text, strict=True))

    def look(self, network: Any, args: Any, kwargs: Any) -> None:
        """Warn where this call begins a sampling of remembered rows for other texts."""
        pipe = self._pipe()
        if pipe is None or not self._tracker.follow(pipe.scheduler):
            return
        try:
            arguments = bind_arguments(network, args, kwargs)
            call = BatchedCall.of(pipe, network, network.forward, arguments)
            text = call.conds["cond"]["encoder_hidden_states"]
            rows = list(zip(map(self.texts, _noise(call.sample)), _text(text), strict=True))
        except ValueError:
            return  # conditions that cannot be told apart
        if misused := [i for i, (texts, t) in enumerate(rows) if texts and not _any(t, texts)]:
            warnings.warn(
                f"row {misused[0]} of this sampling starts from noise that was refined for another "
                "prompt: without guidance the image fits neither, with guidance its layout is "
                "that of the other. Refine noise for the prompts that you sample, row by row",
                stacklevel=2,
            )

    def texts(self, noise: Tensor) -> list[Tensor]:
        """Texts that a row was refined for; none where it is not remembered."""
        return [t for n, t in self._rows if n.shape == noise.shape and n @ noise > SAME_NOISE]


_registries: WeakKeyDictionary[nn.Module, Registry] = WeakKeyDictionary()


def remember(pipe: Any, noise: Tensor, refined: Tensor, cond: Cond) -> None:
    """Warn where a pipeline samples `refined`, `(B, *D)`, for another prompt, from now on.

    Rows that refining changed by less than 4 % of their size are any prompt's.
    """
    text, network = cond.get("encoder_hidden_states"), unwrap_compiled(network_of(pipe))
    if text is None:
        return
    if network not in _registries:
        _registries[network] = Registry(pipe)
    before, after = _noise(noise), _noise(refined)
    changed = (before * after).sum(1) <= SAME_NOISE
    _registries[network].add(pipe, after[changed], _text(text)[changed])


def refined_before(network: nn.Module, noise: Tensor) -> bool:
    """Whether any row of this noise is remembered of a network."""
    registry = _registries.get(unwrap_compiled(network))
    return registry is not None and any(map(registry.texts, _noise(noise)))


def _look(network: Any, args: Any, kwargs: Any) -> None:
    """Look at a call of a network; of the module, so that networks can be pickled."""
    if torch.compiler.is_compiling():
        return
    if registry := _registries.get(unwrap_compiled(network)):
        registry.look(network, args, kwargs)


def forget(network: nn.Module) -> None:
    """Forget what was remembered of a network, and look at it no more."""
    if registry := _registries.pop(network, None):
        registry.remove()


def _noise(x: Tensor) -> Tensor:
    """About a thousand elements of each row, of length 1."""
    flat = x.flatten(1)
    some = upcast(flat[:, :: -(-flat.shape[1] // 1024)]).cpu()
    return torch.nn.functional.normalize(some)


def _text(embedded: Tensor) -> Tensor:
    """Some channels of each token, `(B, L, c)`."""
    return upcast(embedded[..., :: -(-embedded.shape[-1] // 16)]).cpu().clone()


def _any(text: Tensor, texts: list[Tensor]) -> bool:
    """Whether a text is any of these; those of other lengths cannot be compared, and may be it."""
    return any(
        text.shape != t.shape
        or ((t - text) ** 2).sum(-1).max() <= SAME_TEXT**2 * (t**2).sum(-1).mean()
        for t in texts
    )

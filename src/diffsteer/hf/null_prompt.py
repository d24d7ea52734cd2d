"""Null prompt of pipelines that never send both conditions in one call of the network."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.denoiser import Cond

KEPT = frozenset({"device", "max_sequence_length", "lora_scale"})
"""Settings of encoding; the null prompt is encoded in the same way as the prompt."""


class Prompts:
    """Prompts that a pipeline encodes, so that a call can be told by what it was given.

    A pipeline with a negative prompt and true guidance encodes both, and calls the network for the
    one and then for the other. Without, `null` is encoded by the pipeline itself when a guidance
    first asks for it, and kept.

    Args:
        pipe: The pipeline; `encode` has to stand in for its `encode_prompt`.
        null: The null prompt, unless a call has a negative prompt.
        names: Arguments of the network that `encode_prompt` returns, in order.
    """

    def __init__(self, pipe: Any, null: str, names: tuple[str, ...]) -> None:
        self.pipe, self.null, self.names = pipe, null, names
        self._encode = pipe.encode_prompt
        self._encoded: list[tuple[dict[str, Any], tuple[Tensor, ...]]] = []
        self._sampling = False
        self._prompt: int | None = None
        self._null: dict[Any, tuple[Tensor, ...]] = {}

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encode as the pipeline does, and take note of it."""
        embeddings = self._encode(*args, **kwargs)
        if self._sampling:  # what was noted before belongs to an earlier sampling
            self._encoded, self._sampling, self._prompt = [], False, None
        bound = inspect.signature(self._encode).bind(*args, **kwargs)
        bound.apply_defaults()
        self._encoded.append((bound.arguments, embeddings))
        return embeddings

    def is_null(self, arguments: Cond) -> bool:
        """Whether a call of the network is for the negative prompt."""
        self._sampling = True
        text = arguments[self.names[0]]
        matches = [i for i, (_, embeddings) in enumerate(self._encoded) if embeddings[0] is text]
        if not matches and self._prompt is None and len(self._encoded) > 1:
            raise InputError(
                f"{type(self.pipe).__name__} encoded {len(self._encoded)} prompts and sent another "
                "embedding to the network, so that its calls cannot be told apart: call it without "
                "its own guidance (true_cfg_scale=1) and give steer(..., null=...)"
            )
        if matches and self._prompt is not None and matches[-1] == self._prompt + 1:
            return True
        if matches:
            self._prompt = matches[-1]
        return False

    def null_of(self, arguments: Cond, batch: int) -> Mapping[str, Any]:
        """Arguments of a call for the prompt, turned into those for the null prompt."""
        if "ip_adapter_image_embeds" in (arguments.get("joint_attention_kwargs") or {}):
            raise InputError(
                "the guidance asks for the null prompt, and this pipeline says what its image "
                "prompt (IP-Adapter) is without one only later: guide without CFG, or without it"
            )
        following = self._encoded[self._prompt + 1 :] if self._prompt is not None else []
        embeddings = following[0][1] if following else self._encoded_null()
        null = dict(zip(self.names, embeddings, strict=False))
        for name, value in null.items():
            if len(value) == 1 and len(arguments[name]) == batch:
                null[name] = value.expand(batch, *value.shape[1:])
        return {**arguments, **null}

    def _encoded_null(self) -> tuple[Tensor, ...]:
        """Embeddings of the null prompt, `(1, ...)` each."""
        if not self._encoded:
            raise InputError(
                "the guidance asks for the null prompt, and this network was called without a "
                "prompt of its pipeline: call the pipeline"
            )
        kwargs = {k: v for k, v in self._encoded[-1][0].items() if k in KEPT}
        key = tuple((name, str(value)) for name, value in kwargs.items())
        if key not in self._null:
            parts = [n for n in ("text_encoder", "text_encoder_2") if hasattr(self.pipe, n)]
            if absent := [name for name in parts if getattr(self.pipe, name) is None]:
                raise InputError(
                    f"the guidance asks for the null prompt {self.null!r}, and this pipeline has "
                    f"no {absent[0]} to encode it: give the call negative_prompt_embeds, "
                    "negative_pooled_prompt_embeds and true_cfg_scale > 1"
                )
            self._null[key] = self._encode(prompt=self.null, **kwargs)
        return self._null[key]

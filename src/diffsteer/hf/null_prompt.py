"""Null prompt of pipelines that never send both conditions in one call of the network."""

import inspect
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.hooks import Replaced, replaced
from diffsteer.hf.step_calls import Call

KEPT = frozenset({"device", "max_sequence_length", "lora_scale"})
"""Settings of encoding; the null prompt is encoded in the same way as the prompt."""


class Prompts:
    """Watches a pipeline encode its prompt, and has it encode the null prompt likewise.

    The null prompt is encoded when a guidance first asks for it, and kept.

    Args:
        pipe: The pipeline.
        null: The null prompt.
        names: Arguments of the network that `encode_prompt` returns, in order.
    """

    def __init__(self, pipe: Any, null: str, names: tuple[str, ...]) -> None:
        self.pipe, self.null, self.names = pipe, null, names
        self._encode = pipe.encode_prompt
        self._kwargs: dict[str, Any] | None = None
        self._null: dict[Any, tuple[Tensor, ...]] = {}

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encode as the pipeline does, and take note of it."""
        bound = inspect.signature(self._encode).bind(*args, **kwargs)
        bound.apply_defaults()
        self._kwargs = {k: v for k, v in bound.arguments.items() if k in KEPT}
        return self._encode(*args, **kwargs)

    def noting(self) -> Replaced:
        """Replacement of `encode_prompt` that takes note of how it encodes."""
        return replaced(self.pipe, "encode_prompt", self.encode)

    def of(self, first: Call, now: Call) -> Call:
        """Call for the null prompt, of a call for the prompt."""
        arguments, rows = now.arguments, len(now.inputs)
        if "ip_adapter_image_embeds" in (arguments.get("joint_attention_kwargs") or {}):
            raise InputError(
                "the guidance asks for the null prompt, and this pipeline says what its image "
                "prompt (IP-Adapter) is without one only later: guide without CFG, or without it"
            )
        null = dict(zip(self.names, self._encoded_null(), strict=False))
        for name, value in null.items():
            if len(value) == 1 and len(arguments[name]) == rows:
                null[name] = value.expand(rows, *value.shape[1:])
        return replace(now, arguments={**arguments, **null}, out=None)

    def _encoded_null(self) -> tuple[Tensor, ...]:
        """Embeddings of the null prompt, `(1, ...)` each."""
        if self._kwargs is None:
            raise InputError(
                "the guidance asks for the null prompt, and this network was called without a "
                "prompt of its pipeline: call the pipeline"
            )
        key = tuple((name, str(value)) for name, value in self._kwargs.items())
        if key not in self._null:
            parts = [n for n in ("text_encoder", "text_encoder_2") if hasattr(self.pipe, n)]
            if absent := [name for name in parts if getattr(self.pipe, name) is None]:
                raise InputError(
                    f"the guidance asks for the null prompt {self.null!r}, and this pipeline has "
                    f"no {absent[0]} to encode it: give the call negative_prompt_embeds, "
                    "negative_pooled_prompt_embeds and true_cfg_scale > 1"
                )
            self._null[key] = self._encode(prompt=self.null, **self._kwargs)
        return self._null[key]

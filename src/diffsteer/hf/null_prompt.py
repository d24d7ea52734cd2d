"""The null prompt of pipelines that never send both halves in one call of the network."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.denoiser import Cond

KEPT = frozenset({"device", "max_sequence_length", "lora_scale"})
"""How to encode; the null prompt is encoded in the same way as the prompt."""


class Prompts:
    """Watches a pipeline encode its prompts, so that a call can be told by what it was given.

    A pipeline with a negative prompt and true guidance encodes both, and calls the network for the
    one and then for the other. Without, `null` is encoded by the pipeline itself when a guidance
    first asks for it, and kept.

    Args:
        pipe: The pipeline; its `encode_prompt` is wrapped until `remove`.
        null: The null prompt, unless a call has a negative prompt.
        names: Arguments of the network that `encode_prompt` returns, in order.
    """

    def __init__(self, pipe: Any, null: str, names: tuple[str, ...]) -> None:
        self.pipe, self.null, self.names = pipe, null, names
        self._own = pipe.__dict__.get("encode_prompt")
        self._encode = pipe.encode_prompt
        self._seen: list[tuple[dict[str, Any], tuple[Tensor, ...]]] = []
        self._asked = False
        self._prompt: int | None = None
        self._kept: dict[Any, tuple[Tensor, ...]] = {}
        pipe.encode_prompt = self._watched

    def remove(self) -> None:
        """Give the pipeline its `encode_prompt` back."""
        if self._own is not None:
            self.pipe.encode_prompt = self._own
        else:
            self.pipe.__dict__.pop("encode_prompt", None)

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        found = self._encode(*args, **kwargs)
        if self._asked:  # what was seen before belongs to an earlier sampling
            self._seen, self._asked, self._prompt = [], False, None
        said = inspect.signature(self._encode).bind(*args, **kwargs)
        said.apply_defaults()
        self._seen.append((said.arguments, found))
        return found

    def is_null(self, said: Cond) -> bool:
        """Whether this call of the network is for the negative prompt.

        Raises:
            ValueError: the pipeline sent something else than what it encoded.
        """
        self._asked = True
        mine = [i for i, (_, found) in enumerate(self._seen) if found[0] is said[self.names[0]]]
        if not mine and self._prompt is None and len(self._seen) > 1:
            raise InputError(
                f"{type(self.pipe).__name__} encoded {len(self._seen)} prompts and sent another "
                "embedding to the network, so that its calls cannot be told apart: call it without "
                "its own guidance (true_cfg_scale=1) and give steer(..., null=...)"
            )
        if mine and self._prompt is not None and mine[-1] == self._prompt + 1:
            return True
        if mine:
            self._prompt = mine[-1]
        return False

    def null_of(self, said: Cond, batch: int) -> Mapping[str, Any]:
        """The arguments of a call for the prompt, turned into those for the null prompt.

        Raises:
            ValueError: there is no way to have it.
        """
        if "ip_adapter_image_embeds" in (said.get("joint_attention_kwargs") or {}):
            raise InputError(
                "the guidance asks for the null prompt, and this pipeline says what its image "
                "prompt (IP-Adapter) is without one only later: guide without CFG, or without it"
            )
        following = self._seen[self._prompt + 1 :] if self._prompt is not None else []
        found = following[0][1] if following else self._encoded()
        null = dict(zip(self.names, found, strict=False))
        for name, value in null.items():
            if len(value) == 1 and len(said[name]) == batch:
                null[name] = value.expand(batch, *value.shape[1:])
        return {**said, **null}

    def _encoded(self) -> tuple[Tensor, ...]:
        """The null prompt, `(1, ...)` each."""
        if not self._seen:
            raise InputError(
                "the guidance asks for the null prompt, and this network was called without a "
                "prompt of its pipeline: call the pipeline"
            )
        wanted = {k: v for k, v in self._seen[-1][0].items() if k in KEPT}
        key = tuple((name, str(value)) for name, value in wanted.items())
        if key not in self._kept:
            parts = [n for n in ("text_encoder", "text_encoder_2") if hasattr(self.pipe, n)]
            if absent := [name for name in parts if getattr(self.pipe, name) is None]:
                raise InputError(
                    f"the guidance asks for the null prompt {self.null!r}, and this pipeline has "
                    f"no {absent[0]} to encode it: give the call negative_prompt_embeds, "
                    "negative_pooled_prompt_embeds and true_cfg_scale > 1"
                )
            self._kept[key] = self._encode(prompt=self.null, **wanted)
        return self._kept[key]

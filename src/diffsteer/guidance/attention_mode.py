"""Interception of `scaled_dot_product_attention` while a layer runs."""

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Arguments of scaled_dot_product_attention that may come by place."""


class AttentionMode(TorchFunctionMode, ABC):
    """Answers the calls of scaled_dot_product_attention in a layer."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, rest: dict[str, Any]) -> Tensor:
        """Answer a call with queries, keys and values, `(rows, heads, tokens, channels)`."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        kwargs |= dict(zip(NAMES, args, strict=False))
        q, k, v = (kwargs.pop(name) for name in NAMES[:3])
        return self.attend(q, k, v, kwargs)

    def hook(self, layer: nn.Module, stack: ExitStack) -> None:
        """Act while a layer runs, until the stack is closed."""

        def enter(*_: Any) -> None:
            self.__enter__()  # type: ignore[no-untyped-call]

        def leave(*_: Any) -> None:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        stack.callback(layer.register_forward_pre_hook(enter).remove)
        stack.callback(layer.register_forward_hook(leave, always_call=True).remove)

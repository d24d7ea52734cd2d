"""EDM2 with its preconditioning, and its stored form.

Written from the paper's description, with the weight names and shapes of the published files.

Source: Karras et al. 2024, app. B, https://arxiv.org/abs/2312.02696.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.guidance.denoiser import Cond, Network
from diffsteer.io.model_folder import read_model, write_model
from diffsteer.io.strict import refused
from diffsteer.models.edm2.config import FORMAT, architecture_of, check_encoder
from diffsteer.models.edm2.magnitude import MPConv, MPFourier
from diffsteer.models.edm2.unet import Block, UNet


class EDM2(nn.Module):
    """Denoiser of images or latents; before training it returns c_skip x.

    Computes in float32, or in float64 where the weights are float64. On a GPU with `use_fp16` the
    blocks run in float16, and preconditioning and embedding in float32.

    Weights in float16 are upcast before use, which is exact except for the gains: the factor
    gain / sqrt(fan in) is rounded to the dtype of the gain, as in official sampling. So
    `net.half()` is bit-exactly the official behaviour, and `net.float()` rounds nothing.

    Args:
        img_resolution: Side of the image.
        img_channels: Channels of the image.
        label_dim: Number of classes; 0 is unconditional and ignores labels.
        model_channels: Channels at multiplier 1.
        channel_mult: Channel multiplier of each level; each level halves the sides.
        num_blocks: Residual blocks per level; the decoder has one more.
        attn_resolutions: Sides of the levels with self-attention.
        channels_per_head: Channels of an attention head.
        dropout: Dropout probability in training, in [0, 1[.
        sigma_data: Standard deviation of the data.
        logvar_channels: Width of the uncertainty head.
        use_fp16: Whether a GPU computes in float16.

    Attributes:
        config: All arguments, by name.
        shape: Shape of one sample, `(C, H, W)`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        use_fp16: bool = True,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        sides = {k: arguments[k] for k in ("channel_mult", "attn_resolutions")}
        lists = {k: v if isinstance(v, str | int) else list(v) for k, v in sides.items()}
        self.config: dict[str, Any] = arguments | lists
        self.label_dim, self.sigma_data, self.use_fp16 = label_dim, sigma_data, use_fp16
        self.shape = (img_channels, img_resolution, img_resolution)
        self.unet = UNet(architecture_of(self.config))
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        precision: Literal["official-bit", "f32-clean"] = "f32-clean",
        device: torch.device | str = "cpu",
    ) -> "EDM2":
        """Load a folder that `diffsteer convert edm2` or `diffsteer ema` wrote, for evaluation.

        Args:
            folder: Folder with `model.safetensors` and `config.json`.
            precision: "official-bit" keeps weights in float16 and rounds gains as official
                sampling does; "f32-clean" rounds nothing, and has channels last in memory, which
                saves a CPU a fifth of small networks.
            device: Device of the weights.

        Raises:
            InputError: the folder holds no such network, or `precision` is unknown.
        """
        if precision not in ("official-bit", "f32-clean"):
            raise InputError(f'precision must be "official-bit" or "f32-clean", got {precision!r}')
        return Checkpoint.load(Path(folder)).network(precision, device)

    def save(self, folder: Path | str) -> None:
        """Write a new folder that `load` reads."""
        Checkpoint(self.config, self.state_dict()).save(Path(folder))

    @override
    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        return_logvar: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Denoised images, `(B, C, H, W)`, in the dtype of the computation.

        Args:
            x: Noisy images, `(B, C, H, W)`.
            sigma: Noise level, > 0, 0-dim or `(B,)`.
            class_labels: One-hot, `(B, label_dim)` or `(1, label_dim)`; None is no class, zeros.
            return_logvar: Also return the log variance of the error, `(B, 1, 1, 1)`, by which the
                training loss weights.
        """
        x = self._upcast(x)
        sigma = self._sigma(sigma, x)
        out = self._out(x, sigma, class_labels)
        square = sigma**2 + self.sigma_data**2
        x0 = self.sigma_data**2 / square * x + sigma * self.sigma_data / square.sqrt() * out
        return (x0, self.uncertainty(sigma)) if return_logvar else x0

    def out(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Output in the sense of `Preconditioned(sigma_data)`, x0 = c_skip x + c_out out."""
        x = self._upcast(x)
        return self._out(x, self._sigma(sigma, x), class_labels)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """Log variance of the weighted error at noise levels: `(B, 1, 1, 1)`, for `(B,)`."""
        c_noise = _c_noise(self._upcast(sigma.to(self.logvar_linear.weight.device)))
        u: Tensor = self.logvar_linear(self.logvar_fourier(c_noise))
        return u.reshape(-1, 1, 1, 1)

    def _out(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Output of the inner network."""
        unit = 2 ** (len(self.config["channel_mult"]) - 1)  # crops have sides of whole units
        if x.ndim != 4 or x.shape[1] != self.shape[0] or any(n % unit for n in x.shape[2:]):
            raise InputError(
                f"x must have shape (B, *{self.shape}), or sides that are multiples of {unit}, got "
                f"{tuple(x.shape)}"
            )
        half = self.use_fp16 and x.is_cuda and x.dtype == torch.float32
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        inner = (c_in * x).to(torch.float16 if half else x.dtype)
        c_noise = _c_noise(sigma.to(x.device))
        out: Tensor = self.unet(inner, c_noise, self._labels(labels, x))
        return out.to(x.dtype)

    def _upcast(self, x: Tensor) -> Tensor:
        """Input in float32, or in float64 where the weights are."""
        return x.to(torch.promote_types(self.unet.out_conv.weight.dtype, torch.float32))

    def _sigma(self, sigma: Tensor | float, x: Tensor) -> Tensor:
        """Noise level in the dtype of `x`; 0-dim stays on its device, which needs no transfer."""
        sigma = torch.as_tensor(sigma).to(x.dtype)
        return sigma.reshape([]) if sigma.numel() == 1 else sigma.to(x.device).view(-1, 1, 1, 1)

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        if labels is None:
            return x.new_zeros(1, self.label_dim)
        if labels.ndim != 2 or labels.shape[1] != self.label_dim:
            raise InputError(
                f"labels must be one-hot, (B, {self.label_dim}), got shape {tuple(labels.shape)}"
            )
        return labels.to(x)

    def keep_weights(self) -> "EDM2":
        """Normalise weights once and not at every call, bit-exactly; for sampling.

        Holds until `train()` or `eval()`. Doubles the memory of the weights.
        """
        if self.training:
            self.eval()
        for module in self.modules():
            if isinstance(module, MPConv):
                module.keeps = True
        return self


@dataclass(frozen=True)
class Checkpoint:
    """Stored form of an EDM2 network.

    Attributes:
        config: Arguments of `EDM2`.
        tensors: Weights and buffers by name.
        about: Metadata: "encoder", from images to data of the network, and the source.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise InputError unless config, tensors and encoder fit; allocates nothing."""
        self._empty_network()
        if (encoder := self.about.get("encoder")) is not None:
            check_encoder(encoder, self.config["img_channels"])

    def network(self, precision: str, device: torch.device | str) -> EDM2:
        """Network for evaluation; arguments as `EDM2.load`."""
        net = self._empty_network()
        net.load_state_dict(dict(self.tensors), strict=True, assign=True)
        net.eval().to(device)
        if precision == "official-bit":
            return net.half()
        net.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    def save(self, folder: Path, over: bool = False) -> None:
        """Write a folder, all of it or nothing; `over` replaces one that exists."""
        self.check()
        content = {"config": dict(self.config), **self.about}
        write_model(folder, FORMAT, content, self.tensors, over)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read a folder.

        Raises:
            InputError: it does not hold an EDM2 network.
        """
        with refused(f"{folder} is no EDM2 network"):
            about, tensors = read_model(folder, FORMAT)
            checkpoint = cls(about.pop("config"), tensors, about)
            checkpoint.check()
        return checkpoint

    def _empty_network(self) -> EDM2:
        """Network on the meta device, of whose tensors ours have names and shapes."""
        try:
            with torch.device("meta"):
                net = EDM2(**self.config)
        except TypeError as error:
            raise InputError(f"config of another network: {error}") from error
        expected = {name: tuple(t.shape) for name, t in net.state_dict().items()}
        shapes = {name: tuple(t.shape) for name, t in self.tensors.items()}
        for name in (*expected, *shapes):
            if expected.get(name) != shapes.get(name):
                raise InputError(
                    f"{name[:100]} has shape {shapes.get(name)} in the file and "
                    f"{expected.get(name)} in the network that its config describes"
                )
        for name, t in self.tensors.items():
            if not t.is_floating_point():
                raise InputError(f"{name} must be floating point, got {t.dtype}")
        return net


def network(net: EDM2) -> Network:
    """Network for a `Denoiser` with `Preconditioned(net.sigma_data)` and `EDM()`.

    Conditions are {"labels": one-hot}; {"labels": zeros} is the null condition of CFG. For one
    network in two roles put one `Network` under two names, so that both share a forward pass. Sets
    `net` to evaluation, with weights normalised once (`keep_weights`).
    """
    net.keep_weights()

    def call(x: Tensor, level: Level, cond: Cond) -> Tensor:
        if level.alpha != 1:
            raise InputError(f"EDM2 needs noise levels of EDM(), alpha=1, got {level.alpha:g}")
        return net.out(x, level.sigma, cond.get("labels"))

    layers = {n: m for n, m in net.named_modules() if isinstance(m, Block) and m.heads}
    kept = {n: m for n, m in layers.items() if m.conv_skip is None and m.kind not in ("down", "up")}
    return Network(call, layers, blocks=kept)


def _c_noise(sigma: Tensor) -> Tensor:
    """Noise conditioning of the network, `(B or 1,)`."""
    return sigma.flatten().log() / 4

"""EDM2: the magnitude-preserving network of the best published diffusion models of ImageNet.

Written from the paper's description; the names and shapes of its weights are those of the published
files. The guide of autoguidance is a smaller one, or one less trained.

Source: Karras et al. 2024, app. B, https://arxiv.org/abs/2312.02696.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.guidance.denoiser import Cond, Network
from diffsteer.models.edm2.magnitude import MPConv, MPFourier
from diffsteer.models.edm2.unet import Block, UNet


class EDM2(nn.Module):
    """A denoiser of images, latent ones too; before training it returns c_skip x.

    Computes in float32, or in float64 where the weights are float64. On a GPU with `use_fp16` the
    blocks run in float16, and preconditioning and embedding in float32.

    Weights in float16 are widened before they are used, which is exact, but for the gains: the
    factor gain / sqrt(fan in) is rounded to the dtype of the gain, as published samples had it. So
    `net.half()` is bit for bit the official behaviour, and `net.float()` the one without rounding.

    Args:
        img_resolution: Side of the image.
        img_channels: Its channels.
        label_dim: Number of classes; 0 is unconditional and ignores labels.
        model_channels: Width of the first level.
        channel_mult: Width of each level in these units; each level halves the sides.
        num_blocks: Residual blocks a level; the decoder has one more.
        attn_resolutions: Sides at which blocks attend.
        channels_per_head: Channels of an attention head.
        dropout: Share of activations that training drops.
        sigma_data: Standard deviation of the data.
        logvar_channels: Width of the uncertainty head.
        use_fp16: Whether a GPU computes in float16.

    Attributes:
        config: All of these, by name.
        shape: Of one sample, `(C, H, W)`.

    Raises:
        ValueError: the numbers fit no network.
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
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        lists = {k: list(given[k]) for k in ("channel_mult", "attn_resolutions")}
        self.config: dict[str, Any] = given | lists
        _check(self.config)
        self.label_dim, self.sigma_data, self.use_fp16 = label_dim, sigma_data, use_fp16
        self.shape = (img_channels, img_resolution, img_resolution)
        outer = ("sigma_data", "logvar_channels", "use_fp16")
        self.unet = UNet(**{k: v for k, v in self.config.items() if k not in outer})
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
            folder: With `model.safetensors` and `config.json`.
            precision: "official-bit" keeps weights in float16 and rounds gains as published samples
                had it; "f32-clean" rounds nothing.
            device: Where the weights go.

        Raises:
            ValueError: the folder holds no such network, or `precision` is no such word.
        """
        from diffsteer.models.edm2.folder import Stored

        if precision not in ("official-bit", "f32-clean"):
            raise InputError(f'precision={precision!r}: there are "official-bit" and "f32-clean"')
        net = Stored.load(Path(folder)).network().to(device)
        return net.half() if precision == "official-bit" else net.float()

    def save(self, folder: Path | str) -> None:
        """Write a folder that `load` reads; it must not be there yet."""
        from diffsteer.models.edm2.folder import Stored

        Stored(self.config, self.state_dict()).save(Path(folder))

    @overload
    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = ...,
        return_logvar: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = ...,
        *,
        return_logvar: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @override
    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        return_logvar: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Denoise.

        Args:
            x: Noisy images, `(B, C, H, W)`.
            sigma: Noise level, > 0, 0-dim or `(B,)`.
            class_labels: One-hot, `(B, label_dim)` or `(1, label_dim)`; None is no class, zeros.
            return_logvar: Whether to return also the log variance of the error, `(B, 1, 1, 1)`,
                which the training loss weighs by.

        Returns:
            The denoised images, `(B, C, H, W)`, in the dtype that it computes in.
        """
        x = self._widened(x)
        sigma = self._level(sigma, x)
        out = self._out(x, sigma, class_labels)
        square = sigma**2 + self.sigma_data**2
        x0 = self.sigma_data**2 / square * x + sigma * self.sigma_data / square.sqrt() * out
        return (x0, self.uncertainty(sigma)) if return_logvar else x0

    def out(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Return the output that `Preconditioned(sigma_data)` means, x0 = c_skip x + c_out out."""
        x = self._widened(x)
        return self._out(x, self._level(sigma, x), class_labels)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """Log variance of the weighted error at noise levels: `(B, 1, 1, 1)`, for `(B,)`."""
        c_noise = _c_noise(self._widened(sigma.to(self.logvar_linear.weight.device)))
        u: Tensor = self.logvar_linear(self.logvar_fourier(c_noise))
        return u.reshape(-1, 1, 1, 1)

    def _out(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Output of the inner network."""
        if x.shape[1:] != self.shape:
            raise InputError(f"x has shape {tuple(x.shape)}, the network takes (B, *{self.shape})")
        half = self.use_fp16 and x.is_cuda and x.dtype == torch.float32
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        inner = (c_in * x).to(torch.float16 if half else x.dtype)
        c_noise = _c_noise(sigma.to(x.device))
        out: Tensor = self.unet(inner, c_noise, self._labels(labels, x))
        return out.to(x.dtype)

    def _widened(self, x: Tensor) -> Tensor:
        """The input in float32, or in float64 where the weights are."""
        return x.to(torch.promote_types(self.unet.out_conv.weight.dtype, torch.float32))

    def _level(self, sigma: Tensor | float, x: Tensor) -> Tensor:
        """Noise level in the dtype of `x`: 0-dim where it is, which costs no transfer."""
        sigma = torch.as_tensor(sigma).to(x.dtype)
        return sigma.reshape([]) if sigma.numel() == 1 else sigma.to(x.device).view(-1, 1, 1, 1)

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        if labels is None:
            return x.new_zeros(1, self.label_dim)
        if labels.ndim != 2 or labels.shape[1] != self.label_dim:
            raise InputError(
                f"labels have shape {tuple(labels.shape)}: one-hot (B, {self.label_dim}) is wanted"
            )
        return labels.to(x)

    def keep_weights(self) -> "EDM2":
        """Normalise weights once and not at every call, with the same bits; for sampling.

        Holds until `train()` or `eval()`. Takes the memory of the weights once more.
        """
        if self.training:
            self.eval()
        for module in self.modules():
            if isinstance(module, MPConv):
                module.keeps = True
        return self


def network(net: EDM2) -> Network:
    """The network as a `Denoiser` calls it, with `Preconditioned(net.sigma_data)` and `EDM()`.

    Conditions are {"labels": one-hot}; {"labels": zeros} is the null condition of CFG. One network
    in two roles is one `Network` under two names, so that its rows share a pass. Sets `net` to
    evaluation, with weights normalised once (`keep_weights`).
    """
    net.keep_weights()

    def call(x: Tensor, level: Level, cond: Cond) -> Tensor:
        if level.alpha != 1:
            raise InputError(f"EDM2 knows levels of EDM(), alpha=1, not alpha={level.alpha:g}")
        return net.out(x, level.sigma, cond.get("labels"))

    layers = {n: m for n, m in net.named_modules() if isinstance(m, Block) and m.heads}
    return Network(call, layers)


def _c_noise(sigma: Tensor) -> Tensor:
    """What the network is told of noise levels, `(B or 1,)`."""
    return sigma.flatten().log() / 4


def _check(config: dict[str, Any]) -> None:
    """Refuse numbers of which no network can be made, or one beyond all reason."""
    whole = {"label_dim": 10**6, "img_resolution": 4096, "img_channels": 1024, "num_blocks": 64}
    whole |= {"model_channels": 8192, "channels_per_head": 8192, "logvar_channels": 8192}
    for name, most in whole.items():
        least = 0 if name == "label_dim" else 1
        value = config[name]
        if type(value) is not int or not least <= value <= most:
            raise InputError(f"EDM2: {name}={value!r} must be a whole number, {least} to {most}")
    if type(config["use_fp16"]) is not bool:
        raise InputError(f"EDM2: use_fp16={config['use_fp16']!r} must be True or False")
    for name in ("channel_mult", "attn_resolutions"):
        if not all(type(v) is int and 0 < v <= 4096 for v in config[name]):
            raise InputError(f"EDM2: {name}={config[name]!r} must hold whole numbers > 0")
    levels, side = len(config["channel_mult"]), config["img_resolution"]
    if not 1 <= levels <= 12 or side % 2 ** (levels - 1):
        raise InputError(f"EDM2: {side} pixels cannot be halved {levels - 1} times")
    for name in ("dropout", "sigma_data"):
        value = config[name]
        if type(value) not in (int, float) or not 0 <= value < (1 if name == "dropout" else 1e6):
            raise InputError(f"EDM2: {name}={value!r} cannot be")
    if config["sigma_data"] == 0:
        raise InputError("EDM2: sigma_data=0 is no standard deviation")

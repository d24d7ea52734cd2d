"""Networks and pipelines of no one's, in three forms that diffusers' own have.

Each network can leave out what perturbed attention guidance leaves out (`perturbed`), in code of
its own, so that what `steer` does has something to be equal to.
"""

from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

TEXT = 6


class TokenAttnProcessor:
    """Joint attention of image and text in one sequence, through diffusers' dispatcher."""

    def __call__(self, attn: Any, x: Tensor, count: int) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, -1)) for y in attn.to_qkv(x).chunk(3, dim=-1))
        mask = None
        if attn.perturbed:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            mask[:count, :count] = torch.eye(count, dtype=torch.bool)
        return self.attend(q, k, v, mask, count).flatten(2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, count: int) -> Tensor:
        return dispatch_attention_fn(q, k, v, attn_mask=mask)


class SampleAttnProcessor(TokenAttnProcessor):
    """The same, of one sample after another."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, count: int) -> Tensor:
        rows = zip(q.split(1), k.split(1), v.split(1), strict=True)
        return torch.cat([dispatch_attention_fn(*row, attn_mask=mask) for row in rows])


class TextAttnProcessor(TokenAttnProcessor):
    """Attention of the text to itself, and then of the image to both."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, count: int) -> Tensor:
        text = dispatch_attention_fn(q[:, count:], k[:, count:], v[:, count:])
        mask = None if mask is None else mask[:count]
        return torch.cat([dispatch_attention_fn(q[:, :count], k, v, attn_mask=mask), text], dim=1)


PROCESSORS = {"": TokenAttnProcessor, "each": SampleAttnProcessor, "text": TextAttnProcessor}
"""How tokens attend, by the calls of a layer."""


class TokenAttention(nn.Module):
    """Fused projections, without `to_q`."""

    perturbed = False

    def __init__(self, channels: int, calls: str) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.processor = PROCESSORS[calls]()

    def forward(self, x: Tensor, count: int) -> Tensor:
        return self.processor(self, x, count)


class Grid(nn.Module):
    """Self-attention of an image's pixels and attention to a text."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = {"heads": 2, "dim_head": channels // 2}
        self.own = Attention(channels, **heads)
        self.text = Attention(channels, cross_attention_dim=TEXT, **heads)
        self.perturbed = False

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        seen = x.flatten(2).transpose(1, 2)
        own = self.own
        value = own.to_out[0](own.to_v(seen)) if self.perturbed else own(seen)
        seen = seen + value
        return (seen + self.text(seen, text)).transpose(1, 2).unflatten(2, x.shape[2:])


class OddUNet(ModelMixin, ConfigMixin):
    """Like a UNet: convolutions, halved in the middle."""

    @register_to_config
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, channels, 2, stride=2)
        self.blocks = nn.ModuleList(Grid(channels) for _ in range(3))
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_out = nn.Conv2d(channels, 4, 3, padding=1)
        self.time = nn.Linear(1, channels)

    def forward(self, noisy: Tensor, words: Tensor, moment: Tensor, timestep: Tensor) -> Any:
        h = self.conv_in(noisy) + self.time(timestep[:, None].to(noisy))[:, :, None, None]
        h = self.blocks[0](h, words)
        h = h + self.up(self.blocks[1](self.down(h), words))
        return (self.conv_out(torch.tanh(self.blocks[2](h, words))) + moment,)


class OddTokens(ModelMixin, ConfigMixin):
    """Packed patches before their text in one sequence."""

    @register_to_config
    def __init__(self, channels: int = 8, calls: str = "") -> None:
        super().__init__()
        self.into, self.text = nn.Linear(16, channels), nn.Linear(TEXT, channels)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attn": TokenAttention(channels, calls)}) for _ in "123"
        )
        self.out, self.time = nn.Linear(channels, 16), nn.Linear(1, channels)

    def forward(self, patches: Tensor, t: Tensor, caption: Tensor, img_ids: Tensor) -> dict:
        count = patches.shape[1]
        h = self.into(patches) + self.time(t[:, None].to(patches))[:, None]
        h = h + torch.sin(img_ids.to(h)).sum(dim=-1)[None, :, None]
        h = torch.cat([h, self.text(caption)], dim=1)
        for layer in self.layers:
            h = h + torch.tanh(layer["attn"](h, count))
        return {"sample": self.out(h[:, :count])}


class OddVideo(ModelMixin, ConfigMixin):
    """Attention within each frame, frames in the batch."""

    @register_to_config
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(4, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Grid(channels) for _ in range(2))
        self.conv_out = nn.Conv3d(channels, 4, 3, padding=1)

    def forward(self, sample: Tensor, encoder_hidden_states: Tensor, timestep: Tensor) -> Tensor:
        h = self.conv_in(sample) + timestep.to(sample)[:, None, None, None, None]
        frames, count = h.shape[2], len(h)
        for block in self.blocks:
            x = h.transpose(1, 2).flatten(0, 1)
            x = block(x, encoder_hidden_states.repeat_interleave(frames, dim=0))
            h = h + x.unflatten(0, (count, frames)).transpose(1, 2)
        return self.conv_out(torch.tanh(h))


class Odd(DiffusionPipeline):
    """What the three pipelines share."""

    def __init__(self, model: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=model, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    def steps(self, latents: Tensor, predict: Any) -> Tensor:
        self.scheduler.set_timesteps(3)
        with torch.no_grad(), self.progress_bar(total=3):
            for t in self.scheduler.timesteps:
                out = predict(latents, t)
                latents = self.scheduler.step(out, t, latents, return_dict=False)[0]
        return latents


class BatchedPipeline(Odd):
    """Pattern A, the prompt first, the time from the clean end, and the output negated."""

    def __call__(self, latents: Tensor, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            both, time = torch.cat([x, x]), (1 - t / 1000).expand(2 * len(x))
            words = torch.cat([cond, null])
            (out,) = self.transformer(both, words, moment=0.1 * both.mean(), timestep=time)
            c, n = (-out).chunk(2)
            return n + scale * (c - n)

        return self.steps(latents, predict)


class PackedPipeline(Odd):
    """Pattern B, the null prompt first, texts of two lengths."""

    def __call__(self, latents: Tensor, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        ids = torch.cartesian_prod(torch.arange(4), torch.arange(4))

        def predict(x: Tensor, t: Tensor) -> Tensor:
            time = (t / 1000).expand(len(x))
            n, c = (
                self.transformer(x, time, caption=e, img_ids=ids)["sample"] for e in (null, cond)
            )
            return c + (scale - 1) * (c - n)

        return self.steps(latents, predict)


class VideoPipeline(Odd):
    """Pattern B, the prompt first."""

    def __call__(self, latents: Tensor, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            c, n = (self.transformer(x, e, timestep=t.expand(len(x))) for e in (cond, null))
            return n + scale * (c - n)

        return self.steps(latents, predict)


PACKED = (PackedPipeline, (2, 16, 16), (5, 3), "layers", "layers.1")
CASES = {
    "unet": (OddUNet, BatchedPipeline, (2, 4, 8, 8), (5, 5), "blocks", "blocks.1"),
    "tokens": (OddTokens, *PACKED),
    "tokens of each": (partial(OddTokens, calls="each"), *PACKED),
    "tokens, text": (partial(OddTokens, calls="text"), *PACKED),
    "video": (OddVideo, VideoPipeline, (2, 4, 3, 8, 8), (5, 5), "blocks", "blocks.1"),
}
"""Network, pipeline, latents, lengths of both texts, blocks, and the layer that PAG perturbs."""


def made(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A pipeline of random weights in float64, and its call."""
    network, pipeline, shape, lengths, *_ = CASES[name]
    torch.manual_seed(0)
    pipe = pipeline(network().double().eval(), FlowMatchEulerDiscreteScheduler(shift=3.0))
    for parameter in pipe.transformer.parameters():
        torch.nn.init.normal_(
            parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        )
    cond, null = (torch.randn(shape[0], n, TEXT, dtype=torch.float64) for n in lengths)
    return pipe, {"latents": torch.randn(shape, dtype=torch.float64), "cond": cond, "null": null}

"""ADM and IDDPM networks as diffusers' UNet2DModel, where that computes the same."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.models.adm.blocks import Attention, ResBlock
from diffsteer.models.adm.flags import Flags
from diffsteer.models.adm.unet import ADM

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def why_not(flags: Flags) -> str | None:
    """What of a network UNet2DModel cannot express, or None.

    It takes the width of its time features from the first resolution, and gives every attention
    layer heads of one number of channels.
    """
    if flags.widths[0] != flags.num_channels:
        return f"time features of {flags.num_channels} channels, a first block of {flags.widths[0]}"
    sizes = {width // flags.heads(width, up) for width, up in _attended(flags)}
    if len(sizes) > 1:
        return f"attention heads of {sorted(sizes)} channels in one network"
    return None


def _attended(flags: Flags) -> Iterator[tuple[int, bool]]:
    """Channels of each attention layer, and whether it is on the way up."""
    yield flags.widths[-1], False
    for depth, width in enumerate(flags.widths):
        if 2**depth in flags.rates:
            yield width, False
            yield width, True


def to_unet2d(net: ADM) -> Any:
    """Make a UNet2DModel with the weights of an ADM or IDDPM network.

    A learned variance stays in its output channels: give the pipeline a scheduler with
    variance_type="learned_range". Rescaled timesteps (`rescale_timesteps`) are the pipeline's.
    """
    flags = net.flags
    reason = why_not(flags)
    if reason is not None:
        raise InputError(f"UNet2DModel cannot express this network: {reason}")
    from diffusers import UNet2DModel

    width = flags.widths[-1]
    unet = UNet2DModel(
        sample_size=flags.image_size,
        in_channels=3,
        out_channels=6 if flags.learn_sigma else 3,
        block_out_channels=flags.widths,
        layers_per_block=flags.num_res_blocks,
        down_block_types=_kinds(flags, "Down"),
        up_block_types=_kinds(flags, "Up")[::-1],
        downsample_type="resnet" if flags.resblock_updown else "conv",
        upsample_type="resnet" if flags.resblock_updown else "conv",
        resnet_time_scale_shift="scale_shift" if flags.use_scale_shift_norm else "default",
        attention_head_dim=width // flags.heads(width),
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        dropout=flags.dropout,
        num_class_embeds=flags.num_classes if flags.class_cond else None,
    )
    unet.load_state_dict(dict(_tensors(net)))
    return unet.eval().requires_grad_(False)


def _kinds(flags: Flags, way: str) -> tuple[str, ...]:
    """Names of diffusers' blocks at each resolution, from full down."""
    plain = f"{way}Block2D"
    if flags.resblock_updown:
        plain = f"Resnet{way}sampleBlock2D"
    depths = range(len(flags.widths))
    return tuple(f"Attn{way}Block2D" if 2**d in flags.rates else plain for d in depths)


def _tensors(net: ADM) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its name in UNet2DModel."""
    for place, layer in _layers(net):
        if isinstance(layer, Attention):
            yield from _attention(layer, place)
        elif isinstance(layer, ResBlock):
            for theirs, ours in RESNET.items():
                yield from _named(f"{place}.{theirs}", layer.get_submodule(ours))
        elif hasattr(layer, "op"):
            yield from _named(f"{place}.conv", layer.get_submodule("op"))
        else:
            yield from _named(place, layer)


def _named(place: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for kind, value in layer.state_dict().items():
        yield f"{place}.{kind}", value


def _attention(layer: Attention, place: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of an attention layer, its queries, keys and values apart."""
    yield from _named(f"{place}.group_norm", layer.norm)
    for kind, both in layer.qkv.state_dict().items():
        shape = (3, layer.heads, -1) if layer.new_order else (layer.heads, 3, -1)
        rows = both.view(*shape, *both.shape[1:]).unbind(0 if layer.new_order else 1)
        for name, part in zip("qkv", rows, strict=True):
            yield f"{place}.to_{name}.{kind}", part.reshape(len(both) // 3, *both.shape[1:2])
    for kind, value in layer.proj_out.state_dict().items():
        yield f"{place}.to_out.0.{kind}", value.reshape(value.shape[:2])


def _layers(net: ADM) -> Iterator[tuple[str, nn.Module]]:
    """Layers with weights by their place in UNet2DModel."""
    for theirs, ours in ENDS.items():
        if theirs != "class_embedding" or net.flags.class_cond:
            yield theirs, net.get_submodule(ours)
    middle = ("resnets.0", "attentions.0", "resnets.1")
    for theirs, layer in zip(middle, net.middle_block, strict=True):
        yield f"mid_block.{theirs}", layer
    each = net.flags.num_res_blocks + 1
    ways = (("down", "downsamplers", net.input_blocks[1:]), ("up", "upsamplers", net.output_blocks))
    for way, resized, stages in ways:
        for i, stage in enumerate(stages):
            level, place = divmod(i, each)
            for layer in stage.children():
                yield f"{way}_blocks.{level}.{_place(layer, place, resized)}", layer


def _place(layer: nn.Module, i: int, resized: str) -> str:
    """Where UNet2DModel keeps a layer within a block."""
    if isinstance(layer, Attention):
        return f"attentions.{i}"
    if isinstance(layer, ResBlock):
        return f"resnets.{i}" if layer.resize is None else f"{resized}.0"
    return f"{resized}.0"

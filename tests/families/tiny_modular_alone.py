"""Networks that modular pipelines alone run."""

from types import SimpleNamespace
from typing import Any

import torch

from families import tiny_video_separate
from families.parts import embeds, flow, network, prompt
from families.tiny_modular import NULL, SIZE, THOUSANDTH, family


def anima() -> Any:
    """Anima: a network of Cosmos, its text conditioner before it."""
    conditioner = network(
        "AnimaTextConditioner",
        source_dim=16,
        target_dim=16,
        model_dim=16,
        num_layers=1,
        num_attention_heads=2,
        mlp_ratio=1.0,
        target_vocab_size=16,
        min_sequence_length=8,
    )
    parts = {"transformer": tiny_video_separate.cosmos_network(16, 16), "scheduler": flow()}
    return SimpleNamespace(**parts, text_conditioner=conditioner)


def anima_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    mask = torch.ones(1, 5, dtype=torch.long)
    return {
        f"{prefix}qwen_prompt_embeds": embeds(seed, 1, 5, 16),
        f"{prefix}qwen_attention_mask": mask,
        f"{prefix}t5_input_ids": torch.arange(5)[None] + seed,
        f"{prefix}t5_attention_mask": mask,
    }


def flux3() -> Any:
    transformer = network(
        "Flux3Transformer2DModel",
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_channels=16,
        mlp_ratio=1.0,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return SimpleNamespace(transformer=transformer, scheduler=flow())


def minimax_music3() -> Any:
    """MiniMax Music 3, whose condition is the hidden states of a language model."""
    transformer = network(
        "MiniMaxMusic3Transformer1DModel",
        in_channels=4,
        condition_dim=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        ff_inner_dim=32,
        rotary_dim=8,
        fourier_embedding_dim=8,
    )
    encoder = network(
        "MiniMaxMusic3ConditionEncoder",
        condition_hidden_dim=8,
        num_condition_layers=2,
        out_dim=16,
        output_hop_length=1764,
    )
    parts = {"transformer": transformer, "scheduler": flow(), "condition_encoder": encoder}
    return SimpleNamespace(**parts)


FAMILIES = (
    family(
        "CosmosTransformer3DModel",
        "AnimaAutoBlocks",
        anima,
        SIZE | anima_prompt(1),
        anima_prompt(2, "negative_"),
        time=THOUSANDTH,
    ),
    family(
        "Flux3Transformer2DModel",
        "Flux3AutoBlocks",
        flux3,
        SIZE | prompt(1),
        NULL,
        time=THOUSANDTH,
    ),
    family(
        "MiniMaxMusic3Transformer1DModel",
        "MiniMaxMusic3Blocks",
        minimax_music3,
        {"frame_hiddens": embeds(1, 1, 8, 16), "output": "latent_chunks"},
        {},
    ),
)

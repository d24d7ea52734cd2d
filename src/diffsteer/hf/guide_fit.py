"""Checks that a guide, the second network of autoguidance, takes what the pipeline's takes."""

from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.families import known_family
from diffsteer.hf.network import sample_channels, unwrap_compiled
from diffsteer.hf.scheduler_config import same_times, trained

WIDTHS = ("cross_attention_dim", "joint_attention_dim", "caption_channels")
"""Settings of networks for the width of a text."""
CONDITIONED = frozenset(
    {
        *("addition_embed_type", "class_embed_type", "num_class_embeds", "num_embeds_ada_norm"),
        *("encoder_hid_dim", "projection_class_embeddings_input_dim", "pooled_projection_dim"),
        *("time_cond_proj_dim", "guidance_embeds", "in_channels"),
    }
)
"""Settings of networks for other conditions."""


def check_guide(network: Any, guide: Any) -> None:
    """Check that a guide takes what the network takes: it is of its class, with its inputs."""
    main, other = unwrap_compiled(network), unwrap_compiled(guide)
    family = known_family(main)
    if type(main) is not type(other) and (family is None or family is not known_family(other)):
        raise InputError(
            f"a guide of {type(other).__name__} cannot guide a {type(main).__name__}: both have to "
            "take the same latents and conditions"
        )
    if family is not None:
        (takes, returns), (others, back) = (
            (m.config.in_channels, sample_channels(m)) for m in (main, other)
        )
        if (takes, returns) != (others, back):
            raise InputError(
                f"the guide takes {others} channels and returns {back}, the network {takes} and "
                f"{returns}: both must see the same latents"
            )
    for width in WIDTHS:
        own, its = (getattr(m.config, width, None) for m in (main, other))
        if own != its:
            raise InputError(
                f"the guide reads text of width {its}, the network of width {own}: both must take "
                "the same prompt"
            )
    for name, value in main.config.items():
        inputs = name.endswith("channels") or "text" in name or "cross" in name or "joint" in name
        checked = name in CONDITIONED if family is not None else name in CONDITIONED or inputs
        if checked and other.config.get(name) != value:
            raise InputError(
                f"the guide has {name}={other.config.get(name)!r}, the network {value!r}: both "
                "must take the same latents and conditions"
            )


def check_residuals(main: Any, guide: Any, cond: Cond) -> None:
    """Check that what a ControlNet or adapter adds to the network's features fits the guide's."""
    residuals = [n for n in cond if "additional_residual" in n and cond[n] is not None]
    layouts = [
        [getattr(m.config, name, None) for name in ("block_out_channels", "layers_per_block")]
        for m in map(unwrap_compiled, (main, guide))
    ]
    if residuals and layouts[0] != layouts[1]:
        raise InputError(
            "the pipeline adds features of a ControlNet or adapter inside of its network, which "
            "do not fit a guide of another size: guide without it, or by a network of this size"
        )


def check_schedules(own: Any, other: Any) -> None:
    """Check that a guide's scheduler means the same output and the same times as the pipeline's.

    Args:
        own: Of the pipeline.
        other: Of the guide; None, as the other, where there is none to compare.
    """
    if own is None or other is None:
        return
    kinds = [s.config.get("prediction_type", "epsilon") for s in (own, other)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"the guide's scheduler says prediction_type={kinds[1]!r}, the pipeline's "
            f"{kinds[0]!r}: answers of both are subtracted, so both have to predict the same"
        )
    try:
        schedules = [trained(scheduler)[0] for scheduler in (own, other)]
    except InputError:
        return  # one of a kind that no schedule of ours describes
    if not same_times(*schedules):
        raise InputError(
            "the schedules of the guide and of the pipeline have other noise at the same timestep, "
            f"and both networks are asked at the same: got {schedules[1]} and {schedules[0]}. Take "
            "a guide that was trained on the pipeline's, or give its network alone"
        )

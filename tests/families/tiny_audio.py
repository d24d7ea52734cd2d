"""Audio, and the priors of image embeddings: samples without height and width."""

from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

from families import encoders
from families.parts import (
    TinyFamily,
    embeds,
    flow,
    kl_vae,
    network,
    pipeline,
    prompt,
    randomised,
    sampling,
)
from families.tiny_unet import SD, UNET, ddim


def oobleck() -> Any:
    return network(
        "AutoencoderOobleck",
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        sampling_rate=16,
    )


def stable_audio() -> Any:
    transformer = network(
        "StableAudioDiTModel",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        prediction_type="v_prediction", sigma_min=0.3, sigma_max=500, sigma_schedule="exponential"
    )
    return pipeline(
        "StableAudioPipeline",
        vae=oobleck(),
        text_encoder=None,
        projection_model=randomised(StableAudioProjectionModel(16, 16, 0, 32)),
        transformer=transformer,
        scheduler=scheduler,
    )


def stable_audio_3() -> Any:
    transformer = network(
        "StableAudio3DiTModel",
        io_channels=4,
        embed_dim=32,
        depth=2,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=5,
        timestep_features_dim=8,
        ff_mult=1.0,
        num_memory_tokens=2,
    )
    vae = network(
        "AutoencoderSAME",
        patch_size=4,
        encoder_channels=4,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=4,
        dim_heads=4,
        sampling_rate=64,
    )
    duration = network("StableAudio3DurationEmbedder", output_dim=16, fourier_dim=8)
    parts = {"transformer": transformer, "vae": vae, "duration_embedder": duration}
    return pipeline("StableAudio3Pipeline", scheduler=flow(), **parts)


def longcat_audio() -> Any:
    transformer = network(
        "LongCatAudioDiTTransformer",
        dit_dim=32,
        dit_depth=2,
        dit_heads=2,
        dit_text_dim=16,
        latent_dim=4,
        ff_mult=1.0,
    )
    vae = network(
        "LongCatAudioDiTVae",
        channels=4,
        c_mults=[1, 1],
        strides=[2],
        latent_dim=4,
        encoder_latent_dim=8,
        downsampling_ratio=2,
        sample_rate=16,
    )
    return pipeline(
        "LongCatAudioDiTPipeline",
        vae=vae,
        transformer=transformer,
        text_encoder=encoders.t5("UMT5EncoderModel", "UMT5Config"),
        tokenizer=encoders.spelling(),
        scheduler=flow(),
    )


def ace_step() -> Any:
    """ACE-Step, whose null condition is a parameter of the condition encoder (APG, not CFG)."""
    settings = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    transformer = network(
        "AceStepTransformer1DModel",
        **settings,
        num_hidden_layers=2,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
    )
    condition_encoder = network(
        "AceStepConditionEncoder",
        **settings,
        text_hidden_dim=16,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    condition_encoder.silence_latent = embeds(6, *condition_encoder.silence_latent.shape)
    return pipeline(
        "AceStepPipeline",
        transformer=transformer,
        condition_encoder=condition_encoder,
        text_encoder=encoders.decoder("Qwen3Model", "Qwen3Config"),
        tokenizer=encoders.spelling(64),
        scheduler=flow(num_train_timesteps=1),
    )


def audioldm2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

    settings = {k: v for k, v in UNET.items() if k != "cross_attention_dim"}
    unet = network(
        "AudioLDM2UNet2DConditionModel", **settings, cross_attention_dim=((None, 8, 16),) * 2
    )
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=32,
            sampling_rate=16,
            upsample_initial_channel=4,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
        )
    )
    parts = {"unet": unet, "vae": kl_vae(), "vocoder": vocoder.eval(), "scheduler": ddim(**SD)}
    words = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)
    parts |= {"language_model": GPT2LMHeadModel(words), "text_encoder_2": encoders.t5()}
    return pipeline("AudioLDM2Pipeline", **parts)


def audio_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    return prompt(seed, prefix) | {
        f"{prefix}generated_prompt_embeds": embeds(seed, 1, 3, 8),
        f"{prefix}attention_mask": torch.ones(1, 5),
    }


def prior() -> Any:
    """The prior of Kandinsky 2.2, whose samples are image embeddings."""
    network_ = network(
        "PriorTransformer",
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=16,
        num_embeddings=16,
        additional_embeddings=4,
        embedding_proj_dim=16,
    )
    scheduler = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000
    )
    return pipeline(
        "KandinskyV22PriorPipeline",
        prior=network_,
        scheduler=scheduler,
        text_encoder=encoders.clip_text(),
        tokenizer=encoders.spelling(),
        image_encoder=encoders.vision("CLIPVisionModelWithProjection"),
        image_processor=encoders.image_processor(),
    )


FAMILIES = (
    TinyFamily(
        "StableAudioDiTModel",
        "StableAudioPipeline",
        "A",
        stable_audio,
        lambda _: sampling(guidance_scale=1.0, audio_end_in_s=2.0, **prompt(1)),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
    ),
    TinyFamily(
        "StableAudio3DiTModel",
        "StableAudio3Pipeline",
        "A",
        stable_audio_3,
        lambda _: sampling(
            guidance_scale=1.0, duration=1.0, encoder_attention_mask=torch.ones(1, 5), **prompt(1)
        ),
        lambda _: (
            {"guidance_scale": 4.0, "negative_encoder_attention_mask": torch.ones(1, 5)}
            | prompt(2, "negative_")
        ),
    ),
    TinyFamily(
        "LongCatAudioDiTTransformer",
        "LongCatAudioDiTPipeline",
        "B",
        longcat_audio,
        lambda _: sampling(prompt="a cat", guidance_scale=1.0, audio_duration_s=1.0),
        lambda _: {"guidance_scale": 4.0},
        time="timestep = t / 1000",
    ),
    TinyFamily(
        "AceStepTransformer1DModel",
        "AceStepPipeline",
        "A",
        ace_step,
        lambda _: sampling(prompt="a cat", lyrics="la", audio_duration=1.0, guidance_scale=1.0),
        lambda _: {"guidance_scale": 4.0},
        weights=None,
    ),
    TinyFamily(
        "AudioLDM2UNet2DConditionModel",
        "AudioLDM2Pipeline",
        "A",
        audioldm2,
        lambda _: sampling(guidance_scale=1.0, audio_length_in_s=8.0, **audio_prompt(1)),
        lambda _: {"guidance_scale": 4.0} | audio_prompt(2, "negative_"),
    ),
    TinyFamily(
        "PriorTransformer",
        "KandinskyV22PriorPipeline",
        "A",
        prior,
        lambda _: sampling(prompt="a cat", guidance_scale=1.0, output_type="pt"),
        lambda _: {"guidance_scale": 4.0},
    ),
)

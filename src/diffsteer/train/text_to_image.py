"""Training the network of a Stable Diffusion pipeline, new or given, whole or by LoRA."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.generate.base import require_finite
from diffsteer.hf.load import load
from diffsteer.hf.scheduler_config import kind_of, schedule_of
from diffsteer.hf.weights import complete_weights, quiet
from diffsteer.io.strict import refused
from diffsteer.train.autoencoder import pixels
from diffsteer.train.latents import cached
from diffsteer.train.lora import add_lora, save_lora
from diffsteer.train.objective import Objective, clean, low_discrepancy, uniform_times
from diffsteer.train.settings import Pictures
from diffsteer.train.stream import Sample, Source
from diffsteer.train.task import Task, network_of_config, plain_attention, require_known
from diffsteer.train.vocabulary import tokenizer_for


@dataclass(frozen=True)
class TextToImageSettings:
    """Settings of `TextToImage`.

    Attributes:
        start: Folder or hub id of what training starts from, or "critters", "critters-eps": a
            Stable Diffusion pipeline, or an autoencoder alone where `unet` and `text` are new.
        unet: Config of a new diffusers `UNet2DConditionModel`; None goes on with that of `start`.
        text: Config of a new transformers `CLIPTextModel`, whose vocabulary is made from the
            captions and which is trained along; None keeps that of `start` as it is.
        scheduler: Settings that replace those of the scheduler of `start`. They say what the
            network learns: prediction_type, betas, rescale_betas_zero_snr.
        lora: Rank of a low-rank adaptation that is trained instead of all weights; 0 for none.
        alpha: Its scale times its rank; 0 for the rank, a scale of 1.
        cache: Encode every image once, before training.
        low_memory: Compute activations again in the backward pass.
    """

    start: str
    unet: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    lora: int = 0
    alpha: int = 0
    cache: bool = False
    low_memory: bool = False

    def __post_init__(self) -> None:
        if not self.start:
            raise InputError(
                "settings.start is empty: name the folder or hub id to start from, --model"
            )
        if self.start.count("/") > 1 and not Path(self.start).is_dir():
            raise FileNotFoundError(
                f"settings.start={self.start} is not there: train the preset that makes it first "
                "(`diffsteer train` lists them), or name another folder or hub id"
            )
        if self.text is not None and self.unet is None:
            raise InputError(
                "settings.text is of a new network: give settings.unet too, or neither"
            )
        if self.lora and self.unet is not None:
            raise InputError(
                "settings.lora adapts the network of settings.start: leave settings.unet out"
            )
        if self.lora < 0:
            raise InputError(
                f"settings.lora={self.lora} is no rank: give at least 1, or 0 for none"
            )
        if self.alpha and not self.lora:
            raise InputError(
                f"settings.alpha={self.alpha} scales a low-rank adaptation: give settings.lora, "
                "its rank, or leave it out"
            )


class TextToImage(Task):
    """The network, and a new text encoder, of a Stable Diffusion pipeline."""

    def __init__(self, settings: TextToImageSettings, captions: Sequence[str]) -> None:
        super().__init__()
        self.settings = settings
        self.pipe = _pipeline(settings, captions)
        self.unet: Any = self.pipe.unet.float()
        self.text_encoder: Any = self.pipe.text_encoder.float()
        self.vae: Any = self.pipe.vae.float().requires_grad_(False)
        self.text_encoder.requires_grad_(settings.text is not None)
        config = {"_class_name": type(self.pipe.scheduler).__name__, **self.pipe.scheduler.config}
        self.objective = Objective(schedule_of(config), kind_of(config))
        if settings.lora:
            layers = ["to_q", "to_k", "to_v", "to_out.0"]
            add_lora(self.unet, settings.lora, settings.alpha, layers)
        if settings.low_memory:
            self.unet.enable_gradient_checkpointing()

    @override
    def prepare(
        self, source: Source, cache: Path, alone: Callable[[Callable[[], None]], None]
    ) -> Source:
        if self.device.type == "cpu":
            plain_attention(self.unet)
        if self.settings.cache:
            return cached(source, cache, self.vae, self._encode, alone)
        return source

    @override
    def example(self, number: int, index: int, sample: Sample, seed: int) -> dict[str, Tensor]:
        x, kept, side = sample.pixels, sample.pixels.is_floating_point(), self.pipe.vae_scale_factor
        channels = self.vae.config.latent_channels
        shape = x.shape if kept else (channels, x.shape[-2] // side, x.shape[-1] // side)
        return {
            "ids": self._ids(sample.caption),
            "place": torch.tensor(low_discrepancy(number)),
            "latents" if kept else "pixels": x,
            "noise": torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
        }

    @override
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        x0 = batch["latents"] if "latents" in batch else self._encode(batch["pixels"])
        text = self.text_encoder(batch["ids"])[0]

        def net(x: Tensor, level: Level) -> Tensor:
            out: Tensor = self.unet(x, level.t.to(x.device), text, return_dict=False)[0]
            return out

        times = uniform_times(self.objective.schedule, batch["place"])
        losses = self.objective.losses(net, x0, batch["noise"], times)
        return {"loss": losses.mean()}

    @override
    @torch.no_grad()
    def pictures(self, how: Pictures) -> Tensor:
        """One image for each prompt, with its number as seed."""
        generators = [torch.Generator().manual_seed(i) for i in range(len(how.prompts))]
        call = {"guidance_scale": how.guidance, "num_inference_steps": how.steps}
        texts = list(how.prompts)
        drawn = self.pipe(texts, **call, generator=generators, output_type="pt").images
        return require_finite(range(len(drawn)), pixels(drawn * 2 - 1), drawn)

    @override
    def save(self, folder: Path) -> None:
        """Write the pipeline, or a LoRA with the scheduler that it was trained for."""
        if not self.settings.lora:
            self._ids("")  # a tokenizer that was used is saved otherwise than one that was not
            with quiet(bar=False):
                self.pipe.save_pretrained(folder)
            return
        save_lora(self.pipe, folder)
        self.pipe.scheduler.save_pretrained(folder / "scheduler")

    def _ids(self, caption: str) -> Tensor:
        longest = self.pipe.tokenizer.model_max_length
        pad = {"padding": "max_length", "truncation": True, "max_length": longest}
        ids: Tensor = self.pipe.tokenizer(caption, **pad, return_tensors="pt").input_ids[0]
        return ids

    @torch.no_grad()
    def _encode(self, pictures: Tensor) -> Tensor:
        """Latents of pixels uint8: the mean of each posterior, scaled as the network sees them."""
        x = clean(pictures.to(self.device))
        mean: Tensor = self.vae.encode(x).latent_dist.mean.float()
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return mean.sub(shift).mul(self.vae.config.scaling_factor)


def _pipeline(settings: TextToImageSettings, captions: Sequence[str]) -> Any:
    """The pipeline of `start`, with the parts that are new."""
    with quiet(bar=False):
        from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    known = list(inspect.signature(DDIMScheduler.__init__).parameters)[1:]
    require_known(settings.scheduler, known, "settings.scheduler")
    if settings.text is not None:
        parts = _new_parts(settings.start, settings.text, captions)
        parts["scheduler"] = network_of_config(
            DDIMScheduler, settings.scheduler, "settings.scheduler"
        )
    else:
        start = load(settings.start, torch.float32)
        if type(start).__name__ != "StableDiffusionPipeline":
            raise InputError(
                f"{settings.start} is a {type(start).__name__}: this trains networks of "
                "StableDiffusionPipeline, with one text encoder"
            )
        parts = {name: getattr(start, name) for name in ("vae", "text_encoder", "tokenizer")}
        parts["unet"] = start.unet
        config = {**start.scheduler.config, "clip_sample": False}  # as pipelines of latents have it
        with refused("settings.scheduler"):
            parts["scheduler"] = DDIMScheduler.from_config(config, **settings.scheduler)
    if settings.unet is not None:
        parts["unet"] = network_of_config(UNet2DConditionModel, settings.unet, "settings.unet")
        _require_fit(parts)
    absent = {"safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _require_fit(parts: Mapping[str, Any]) -> None:
    """Check that a new network takes what the autoencoder and the text encoder give."""
    unet, channels = parts["unet"].config, parts["vae"].config.latent_channels
    width = parts["text_encoder"].config.hidden_size
    texts = "cross_attention_dim" if unet["encoder_hid_dim"] is None else "encoder_hid_dim"
    expected = {"in_channels": channels, "out_channels": channels, texts: width}
    for name, value in expected.items():
        each = unet[name] if isinstance(unet[name], list | tuple) else [unet[name]]
        if {*each} != {value}:
            raise InputError(
                f"settings.unet.{name}={unet[name]}, and latents have {channels} channels, texts "
                f"{width}: give {name}={value}"
            )


def _new_parts(start: str, text: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
    """The autoencoder of `start`, and a new text encoder for the words of captions."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    require_known(text, list(CLIPTextConfig().to_dict()), "settings.text")
    with complete_weights(bar=False):
        vae = AutoencoderKL.from_pretrained(start)
    tokenizer = tokenizer_for(captions)
    longest = tokenizer.model_max_length
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": longest}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ends = {name: getattr(tokenizer, name) for name in names}
    with refused("settings.text"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**text, **sizes, **ends))
    return {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}

"""Tasks by name, and the trainer of a run's settings."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffsteer.core.errors import InputError, brief
from diffsteer.io.extensions import extension, known
from diffsteer.io.strict import from_table
from diffsteer.models.adm.flags import Flags
from diffsteer.train.adm import ADMClassifierTask, ADMSettings, ADMTask
from diffsteer.train.agd import AGDSettings, AGDTask
from diffsteer.train.arrays import ArrayImages
from diffsteer.train.autoencoder import Autoencoder, AutoencoderSettings
from diffsteer.train.captioned_images import open_images
from diffsteer.train.captions import CaptionedImages
from diffsteer.train.edm2 import EDM2Settings, EDM2Task
from diffsteer.train.loop import Trainer
from diffsteer.train.refiner.task import RefinerSettings, RefinerTask
from diffsteer.train.settings import Data, Run
from diffsteer.train.stream import Source, captions
from diffsteer.train.task import Task
from diffsteer.train.text_to_image import TextToImage, TextToImageSettings

SOURCES = '"critters", "emoji", a folder of images or of tar files, or a file: tar, npz, npy or idx'


def begin(run: Run, folder: Path | str, start: int | None = None) -> Trainer:
    """Make the trainer of a run in a folder, new or to be resumed there."""
    if run.task not in TASKS:
        raise InputError(f"task={brief(run.task)} is not known: there are {', '.join(TASKS)}")
    settings_class, make = TASKS[run.task]
    settings = from_table(settings_class, run.settings, "settings")
    torch.manual_seed(run.training.seed)
    task, source = make(run, settings)
    if isinstance(source, CaptionedImages | ArrayImages):
        vae = getattr(task, "vae", None)  # which halves the sides of images several times
        halvings = 0 if vae is None else len(vae.config.block_out_channels) - 1
        source.fingerprint.require(source.size, 2**halvings)
        if task.side is not None:
            source.fingerprint.require_side(*task.side)
    return Trainer(run, task, source, Path(folder), start)


def source_of(data: Data) -> Source:
    """Open the data of a run."""
    if not data.source:
        raise InputError(f"data.source is empty: name {SOURCES}")
    if data.source in known("data"):
        source: Source = extension("data", data.source)(data)
        return source
    data.require_default("group", "images", "seed")
    if data.split != Data.split:
        raise InputError(
            f"data.split={data.split!r} is of the data that ship, not of {data.source}, all of "
            "which is used: leave it out, and name a folder that holds the split"
        )
    if not (path := Path(data.source)).exists():
        raise FileNotFoundError(f"data.source={data.source} is not there: name {SOURCES}")
    images = open_images(path, (data.size, data.size) if data.size else None, data.label)
    images.fingerprint.require(images.size, 1)  # before a model is loaded
    return images


def _autoencoder(run: Run, settings: AutoencoderSettings) -> tuple[Task, Source]:
    return Autoencoder(settings), source_of(run.data)


def _edm2(run: Run, settings: EDM2Settings) -> tuple[Task, Source]:
    if run.training.precision != "no":
        raise InputError(
            f"training.precision={run.training.precision} rounds between the layers of EDM2: "
            'take "no"; on a GPU its blocks compute in float16 (settings.network.use_fp16)'
        )
    if run.pictures.every and run.pictures.guidance != 1 and not run.data.drop:
        raise InputError(
            f"pictures.guidance={run.pictures.guidance} needs a null class: set data.drop, or "
            "guidance 1"
        )
    source = source_of(run.data)
    grey = isinstance(source, CaptionedImages | ArrayImages) and source.fingerprint.grey
    channels = len(settings.latent_mean) or (1 if grey else 3)
    network = {"img_channels": channels, **settings.network}
    if network["img_channels"] == 1 and channels != 1:
        raise InputError(
            f"settings.network.img_channels=1, and {run.data.source} has images in colour: leave "
            "it out, or make all of them grey"
        )
    settings = replace(settings, network=network)
    return EDM2Task(settings, captions(source), run.data.drop), source


def _text_to_image(run: Run, settings: TextToImageSettings) -> tuple[Task, Source]:
    if run.pictures.every and not run.pictures.prompts:
        raise InputError("pictures.every has nothing to draw: give pictures.prompts as well")
    source = source_of(run.data)
    texts = captions(source) if settings.text is not None else []
    if settings.text is not None and not any(texts):
        raise InputError(
            "settings.text learns its words from captions, and the data has none: leave it out, or "
            "change data.label"
        )
    task = TextToImage(settings, texts)
    _require_steps(run, task.pipe.scheduler.config.num_train_timesteps)
    return task, source


def _require_steps(run: Run, trained: int) -> None:
    """Refuse grids that no rehearsal of two steps shows to be impossible."""
    if run.pictures.every and run.pictures.steps > trained:
        raise InputError(
            f"pictures.steps={run.pictures.steps}, and the network has {trained} timesteps: give "
            "at most as many"
        )


def _adm(run: Run, settings: ADMSettings) -> tuple[Task, Source]:
    if run.data.drop:
        raise InputError(
            f"data.drop={run.data.drop}: an ADM network has no null class: leave it out"
        )
    flags = Flags.of(settings.flags)
    classifier = flags.classifier
    if classifier and run.pictures.every:
        raise InputError("pictures.every: a classifier makes no images: leave it out")
    source = source_of(run.data)
    task = ADMClassifierTask if classifier else ADMTask
    _require_steps(run, flags.diffusion_steps)
    return task(settings, captions(source) if settings.labelled else []), source


def _distilled(make: type[AGDTask | RefinerTask], run: Run, settings: Any) -> tuple[Task, Source]:
    if run.data != Data():
        raise InputError(f"{run.task} learns from settings.targets: leave [data] out")
    task = make(settings)
    return task, task.source


TASKS: dict[str, tuple[type[Any], Callable[[Run, Any], tuple[Task, Source]]]] = {
    "adm": (ADMSettings, _adm),
    "agd": (AGDSettings, partial(_distilled, AGDTask)),
    "autoencoder": (AutoencoderSettings, _autoencoder),
    "edm2": (EDM2Settings, _edm2),
    "refiner": (RefinerSettings, partial(_distilled, RefinerTask)),
    "text-to-image": (TextToImageSettings, _text_to_image),
}
"""Settings of each task, and the maker of the task and its source."""

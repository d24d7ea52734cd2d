"""From a run's settings to its task and its data."""

from pathlib import Path

import torch

from diffsteer.core.errors import InputError
from diffsteer.io.extensions import extension
from diffsteer.train.autoencoder import Autoencoder, AutoencoderSettings
from diffsteer.train.captioned_images import open_images
from diffsteer.train.captions import CaptionedImages
from diffsteer.train.edm2 import EDM2Settings, EDM2Task
from diffsteer.train.loop import Trainer
from diffsteer.train.settings import Data, Run, strict
from diffsteer.train.stream import Source, captions
from diffsteer.train.task import Task
from diffsteer.train.text_to_image import TextToImage, TextToImageSettings

SOURCES = '"emoji", a folder of images, a folder of tar files, or one tar file'
TASKS = ("autoencoder", "edm2", "refiner", "text-to-image")


def begin(run: Run, folder: Path, start: int | None = None) -> Trainer:
    """Make the trainer of a run in a folder, new or found there.

    Raises:
        ValueError: the task is unknown, images have sizes that it cannot take, or as `Trainer`.
    """
    if run.task == "refiner":
        return _refiner(run, folder, start)
    source = source_of(run.data)
    torch.manual_seed(run.training.seed)
    task = _task(run, source)
    if isinstance(source, CaptionedImages):
        source.fingerprint.require(source.size, _side(task))
    return Trainer(run, task, source, folder, start)


def _refiner(run: Run, folder: Path, start: int | None) -> Trainer:
    """The trainer of a noise refiner, whose task has data of its own."""
    from diffsteer.train.refiner.task import RefinerSettings, RefinerTask

    if run.data != Data():
        raise InputError("a refiner learns from settings.targets: leave [data] out")
    torch.manual_seed(run.training.seed)
    task = RefinerTask(strict(RefinerSettings, run.settings, "settings"))
    return Trainer(run, task, task.source, folder, start)


def source_of(data: Data) -> Source:
    """Open what a run learns from.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a setting is of the emoji alone; or as `Emoji` and `open_images`.
    """
    if not data.source:
        raise InputError(f"data.source is empty: name {SOURCES}")
    if data.source == "emoji":
        source: Source = extension("data", data.source)(data)
        return source
    if data.group:
        raise InputError(f"data.group={data.group!r} is of the emoji, not of {data.source}")
    if data.split != Data.split:
        raise InputError(
            f"data.split={data.split!r} is of the emoji, not of {data.source}, all of which is "
            "learnt: leave it out, and name a folder that holds the split"
        )
    if not (path := Path(data.source)).exists():
        raise FileNotFoundError(f"data.source={data.source} is not there: name {SOURCES}")
    return open_images(path, (data.size, data.size) if data.size else None, data.label)


def _side(task: Task) -> int:
    """What sides of images have to be multiples of: an autoencoder halves them several times."""
    vae = getattr(task, "vae", None)
    return 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)


def _task(run: Run, source: Source) -> Task:
    if run.task == "autoencoder":
        return Autoencoder(strict(AutoencoderSettings, run.settings, "settings"))
    if run.task == "text-to-image":
        settings = strict(TextToImageSettings, run.settings, "settings")
        new = settings.text is not None
        if run.pictures.every and not run.pictures.prompts:
            raise InputError("pictures.every has nothing to draw: give pictures.prompts as well")
        return TextToImage(settings, captions(source) if new else [])
    if run.task == "edm2":
        if run.training.precision != "no":
            raise InputError(
                f"training.precision={run.training.precision} rounds between the layers of EDM2: "
                'take "no"; on a GPU its blocks compute in float16 (settings.network.use_fp16)'
            )
        edm2 = strict(EDM2Settings, run.settings, "settings")
        return EDM2Task(edm2, captions(source), run.data.drop)
    raise InputError(f"task={run.task!r} is not known: there are {', '.join(TASKS)}")

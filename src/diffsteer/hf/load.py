"""Load pipelines and guide networks by hub id, folder, or the name of a model that ships.

Weights files and configurations have to say the same: `from_pretrained` fills what is missing with
random numbers, and leaves out what it does not expect.
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from diffsteer.core.errors import InputError, brief
from diffsteer.hf.guide_fit import check_schedules
from diffsteer.hf.lora import add_loras, require_lora
from diffsteer.hf.network import PARTS
from diffsteer.hf.offload import file_size, place, require_memory, require_offload, weights_sizes
from diffsteer.hf.scheduler_config import require_timesteps
from diffsteer.hf.shipped import shipped, shipped_folder
from diffsteer.hf.signature import call_parameters
from diffsteer.hf.single_file import load_single_file, require_single_file
from diffsteer.hf.weights import checked_folder, complete_weights, require_quantizers
from diffsteer.io.device import device_of, dtype_of
from diffsteer.io.extensions import extension, extensions
from diffsteer.io.hub import silence, snapshot
from diffsteer.io.model_folder import CONFIG, INDEX, require_model
from diffsteer.io.strict import read_object

CONFIGS = ("model_index.json", "config.json", "*/config.json", "*/scheduler_config.json")
"""Files of a folder that have to be JSON objects; diffusers takes for granted that they are."""


def load(
    name: str | Path,
    dtype: Any = None,
    *,
    config: str | Path = "",
    lora: str | Path | Sequence[str | Path] = (),
    takes: str | Collection[str] = (),
    offload: str = "none",
    device: str = "",
) -> Any:
    """Load a diffusers pipeline by hub id, folder, file, or name of one that ships.

    Args:
        name: Of it; a checkpoint in one file ends in .safetensors and needs config.
        dtype: Of the weights, or its name: "float32", "float16", "bfloat16", "auto"; None for
            float32, and for quantized weights as they are stored.
        config: Folder with the configuration of a checkpoint in one file.
        lora: Low-rank adaptations, one or several, each PATH or PATH:SCALE.
        takes: Arguments that its call has to take, such as "image"; where the class that the model
            names does not, the one of diffusers for the same model is taken that does.
        offload: "none", "model", "sequential", "group", as diffusers does it.
        device: Where it computes; empty for the CPU, and with offload for the accelerator.

    Raises:
        OSError: there is none.
        InputError: it is malformed, or its weights are not those that its configuration names, or
            do not fit into the memory.
        ModuleNotFoundError: it is one that ships, and is not installed.
    """
    name, config = str(name), str(config or "")
    loras = [str(each) for each in ([lora] if isinstance(lora, str | Path) else lora)]
    takes = (takes,) if isinstance(takes, str) else takes
    require_loadable(name, config, loras)
    where = device_of(device) if device or offload != "none" else "cpu"
    require_offload(offload, where)
    dtype = dtype_of(dtype, where) if isinstance(dtype, str) else dtype
    with _readable(name, config):
        require_fits(name, where, offload, dtype)
        pipe = _loaded(name, dtype, config, takes)
        if dtype is None:
            _to_float32(pipe)
        if loras:
            add_loras(pipe, loras)
    return pipe if where == "cpu" and offload == "none" else place(pipe, where, offload)


def require_loadable(name: str, config: str = "", lora: Sequence[str] = ()) -> None:
    """Check, before a library or the hub is asked, that names can be those of a model."""
    if Path(name).is_file():
        require_single_file(name, config)
    else:
        require_model(name, (INDEX,))
        if config:
            raise InputError(
                f"config={config} is of a checkpoint in one file, and {name} is none: leave it out"
            )
        require_quantizers(Path(name))
    for text in lora:
        require_lora(text, config or str(shipped_folder(name)))


def require_fits(name: str, device: str, offload: str, dtype: Any) -> None:
    """Check that the weights of a local model fit into the memory, before they are read."""
    folder = Path(name)
    precision = dtype_of(dtype, device) if isinstance(dtype, str) else dtype
    if folder.is_file():
        sizes = {"file": file_size(folder, precision)}
    else:
        sizes = weights_sizes(folder, precision or torch.float32) if folder.is_dir() else {}
    require_memory(name, sizes, device, offload)


def _loaded(name: str, dtype: Any, config: str, takes: Collection[str]) -> Any:
    """Pipeline on the CPU, its weights complete."""
    from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

    model = shipped(name)
    parts: dict[str, Any] = {}
    with complete_weights(bar=model is None and sys.stderr.isatty()):
        if config:
            return load_single_file(_class(config, takes), name, config, dtype)
        place: Path | str = name
        if model is None:
            place = offline_folder(name) or name
            if Path(place).is_dir():
                parts = checked_folder(Path(place))
        else:
            if model.base:
                unet = UNet2DConditionModel.from_pretrained(model.folder / "unet", dtype=dtype)
                scheduler = DDIMScheduler.from_pretrained(model.folder / "scheduler")
                parts = {"unet": unet, "scheduler": scheduler}
            place = model.base or model.folder
        cls = _class(str(place), takes) if takes else DiffusionPipeline
        pipe = cls.from_pretrained(place, dtype=dtype, **parts)
        if model is not None:
            pipe.register_to_config(_name_or_path=str(model.folder))
    _require_words(pipe)
    _require_dtype(name, pipe, dtype)
    return pipe


def _class(place: str, takes: Collection[str]) -> Any:
    """Class of a pipeline whose call takes some arguments."""
    import diffusers
    from diffusers.pipelines import auto_pipeline as auto

    own = diffusers.DiffusionPipeline.load_config(place).get("_class_name")
    cls = getattr(diffusers, str(own), diffusers.DiffusionPipeline)
    if cls is diffusers.DiffusionPipeline or not _lacking(cls, takes):
        return cls
    texts, images, masks = (
        auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        auto.AUTO_INPAINT_PIPELINES_MAPPING,
    )
    kinds = {
        key for table in (texts, images, masks) for key, value in table.items() if value is cls
    }
    others = [table[kind] for table in (images, masks) for kind in kinds if kind in table]
    for other in others:
        if not _lacking(other, takes):
            return other
    raise InputError(
        f"{cls.__name__} takes no {', '.join(_lacking(cls, takes))}, and diffusers has no "
        "pipeline of the same model that does: leave --image and --mask out"
    )


def _lacking(cls: Any, takes: Collection[str]) -> list[str]:
    names = call_parameters(cls.__name__)
    return sorted({*takes} - names - ({"mask_image"} if "mask" in names else set()))


def network(name: str, dtype: Any) -> Any:
    """Load a guide network by hub id or folder, of its own or of a pipeline, or by its name.

    Of a pipeline nothing but the network is loaded.

    Raises:
        OSError: there is none.
        InputError: it is malformed, or its weights are not those that its configuration names.
        ModuleNotFoundError: it is one that ships, and is not installed.
    """
    require_model(name, (CONFIG, INDEX))
    from diffusers import AutoModel, DiffusionPipeline

    place = str(shipped_folder(name))
    inside: dict[str, Any] = {}
    with _readable(name), complete_weights():
        place = str(offline_folder(place) or place)
        with suppress(OSError):  # a network has no index of a pipeline
            index = DiffusionPipeline.load_config(place)
            inside |= next(({"subfolder": part} for part in PARTS if part in index), {})
        module = AutoModel.from_pretrained(place, dtype=dtype, **inside)
    _require_dtype(name, module, dtype)
    return module


def guide_beside(pipe: Any, name: str | None) -> Any:
    """Load a guide by name beside a pipeline; without, the one of a model that ships, or None."""
    if name is None:
        own = Path(getattr(pipe, "name_or_path", None) or "nowhere")
        models = [extension("models", each) for each in extensions("models")]
        name = next((m.guide for m in models if m.guide and own == m.folder), None)
    if name is None:
        return None
    check_schedules(getattr(pipe, "scheduler", None), _scheduler_beside(name))
    device = getattr(pipe, "_execution_device", pipe.device)  # not where offloaded weights wait
    return network(name, pipe.dtype).to(device)


def _scheduler_beside(guide: str) -> Any:
    """Scheduler in the folder of the pipeline that a guide is of; None where there is none."""
    import diffusers

    path = Path(shipped_folder(guide)) / "scheduler/scheduler_config.json"
    config = read_object(path) if path.is_file() else {}
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    return None if cls is None else cls.from_config(config)


def offline_folder(name: str) -> Path | None:
    """Folder of a hub id in the cache while the hub is silent, whose loaders try for a minute."""
    return snapshot(name) if not Path(name).exists() and silence() else None


def _require_words(pipe: Any) -> None:
    """Check that tokenizers know more than special tokens; without files they load so."""
    parts = pipe.components.items()
    words = {k: v for k, v in parts if v is not None and k.startswith("tokenizer")}
    for name, tokenizer in words.items():
        if {*tokenizer("a cat").input_ids} <= {*tokenizer.all_special_ids}:
            raise InputError(f"{name} knows no words: its folder lacks a vocabulary")


def _to_float32(pipe: Any) -> None:
    """Bring parts of transformers, which keep the dtype of their files, to that of the others."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module) and not _quantized(pipe):
            part.float()


def _quantized(model: Any) -> bool:
    parts = getattr(model, "components", {"": model}).values()
    return any(getattr(part, "hf_quantizer", None) is not None for part in parts)


def _require_dtype(name: str, model: Any, dtype: Any) -> None:
    if dtype is not None and model.dtype != dtype and not _quantized(model):
        raise InputError(f"{name} was loaded in {model.dtype}, not in dtype={dtype!r} as asked")


@contextmanager
def _readable(name: str, config: str = "") -> Iterator[None]:
    """Turn whatever is raised for a malformed name or damaged file into one error of one line."""
    try:
        for pattern in CONFIGS if config or name else ():
            for path in Path(config or name).glob(pattern):
                require_timesteps(read_object(path))
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, InputError):
            raise InputError(f"{name} cannot be loaded: {error}") from error
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, OSError) and not Path(name).exists() and shipped(name) is None:
            raise FileNotFoundError(
                f"there is no folder {brief(name)}, and the hub does not give a model of that name "
                f"({reason.partition('. ')[0].partition(' (')[0]}): look at the name, and "
                "at the connection"
            ) from error
        raise InputError(
            f"{brief(name)} cannot be loaded as a model of diffusers ({reason}): give a folder "
            "that save_pretrained wrote, a hub id NAME/MODEL, or the name of a model that ships"
        ) from error

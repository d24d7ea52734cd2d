"""Checks that the weights that are read are those of a configuration: none missing, none beyond."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.io.model_folder import CONFIG, INDEX
from diffsteer.io.strict import read_object

VARIANT = re.compile(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$")
"""Ends the name of a weights file of another precision."""

QUANTIZERS = {
    "auto-round": "auto-round",
    "bitsandbytes": "bitsandbytes",
    "gguf": "gguf",
    "modelopt": "nvidia-modelopt",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}
"""Package that reads weights of a method of quantisation."""


def require_quantizers(folder: Path) -> None:
    """Check that the packages are there that read the quantised weights of a pipeline's folder."""
    for config in sorted(folder.glob(f"*/{CONFIG}")):
        settings = read_object(config).get("quantization_config")
        method = str(settings.get("quant_method")) if isinstance(settings, dict) else ""
        package = QUANTIZERS.get(method)
        if package and not any(distributions(name=package)):
            raise InputError(
                f"{config.parent} is quantised by {method}, which needs a package that is not "
                f"installed: pip install {package}"
            )


def checked_folder(folder: Path) -> dict[str, str]:
    """Check that a pipeline's folder has all that its index names; return arguments to load it.

    Raises:
        InputError: a component is missing, or a configuration names a class that there is not.
    """
    import diffusers

    named = {k: v for k, v in read_object(folder / INDEX).items() if isinstance(v, list) and v[0]}
    if absent := [name for name in named if not (folder / name).is_dir()]:
        raise InputError(f"{INDEX} names {', '.join(absent)}, which the folder does not have")
    for name, (library, wanted, *_) in named.items():
        for config in (folder / name / CONFIG, folder / name / "scheduler_config.json"):
            if library != "diffusers" or not config.is_file():
                continue
            kind = read_object(config).get("_class_name", wanted)
            if not hasattr(diffusers, str(kind)):
                raise InputError(f"{config} is of {kind!r}, which diffusers does not have")
            if kind != wanted:
                text = f"{config} is of {kind}, and {INDEX} names {wanted}, which is taken"
                warnings.warn(text, stacklevel=4)
    for name in named:
        files = [path.name for path in (folder / name).glob("*.safetensors")]
        marks = [mark for file in files if (mark := VARIANT.search(file))]
        if marks and len(marks) == len(files):
            variant = marks[0][1]
            warnings.warn(f"{folder / name} has weights of variant {variant} alone", stacklevel=4)
            return {"variant": variant}
    return {}


@contextmanager
def complete_weights(bar: bool = True) -> Iterator[None]:
    """Refuse models of diffusers and transformers whose weights do not fit, until closed.

    Args:
        bar: Whether loading shows its progress.

    Raises:
        InputError: weights are missing, superfluous or of other shapes than the configuration
            says. Of transformers, which often hold heads that are not used, those alone are
            superfluous that another number of layers would take.
    """
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    methods = {owner: vars(owner)["from_pretrained"] for owner in (ModelMixin, PreTrainedModel)}

    def strict(method: Any, lenient: bool) -> Any:
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if lenient:
                kwargs["ignore_mismatched_sizes"] = True  # so that they are reported by name
            model, report = method(cls, *args, **{**kwargs, "output_loading_info": True})
            _require_complete(model, report, lenient)
            return (model, report) if kwargs.get("output_loading_info") else model

        return classmethod(from_pretrained)

    try:
        for owner, method in methods.items():
            checked = strict(method.__func__, lenient=owner is PreTrainedModel)
            owner.from_pretrained = checked
        with quiet(bar):
            yield
    finally:
        for owner, method in methods.items():
            owner.from_pretrained = method


def _require_complete(model: Any, report: Mapping[str, Any], lenient: bool) -> None:
    unexpected = set(report["unexpected_keys"])
    if lenient and unexpected:
        layers = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
        beyond = {name for name in unexpected if re.sub(r"\d+", "#", name) in layers}
        if others := unexpected - beyond:
            text = f"{type(model).__name__} makes no use of {len(others)} weights of its file"
            warnings.warn(f"{text}, such as {min(others)}", stacklevel=2)
        unexpected = beyond
    problems = {
        "missing": report["missing_keys"],
        f"beyond its {CONFIG}": unexpected,
        "of another shape": map(str, report["mismatched_keys"]),
    }
    for problem, keys in problems.items():
        if names := sorted(keys):
            raise InputError(
                f"weights of {type(model).__name__} do not fit its {CONFIG}: {len(names)} "
                f"{problem}, such as {names[0]}"
            )


@contextmanager
def quiet(bar: bool) -> Iterator[None]:
    """Leave out advice about loading, which is checked here, and maybe bars."""
    import diffusers.utils.logging as ours
    import transformers.utils.logging as theirs
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    with ExitStack() as stack:
        if not bar and are_progress_bars_disabled():  # transformers enables them
            stack.callback(disable_progress_bars)
        for library in (ours, theirs):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if not bar and library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield

"""Architectures and classes that words of a checkpoint name otherwise than its parts are."""

from collections.abc import Iterator

from diffsteer.doctor import architectures
from diffsteer.doctor.checkpoint import Checkpoint
from diffsteer.doctor.schedulers import Finding
from diffsteer.io.model_folder import INDEX


def named(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield words for another architecture, pipeline or scheduler than is there."""
    kind = checkpoint.architecture
    for key in architectures.ARCHITECTURE_KEYS:
        text = checkpoint.metadata.get(key, "").strip()
        word = architectures.in_words(text)
        silent = not text or (word is architectures.UNKNOWN and key != architectures.SPEC)
        if kind in architectures.NAMED and word is not kind and not silent:
            words = f"metadata '{key} = {text[:80]}' is not {kind.name}, whose tensors these are"
            yield Finding("architecture", "warning", words, "--fix writes it anew")
    yield from _named_by_index(checkpoint)


def _named_by_index(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield classes of a pipeline's index that are not those of its parts."""
    index, kind = str(checkpoint.index.get("_class_name", "")), checkpoint.architecture.name
    fits = next(
        (kinds for start, kinds in architectures.PIPELINES.items() if index.startswith(start)), ()
    )
    if (
        fits
        and kind not in fits
        and any(kind in kinds for kinds in architectures.PIPELINES.values())
    ):
        text = f"{INDEX} names {index}, and the network is one of {kind}"
        yield Finding("pipeline", "problem", text, f"take the {INDEX} of the model that it is")
    if loaded := checkpoint.loaded_scheduler:
        own = checkpoint.scheduler["_class_name"]
        text = f"{INDEX} loads {loaded}, and its config is of {own}: findings are of both"
        yield Finding("scheduler-class", "warning", text, "--fix writes one")

"""Commands of diffsteer as jobs of the page: evaluate and tune, in a process of their own."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.shipped import shipped
from diffsteer.io.atomic import put, write_json
from diffsteer.studio.engine import followed
from diffsteer.studio.render import Cancelled, image_of
from diffsteer.studio.settings import Settings

EXAMPLES = 200
"""Images of a shipped model's data that serve as a reference."""
PATIENCE = 20.0
"""Seconds that a cancelled job has to end by itself."""


@dataclass(frozen=True)
class References:
    """What images may be compared with: data of shipped models, and folders that were named.

    Attributes:
        out: Folder of the studio, which takes the files of jobs.
        data: Folders, zip files and statistics that the studio was started with.
    """

    out: Path
    data: tuple[Path, ...]

    def names(self, model: str) -> list[str]:
        """What the page offers for a model."""
        about = shipped(model)
        own = [f"data of {model}"] if about and about.examples else []
        return [*own, *map(str, self.data)]

    def offered(self, model: str, chosen: str | None = None) -> dict[str, Any]:
        """Names as choices of a menu, and the chosen one where it is among them, else the first."""
        names = self.names(model)
        value = chosen if chosen in names else names[0] if names else None
        return {"choices": names, "value": value}

    def path(self, model: str, name: str) -> tuple[Path, tuple[str, ...]]:
        """Path of a reference, written where it is not there, and captions of its images."""
        if name not in self.names(model):
            raise InputError(
                "choose a reference: name your own by --data at the start of the studio"
            )
        about = shipped(model)
        if about is None or about.examples is None or not name.startswith("data of "):
            return Path(name), ()
        folder, captions = self.out / "data" / Path(model).name, list[str]()
        folder.mkdir(parents=True, exist_ok=True)
        for i, (pixels, caption) in enumerate(about.examples(EXAMPLES)):
            captions.append(caption)
            if not (file := folder / f"{i:04d}.png").exists():
                image_of(pixels).save(file)
        return folder, tuple(captions)


def evaluated(
    settings: Settings, reference: Path, prompts: Sequence[str], count: int, out: Path
) -> list[str]:
    """Words of `diffsteer evaluate` for a recipe, which is written to `out`."""
    recipe = out / "evaluate.json"
    write_json(recipe, of_many(settings.recipe, prompts).to_json())
    words = ["evaluate", str(recipe), "--reference", str(reference)]
    words += ["--seeds", f"0-{count - 1}", "--work", str(out / "measured")]
    return [*words, "--out", str(out / "evaluated.json")]


def tuned(
    settings: Settings, reference: Path, prompts: Sequence[str], space: str, minutes: float,
    count: int, out: Path,
) -> list[str]:  # fmt: skip
    """Words of `diffsteer tune` for what a recipe does not vary."""
    recipe, lines = settings.recipe, list(prompts) or [settings.recipe.prompt]
    put(out / "prompts.txt", "".join(f"{line}\n" for line in lines).encode())
    words = ["tune", recipe.model, "--space", space, "--reference", str(reference)]
    words += ["--prompts", str(out / "prompts.txt"), "--minutes", str(minutes)]
    varied = {"prompt": "", "guidance": "", "steps": Recipe.steps}
    words += replace(recipe, **varied).flags  # type: ignore[arg-type]
    words += ["--seeds", f"100000-{99_999 + count}", "--first", str(max(count // 2, 2))]
    words += ["--report-seeds", f"0-{count - 1}", "--top", "3"]
    return [*words, "--out", str(out / "tuned")]


def of_many(recipe: Recipe, prompts: Sequence[str]) -> Recipe:
    """Recipe with many prompts in place of its own."""
    return replace(recipe, prompt="", prompts=tuple(prompts)) if prompts else recipe


def job(words: Sequence[str], folder: Path, cancelled: threading.Event) -> Iterator[str]:
    """Run a command of diffsteer and yield its lines.

    Raises:
        Cancelled: it was interrupted, as by Ctrl-C: what it finished is kept.
        InputError: it failed, with its last line.
    """

    def work(report: Callable[[str], None]) -> None:
        command = [sys.executable, "-u", "-m", "diffsteer.cli", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # A studio in the background of a script ignores interrupts, and so would its jobs
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        last = ""
        with subprocess.Popen(command, cwd=folder, text=True, preexec_fn=heard, **pipes) as process:  # type: ignore[call-overload]
            threading.Thread(target=_end, args=(process, cancelled), daemon=True).start()
            for line in process.stdout:
                last = line.strip() or last
                report(line.rstrip("\n"))
        if cancelled.is_set():
            raise Cancelled
        if process.returncode:
            raise InputError(last.removeprefix("diffsteer: ") or "the job failed")

    with ThreadPoolExecutor(1, "job") as worker:
        yield from followed(worker, work, cancelled)


def _end(process: "subprocess.Popen[str]", cancelled: threading.Event) -> None:
    """Interrupt a process once an event is set, and kill it where it does not end."""
    while process.poll() is None and not cancelled.wait(0.2):
        pass
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()

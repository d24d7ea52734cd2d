"""The training loop: on any number of processes, from checkpoint to checkpoint.

A run is a folder: `run.json` (its settings), `checkpoints/`, `metrics.jsonl`, `curves.png`,
`pictures/`, `averages/` and, at the end, `model/`. Started again, it resumes bit-exactly from its
latest checkpoint: every image has its own seed, so there is no other state. A checkpoint is written
last: it says that everything before it is there.
"""

import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffsteer.core.power_ema import PowerEMA
from diffsteer.generate.base import NotFinite as SamplesNotFinite
from diffsteer.io.atomic import atomic_folder, owned
from diffsteer.io.device import free_memory
from diffsteer.models.edm2 import posthoc
from diffsteer.train.checkpoints import Checkpoints
from diffsteer.train.curves import can_draw, draw_curves
from diffsteer.train.interrupts import end_requests
from diffsteer.train.log import Metrics, save_grid
from diffsteer.train.resource_check import require_room
from diffsteer.train.settings import Run
from diffsteer.train.state import NotFinite, claim, fill, pack, unpack
from diffsteer.train.stream import Source, Stream, contents
from diffsteer.train.task import Examples, Task, batches_of, channels_last

Passes = list[dict[str, Tensor]]
"""A process's share of a step, in passes."""


class Trainer:
    """A run in its folder.

    Args:
        run: Settings.
        task: Networks and losses, made with the seed of the run.
        source: Samples.
        folder: Made where it is missing; refused where it holds another run.
        start: Checkpoint to resume from, as count of images; None for the latest.
    """

    def __init__(
        self, run: Run, task: Task, source: Source, folder: Path, start: int | None = None
    ) -> None:
        from accelerate import Accelerator

        self.run, self.task, self.folder = run, task, folder
        training = run.training
        # Without `cpu`, Accelerate leaves processes on CPUs alone: each would train a whole run.
        cpu = not torch.accelerator.is_available()
        self.accelerator = Accelerator(mixed_precision=training.precision, cpu=cpu)
        self.world = self.accelerator.num_processes
        self.passes = training.passes(self.world)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.metrics = Metrics(folder / "metrics.jsonl")
        task.to(self.accelerator.device)
        if training.channels_last:
            channels_last(task)
        self.trained = task.trained()
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), training.rate, training.betas, 1e-8, training.decay, fused=True
        )
        self.averages = PowerEMA(self.trained.items(), training.averages)
        with ExitStack() as stack:
            stack.enter_context(owned(folder, self.accelerator.process_index, self.world))
            self._alone(lambda: claim(folder, run, contents(source)))
            self.images = self._resume(start)
            with self.accelerator.autocast():
                self.source = task.prepare(source, folder, self._alone)
            self._owner = stack.pop_all()
        self.model = self.accelerator.prepare_model(task)
        self._interrupted = self._stop = False
        self._drawn = time.monotonic()

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return bool(self.accelerator.is_main_process)

    def fit(self) -> None:
        """Train to the end, then write the result to `model/`."""
        from tqdm import tqdm

        training = self.run.training
        place = {"total": training.end, "initial": self.images, "disable": not self.first}
        bar = tqdm(desc=self.folder.name, unit="img", **place)
        self._losses, self._since = [], time.perf_counter()
        batches = self._timed(self._batches(), bar)
        every = training.log, training.checkpoint, training.snapshot, self.run.pictures.every
        with self._owner, bar:
            self._alone(self._rehearse)
            with end_requests(self._interrupt):
                while self.images < training.end:
                    self._losses.append(self._step(next(batches)))
                    self.images += training.batch
                    self.averages.update(self.images, training.batch)
                    bar.update(training.batch)
                    asked = self._interrupted and self.world == 1
                    if asked or any(map(self._due, every)) or self.images >= training.end:
                        self._report(bar)  # nothing is written of networks that are lost
                        self._alone(self._write)
                    if self._stop:
                        raise KeyboardInterrupt
            self._alone(self._finish)

    def _rehearse(self) -> None:
        """Meet before the first step what would end the run late: no room, or a grid that fails."""
        pictures, device = self.run.pictures, self.accelerator.device
        free = free_memory(str(device)), shutil.disk_usage(self.folder).free
        have = bool(self.optimizer.state), len(self.checkpoints.counts())
        require_room(self.run, self.trained.values(), self.images, have, free)
        if pictures.every and self.images < self.run.training.end:
            drawn = [] if device.type == "cpu" else [device]
            with torch.random.fork_rng(drawn, device_type=device.type), suppress(SamplesNotFinite):
                self.task.pictures(replace(pictures, steps=min(2, pictures.steps)))

    def _step(self, passes: Passes) -> dict[str, Tensor]:
        """Take one step of the optimizer; return losses and the norm of the gradient."""
        training, last = self.run.training, len(passes) - 1
        means: dict[str, Tensor] = {}
        for i, batch in enumerate(passes):
            batch = {k: v.to(self.accelerator.device, non_blocking=True) for k, v in batch.items()}
            with nullcontext() if i == last else self.accelerator.no_sync(self.model):
                losses = self.model(**batch)
                self.accelerator.backward(losses["loss"] / len(passes))
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / len(passes)
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate(self.images)
        limit = training.clip or float("inf")
        means["gradient"] = torch.nn.utils.clip_grad_norm_(self.trained.values(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return means

    def _batches(self) -> Iterator[Passes]:
        """Yield this process's share of each step."""
        training = self.run.training
        place = self.images, self.accelerator.process_index, self.world
        stream = Stream(self.source, training.seed, self.run.data.drop, *place)
        size = training.batch // self.world // self.passes
        workers: dict[str, Any] = {"sampler": stream.numbers(), "num_workers": training.workers}
        loader = batches_of(DataLoader(Examples(self.task, stream), size, **workers))
        while True:
            yield [next(loader) for _ in range(self.passes)]

    def _timed(self, batches: Iterator[Passes], bar: Any) -> Iterator[Passes]:
        """Pass batches on; say after the second step when training ends."""
        for i, passes in enumerate(batches):
            if i in (1, 2) and self.accelerator.device.type != "cpu":
                torch.accelerator.synchronize()
            if i == 1:
                start = time.perf_counter()
            elif i == 2 and self.first:
                rate = self.run.training.batch / (time.perf_counter() - start)
                left = bar.format_interval((self.run.training.end - self.images) / rate)
                bar.write(f"{rate:.3g} images per second: ends in {left}", file=sys.stderr)
            yield passes

    def _report(self, bar: Any) -> None:
        """Write means of the losses; stop where one, or a weight, is not finite."""
        names = self._losses[0]
        means = [torch.stack([x[name].float() for x in self._losses]).mean() for name in names]
        stop = torch.tensor(float(self._interrupted), device=self.accelerator.device)
        joined = self.accelerator.reduce(torch.stack([*means, stop]), "mean").tolist()
        line, self._stop = dict(zip(names, joined, strict=False)), joined[-1] > 0
        self._require_finite(line)
        if self.first:
            speed = (
                len(self._losses) * self.run.training.batch / (time.perf_counter() - self._since)
            )
            rates = {"rate": self.run.training.learning_rate(self.images)}
            rates["images_per_second"] = speed
            self.metrics.write({"images": self.images, **line, **rates})
            bar.set_postfix({self.task.shown: f"{line[self.task.shown]:.4f}"})
        self._losses, self._since = [], time.perf_counter()

    def _require_finite(self, losses: dict[str, float]) -> None:
        """Refuse to go on, or to write anything, where a loss or a weight is lost."""
        weights = torch.stack(torch._foreach_norm(list(self.trained.values()))).sum().item()
        for name, value in {**losses, "a weight": weights}.items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"{name} is {value} before {self.images} images; {self.checkpoints.last()}. "
                    f"A lower training.rate (it is {self.run.training.rate}) or training.clip (it "
                    f"is {self.run.training.clip}) makes another run: give another --out"
                )

    def _interrupt(self) -> None:
        self._interrupted = True
        when = "this step" if self.world == 1 else "the next line of metrics.jsonl"
        text = f"\nending after {when}, with a checkpoint; once more ends at once, without"
        if self.first:
            print(text, file=sys.stderr)

    def _due(self, every: int) -> bool:
        """Whether the last step reached a multiple of a number of images."""
        before = self.images - self.run.training.batch
        return bool(every) and self.images // every > before // every

    def _write(self) -> None:
        """Write what is due, the checkpoint last."""
        try:
            if self._due(self.run.training.snapshot):
                self._snapshot()
            if self._due(self.run.pictures.every):
                self._draw()
            last = self._stop or self.images >= self.run.training.end
            if last or self._due(self.run.training.checkpoint):
                groups = pack(self.trained, self.optimizer, self.averages)
                self._draw_curves(last)
                self.checkpoints.save(self.images, groups, {"images": self.images})
        except OSError as error:
            raise OSError(
                f"no checkpoint could be written at {self.images} images ({error}); "
                f"{self.checkpoints.last()}: make room and start again, it goes on from there"
            ) from error

    def _resume(self, start: int | None) -> int:
        """Load a checkpoint, if there is one; return its count of images."""
        images = self.checkpoints.to_resume(start, self.run.training.end)
        groups = self.checkpoints.load(images)[0] if images else {}
        self._alone(lambda: self._go_back(images, start is not None))
        if images:
            unpack(groups, self.trained, self.optimizer, self.averages)
        return images

    def _go_back(self, images: int, drop: bool) -> None:
        """Take away what a run that resumes at a count writes again."""
        self.checkpoints.set_aside(images if drop else math.inf)
        self.checkpoints.prune()
        self.metrics.rewind(images)

    def _snapshot(self) -> None:
        """Write the averages, which `diffsteer ema` reads."""
        training = self.run.training
        apart = max(1, training.snapshot // training.batch) * training.batch
        kimg = self.images // 1000 if apart >= 1000 else self.images / 1000
        for i, sigma in enumerate(self.averages.sigmas):
            path = self.folder / "averages" / posthoc.name("network-snapshot", kimg, sigma)
            self.task.store(self.averages.snapshot(i), path, self.images)

    def _draw(self) -> None:
        path = self.folder / "pictures" / f"{self.images:010d}.png"
        try:
            with self._averaged():
                save_grid(self.task.pictures(self.run.pictures), path)
        except SamplesNotFinite as error:  # the weights are: training goes on
            warnings.warn(f"no grid at {self.images} images: {error}", stacklevel=2)

    def _draw_curves(self, last: bool) -> None:
        """Draw the log, at most twice a minute."""
        due = last or time.monotonic() - self._drawn > 30
        if due and can_draw() and (lines := self.metrics.lines()):
            self._drawn, title = time.monotonic(), f"{self.run.task}, {self.images} images"
            draw_curves(self.folder / "curves.png", lines, title)

    def _finish(self) -> None:
        with self._averaged(), atomic_folder(self.folder / "model", over=True) as draft:
            self.task.save(draft)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the average that is kept in the place of the weights for a while."""
        kept = self.averages.snapshot(self.averages.sigmas.index(self.run.training.keep))
        weights = {name: p.detach().clone() for name, p in self.trained.items()}
        try:
            fill(self.trained, kept)
            yield
        finally:
            fill(self.trained, weights)

    def _alone(self, act: Callable[[], None]) -> None:
        """Call a function on the first process; the others wait, and fail where it failed."""
        error: Exception | None = None
        if self.first:
            try:
                act()
            except Exception as e:
                error = e
        failed = torch.tensor(float(error is not None), device=self.accelerator.device)
        if self.accelerator.reduce(failed, "sum").item() and error is None:
            raise RuntimeError("the first process failed: it says why")
        if error is not None:
            raise error

"""The training loop: on any number of processes, from checkpoint to checkpoint.

A run is a folder: `run.json` (what it is), `checkpoints/`, `metrics.jsonl`, `pictures/`,
`averages/` and, at the end, `model/`. Started again, it goes on from its latest checkpoint as if it
had never stopped: every image carries its own seed, so there is no other state.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffsteer.core.ema import PowerEMA
from diffsteer.core.errors import InputError
from diffsteer.io.hashing import differences
from diffsteer.train.checkpoints import Checkpoints, put
from diffsteer.train.log import Metrics, Sums, save_grid
from diffsteer.train.settings import Data, Run, flat
from diffsteer.train.stream import Source, Stream, contents
from diffsteer.train.task import Examples, Task


class NotFinite(InputError):
    """A loss or gradient is NaN or infinite."""


class Trainer:
    """A run in its folder.

    Args:
        run: What it is.
        task: Networks and losses, made with the seed of the run.
        source: Where samples come from.
        folder: Where it is kept; made where it is missing.
        start: Checkpoint to go on from, as count of images; None for the latest.

    Raises:
        ValueError: the folder holds another run, or a broken checkpoint.
    """

    def __init__(
        self, run: Run, task: Task, source: Source, folder: Path, start: int | None = None
    ) -> None:
        from accelerate import Accelerator

        self.run, self.task, self.folder = run, task, folder
        how = run.training
        # Without `cpu`, Accelerate leaves processes on CPUs alone: each would train a whole run.
        cpu = not torch.accelerator.is_available()
        self.accelerator = Accelerator(mixed_precision=how.precision, cpu=cpu)
        self.world = self.accelerator.num_processes
        self.passes = _passes(how.batch, how.rows, self.world)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.metrics = Metrics(folder / "metrics.jsonl")
        task.to(self.accelerator.device)
        if how.channels_last:
            task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = task.trained()
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), how.rate, how.betas, weight_decay=how.decay, fused=True
        )
        self.averages = PowerEMA(self.trained.items(), how.averages)
        self._alone(lambda: self._claim(source))
        self.images = self._reported = self._resume(start)
        with self.accelerator.autocast():
            self.source = task.prepare(source, folder, self._alone)
        self.model = self.accelerator.prepare_model(task)
        self._asked = self._stop = False

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return bool(self.accelerator.is_main_process)

    def fit(self) -> None:
        """Train to the end, then write the result to `model/`."""
        how, sums = self.run.training, Sums()
        with self._bar() as bar, self._signals():
            for passes in self._batches():
                if self.images >= how.images:
                    break
                sums.add(self._step(passes))
                self.images += how.batch
                self.averages.update(self.images, how.batch)
                bar.update(how.batch)
                asked, ends = self._asked and self.world == 1, self.images >= how.images
                writes = (how.checkpoint, how.snapshot, self.run.pictures.every)
                if asked or ends or any(map(self._due, (how.log, *writes))):
                    self._report(sums, bar)  # nothing is written of networks that are lost
                if ends or self._stop or self._due(how.checkpoint):
                    self._alone(self._save)
                if self._due(how.snapshot):
                    self._alone(self._snapshot)
                if self._due(self.run.pictures.every):
                    self._alone(self._draw)
                if self._stop:
                    raise KeyboardInterrupt
        self._alone(self._finish)

    def _step(self, passes: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Take one step of the optimizer; return losses and the norm of the gradient."""
        how, last = self.run.training, len(passes) - 1
        found: dict[str, Tensor] = {}
        for i, batch in enumerate(passes):
            batch = {k: v.to(self.accelerator.device, non_blocking=True) for k, v in batch.items()}
            with nullcontext() if i == last else self.accelerator.no_sync(self.model):
                losses = self.model(**batch)
                self.accelerator.backward(losses["loss"] / len(passes))
            for name, loss in losses.items():
                found[name] = found.get(name, 0) + loss.detach() / len(passes)
        for group in self.optimizer.param_groups:
            group["lr"] = how.rate_at(self.images)
        limit = how.clip or float("inf")
        found["gradient"] = torch.nn.utils.clip_grad_norm_(self.trained.values(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return found

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """Yield this process's share of each step, in passes."""
        how = self.run.training
        stream = Stream(
            self.source,
            how.seed,
            self.run.data.drop,
            self.images,
            self.accelerator.process_index,
            self.world,
        )
        loader = iter(
            DataLoader(
                Examples(self.task, stream),
                how.batch // self.world // self.passes,
                sampler=stream.numbers(),
                num_workers=how.workers,
            )
        )
        while True:
            yield [next(loader) for _ in range(self.passes)]

    def _report(self, sums: Sums, bar: Any) -> None:
        """Write means of the losses; stop where one, or a weight, is not finite.

        Raises:
            NotFinite: nothing has been written since the last checkpoint.
        """
        means, seconds = sums.take()
        stop = torch.tensor(float(self._asked), device=self.accelerator.device)
        joined = torch.stack([*means.values(), stop])
        *values, stops = self.accelerator.reduce(joined, "mean").tolist()
        self._stop = stops > 0
        line = dict(zip(means, values, strict=True))
        sizes = torch.stack(torch._foreach_norm(list(self.trained.values())))
        sound = {**line, "a weight": sizes.sum().item()}
        if odd := [name for name, value in sound.items() if not abs(value) < float("inf")]:
            there = self.checkpoints.counts()
            raise NotFinite(
                f"{odd[0]} is {sound[odd[0]]} before {self.images} images; "
                f"{f'the checkpoint at {there[-1]} is good' if there else 'no checkpoint yet'}. "
                f"A lower training.rate (it is {self.run.training.rate}) or training.clip (it is "
                f"{self.run.training.clip}) makes another run: give another --out"
            )
        if self.first:
            rate = (self.images - self._reported) / seconds
            self._reported = self.images
            now = {"rate": self.run.training.rate_at(self.images), "images_per_second": rate}
            self.metrics.write({"images": self.images, **line, **now})
            bar.set_postfix(loss=f"{line['loss']:.4f}")

    def _due(self, every: int) -> bool:
        """Whether the last step reached a multiple of a number of images."""
        return (
            bool(every) and self.images // every > (self.images - self.run.training.batch) // every
        )

    def _save(self) -> None:
        moments: dict[str, Tensor] = {}
        names = list(self.trained)
        for i, values in self.optimizer.state_dict()["state"].items():
            moments |= {f"{names[i]}/{key}": value for key, value in values.items()}
        averages = {
            f"{i}/{name}": a
            for i, average in enumerate(self.averages.state_dict()["averages"])
            for name, a in average.items()
        }
        weights: dict[str, Tensor] = dict(self.trained)
        groups = {"weights": weights, "optimizer": moments, "averages": averages}
        self.checkpoints.save(self.images, groups, {"images": self.images})

    def _resume(self, start: int | None) -> int:
        """Load a checkpoint, if there is one; return its count of images."""
        there, end = self.checkpoints.counts(), self.run.training.images
        if start is not None and start not in there:
            raise InputError(f"no checkpoint at {start} images: there are {there or 'none'}")
        if there and start is None and there[0] > end:
            raise InputError(
                f"training.images={end}, and the run has gone on to {there}, of which none is left "
                "that is not beyond: give the count of one"
            )
        images = start or max((count for count in there if count <= end), default=0)
        groups = self.checkpoints.load(images)[0] if images else {}
        self._alone(lambda: self.metrics.rewind(images))
        if start is not None:
            self._alone(lambda: self.checkpoints.set_aside(start))
        if not images:
            return 0
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(groups["weights"][name])
        state = self.optimizer.state_dict()
        for i, (name, p) in enumerate(self.trained.items()):
            # the fused optimizer takes the memory of moments and weights to be laid out alike
            moments = {
                key: torch.empty_like(p).copy_(groups["optimizer"][f"{name}/{key}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            state["state"][i] = {**moments, "step": groups["optimizer"][f"{name}/step"]}
        self.optimizer.load_state_dict(state)
        widths = range(len(self.averages.sigmas))
        averages = [{n: groups["averages"][f"{i}/{n}"] for n in self.trained} for i in widths]
        self.averages.load_state_dict({"sigmas": self.averages.sigmas, "averages": averages})
        return images

    def _claim(self, source: Source) -> None:
        """Say what the folder holds, or check that it holds this run."""
        path, mine = self.folder / "run.json", self.run.binds() | contents(source)
        if path.exists():
            try:
                said = json.loads(path.read_bytes())
                was = flat({"data": asdict(Data())}) | flat(said)
            except (ValueError, AttributeError) as error:
                raise InputError(
                    f"{path} was changed and says no more which run this is ({error}): put it back "
                    "as it was, or give another --out"
                ) from error
            if "contents" not in said:  # of before it was recorded
                mine.pop("contents", None)
            if odd := differences(was, flat(mine)):
                raise InputError(
                    f"{self.folder} holds another run: {odd}. Give another --out, or the settings "
                    "and the data that it began with"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            put(path, json.dumps(mine, indent=1).encode())

    def _snapshot(self) -> None:
        for i, sigma in enumerate(self.averages.sigmas):
            path = self.folder / f"averages/network-snapshot-{self.images // 1000:07d}-{sigma:.3f}"
            self.task.store(self.averages.snapshot(i), path, self.images)

    def _draw(self) -> None:
        with self._averaged():
            save_grid(
                self.task.pictures(self.run.pictures),
                self.folder / "pictures" / f"{self.images:010d}.png",
            )

    def _finish(self) -> None:
        with self._averaged():
            self.task.save(self.folder / "model")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the average that is kept in the place of the weights for a while."""
        kept = self.averages.snapshot(self.averages.sigmas.index(self.run.training.keep))
        own = {name: p.detach().clone() for name, p in self.trained.items()}
        try:
            _fill(self.trained, kept)
            yield
        finally:
            _fill(self.trained, own)

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

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            desc=self.folder.name,
            total=self.run.training.images,
            initial=self.images,
            unit="img",
            unit_scale=True,
            smoothing=0.05,
            mininterval=1.0,
            disable=not self.first,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Write a checkpoint when asked to end; a second request ends the process at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._asked = True
            for s, handler in before.items():
                signal.signal(s, handler)

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


def _passes(batch: int, rows: int, world: int) -> int:
    """How many passes make a step on each process."""
    if batch % world:
        raise InputError(f"training.batch={batch} does not divide among {world} processes")
    share = batch // world
    passes = -(-share // rows) if rows else 1
    if share % passes:
        raise InputError(
            f"{share} images a process do not divide into {passes} passes of at most {rows} rows: "
            "choose training.rows that divides training.batch"
        )
    return passes


@torch.no_grad()
def _fill(params: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, p in params.items():
        p.copy_(values[name])

"""What all tabs of a studio share: models, one lock around sampling, speed, history; and runs."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.generate.generator import open_generator
from diffsteer.generate.pipelines import PipelineGenerator
from diffsteer.generate.recipe import Recipe
from diffsteer.generate.recipe_checks import kind_of, media_of, require_consistent
from diffsteer.hf.network import network_of
from diffsteer.hf.shipped import Shipped, shipped
from diffsteer.studio.catalogue import Entry, entries
from diffsteer.studio.cost import Cost, Speed, cost_of
from diffsteer.studio.history import History
from diffsteer.studio.render import Preview, Sampled, sampled, strip


@dataclass(frozen=True, eq=False)
class Model:
    """A model of the page.

    Attributes:
        name: As the studio was started with it.
        scheduler: Its own.
        latent: Shape of a sample, `(C, H, W)`.
        menu: Guidances that its family takes.
        unet: Whether its network is a UNet.
        about: What ships with it; None for other models.
    """

    name: str
    scheduler: Any
    latent: tuple[int, ...]
    menu: tuple[Entry, ...]
    unet: bool
    about: Shipped | None

    @property
    def defaults(self) -> Recipe:
        """Settings to start with."""
        prompt = self.about.prompt if self.about else ""
        guidance = next((e.text for e in self.menu if e.text), "")
        return Recipe(self.name, prompt, guidance=guidance, steps=16 if self.about else 25)


def latent_of(pipe: Any) -> tuple[int, ...]:
    """Shape of a sample of a pipeline, `(C, H, W)`, where its network says it, else (4, 64, 64)."""
    config = network_of(pipe).config
    channels, side = config.get("in_channels"), config.get("sample_size")
    plain = isinstance(channels, int) and isinstance(side, int)
    return (channels, side, side) if plain else (4, 64, 64)


Update = Preview | Sampled | list[Preview]


@dataclass(frozen=True, eq=False)
class Engine:
    """Loads models one after the other and samples for one tab at a time.

    Attributes:
        models: Names that the page offers; nothing else is loaded.
        refiners: Names of refiners that it offers.
        history: Where images go.
        device: Where networks run; empty for a GPU if there is one.
        data: What images may be compared with.
        guides: Names of weaker networks that it offers.
    """

    models: tuple[str, ...]
    refiners: tuple[str, ...]
    history: History
    device: str = ""
    data: tuple[Path, ...] = ()
    guides: tuple[str, ...] = ()
    speed: Speed = field(default_factory=Speed)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _worker: Executor = field(default_factory=partial(ThreadPoolExecutor, 1, "sampling"))
    """One thread for all runs: each new one has a heap and a pool of torch's threads of its own."""
    _closing: threading.Event = field(default_factory=threading.Event)
    _known: dict[str, Model] = field(default_factory=dict)

    @property
    def trusted(self) -> set[str]:
        """Names on the disk that a recipe may say."""
        own = {about.guide for name in self.models if (about := shipped(name))}
        return {*self.models, *self.refiners, *self.guides, *own}

    def model(self, name: str) -> Model:
        """A model of the page, loaded where it was not."""
        if name not in self.models:
            raise InputError(f"this studio was not started with {name}: diffsteer studio {name}")
        if name not in self._known:
            about = shipped(name)
            recipe = Recipe(name, about.prompt if about else "")
            kind, made = kind_of(recipe), media_of(recipe)
            if kind or made != "image":
                makes = "is no pipeline (EDM2 or ADM)" if kind else f"makes {made}"
                raise InputError(
                    f"{name} {makes}, and the studio shows images of diffusers pipelines: "
                    f"diffsteer sample {name}"
                )
            with self._lock:
                if name not in self._known:  # another tab may have loaded it meanwhile
                    self._known[name] = self._loaded(recipe, about)
        return self._known[name]

    def _loaded(self, recipe: Recipe, about: Shipped | None) -> Model:
        with open_generator(recipe, self.device) as generator:
            assert isinstance(generator, PipelineGenerator)
            pipe = generator.pipe
            guidances = about.guidances if about else {}
            guide = bool(self.guides or (about and about.guide))
            menu = entries(pipe, guide, guidances)
            facts = pipe.scheduler, latent_of(pipe), tuple(menu), hasattr(pipe, "unet")
            return Model(recipe.model, *facts, about)

    def cost(self, recipe: Recipe) -> Cost:
        """Cost of one image of a recipe."""
        require_consistent(recipe)
        return cost_of(recipe, self.model(recipe.model), self.speed)

    @contextmanager
    def opened(self, recipe: Recipe) -> Iterator[PipelineGenerator]:
        """Generator of a recipe, while no other tab has one."""
        self.model(recipe.model)
        with self._lock, open_generator(recipe, self.device) as generator:
            assert isinstance(generator, PipelineGenerator)
            yield generator

    def images(
        self, recipe: Recipe, seeds: list[int], cancelled: threading.Event, keep: bool = True
    ) -> Iterator[Update]:
        """Sample seeds one after the other, with previews, and at the end the strip of the last.

        Args:
            recipe: Of the images.
            seeds: Of the images.
            cancelled: Ends it.
            keep: Whether images go into the history.
        """

        def work(report: Callable[[Update], None]) -> None:
            with self.opened(recipe) as generator:
                for seed in seeds:
                    sample = sampled(generator, seed, cancelled, report)
                    self.speed.note(recipe.model, sample.seconds, sum(sample.nfe.values()))
                    if keep:
                        self.history.add(sample, generator)
                    report(sample)
                if keep:
                    report(strip(generator.pipe, sample.steps))

        yield from followed(self._worker, work, cancelled)

    def close(self) -> None:
        """Leave out what waits to be sampled."""
        self._closing.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def warm_up(self) -> None:
        """Load the first model and sample two steps of it, so that the first click is quick."""
        recipe = self.model(self.models[0]).defaults
        two = Recipe(recipe.model, recipe.prompt, guidance=recipe.guidance, steps=2)
        for _ in range(2):
            for _ in self.images(two, [0], self._closing, keep=False):
                pass


def followed(
    worker: Executor, work: Callable[[Callable[[Any], None]], None], cancelled: threading.Event
) -> Iterator[Any]:
    """Yield what work reports in a thread; raises what it raises, and ends it when it is left."""
    reports: queue.Queue[Any] = queue.Queue()
    end = object()

    def run() -> None:
        try:
            work(reports.put)
        except BaseException as error:  # of the thread, raised again where it is followed
            reports.put(error)
        reports.put(end)

    running = worker.submit(run)
    try:
        while (report := reports.get()) is not end:
            if isinstance(report, BaseException):
                raise report
            yield report
    except GeneratorExit:
        cancelled.set()
        raise
    finally:
        wait([running], timeout=30)

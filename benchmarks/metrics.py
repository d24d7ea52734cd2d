"""Times, errors and memory of the metrics against their peers, in one run.

    python benchmarks/metrics.py [--repeats 3] [--threads 2] [--dim 2048] [--pictures 10000]
        [--only Frechet]

Every measurement is a fresh process, so that its peak memory is its own; methods take turns, so
that a busy machine slows all of them. Peers that are not installed are named as missing.
"""

import argparse
import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsteer.metrics.bootstrap import frechet_resampled, weights
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import F64, Moments

Work = Callable[[argparse.Namespace], dict[str, float]]


@dataclass(frozen=True)
class Method:
    """One way to compute something: what it is called, what it needs, and how it goes."""

    name: str
    needs: str | None
    work: Work


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_measured(options)))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repeats} repeats")
    for title, methods in SECTIONS.items():
        if not title.startswith(options.only):
            continue
        print(f"\n{title.format(**vars(options))}")
        _section(title, methods, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--only", default="", help="how the title of a section begins")
    parser.add_argument("--child", nargs=2, metavar=("SECTION", "METHOD"), help="used by itself")
    return parser.parse_args()


def _section(title: str, methods: Iterable[Method], options: argparse.Namespace) -> None:
    found = [m for m in methods if m.needs is None or importlib.util.find_spec(m.needs)]
    runs: dict[str, list[dict[str, float]]] = {m.name: [] for m in found}
    for _ in range(options.repeats):
        for method in found:
            runs[method.name].append(_run(title, method.name, options))
    ours = [run["seconds"] for run in runs[found[0].name]]
    for name, every in runs.items():
        print(_line(name, every, ours))
    for method in methods:
        if method not in found:
            print(f"  {method.name:34} missing: {method.needs} is not installed")


def _line(name: str, runs: list[dict[str, float]], ours: list[float]) -> str:
    """Medians and, since other load only ever adds, the best run too."""
    seconds = [run.pop("seconds") for run in runs]
    middle, best, spread = statistics.median(seconds), min(seconds), max(seconds) - min(seconds)
    peak = max(run.pop("peak_mib") for run in runs)
    rest = ", ".join(f"{key} {statistics.median(run[key] for run in runs):.6g}" for key in runs[0])
    return (
        f"  {name:35} median {middle:6.2f} s, best {best:6.2f}, spread {spread:6.2f}; "
        f"{middle / statistics.median(ours):5.2f} x ours by median, {best / min(ours):5.2f} by best"
        f"; peak {peak:5.0f} MiB; {rest}"
    )


def _run(title: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    sizes = [f"--{key}={getattr(options, key)}" for key in ("threads", "dim", "pictures")]
    command = [sys.executable, __file__, *sizes, "--child", title, name]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads))
    done = subprocess.run(
        command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measured(options: argparse.Namespace) -> dict[str, float]:
    title, name = options.child
    torch.set_num_threads(options.threads)
    result = next(m for m in SECTIONS[title] if m.name == name).work(options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": peak, **result}


def _timed(work: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = work()
    return value, time.perf_counter() - start


# Frechet distance with a known answer: S2 = A S1 A, so the truth is Tr (I - A) S1 (I - A).


def _known(dim: int, rank: int) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    q1, q2 = (
        torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=F64))[0] for _ in range(2)
    )
    values = torch.arange(1, dim + 1, dtype=F64) ** -1.2
    values[rank:] = 0
    scale = 0.5 + torch.rand(dim, generator=generator, dtype=F64)
    first, a = q1 * values @ q1.mT, q2 * scale @ q2.mT
    first, a = (first + first.mT) / 2, (a + a.mT) / 2
    second = a @ first @ a
    rest = torch.eye(dim, dtype=F64) - a
    return first, (second + second.mT) / 2, (rest @ first @ rest).trace().item()


def _frechet(distance: Callable[[Tensor, Tensor], float]) -> Work:
    def work(options: argparse.Namespace) -> dict[str, float]:
        errors, total = {}, 0.0
        for case, rank in (("full", options.dim), ("deficient", options.dim // 2 - 24)):
            first, second, truth = _known(options.dim, rank)
            value, seconds = _timed(lambda a=first, b=second: distance(a, b))  # type: ignore[misc]
            errors[f"error {case}"] = value - truth
            total += seconds
        return {"seconds": total / 2, **errors}

    return work


def _ours_frechet(first: Tensor, second: Tensor) -> float:
    mean = torch.zeros(len(first), dtype=F64)
    return frechet(Gaussian(mean, first), Gaussian(mean, second))


def _sqrtm_frechet(first: Tensor, second: Tensor) -> float:
    import scipy.linalg

    root = scipy.linalg.sqrtm((first @ second).numpy())
    return float(first.trace() + second.trace() - 2 * root.real.trace())


def _eigvals_frechet(first: Tensor, second: Tensor) -> float:
    root = torch.linalg.eigvals(first @ second).sqrt().real.sum()
    return float(first.trace() + second.trace() - 2 * root)


# Precision, recall, density, coverage.


def _features(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Two sets that overlap in part: 32 directions and a little of all others, cut at 0."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(32, options.dim, generator=generator)
    sets = []
    for gain in (0.9, 1.0):
        x = torch.randn(options.pictures, 32, generator=generator) * gain @ mix
        x += 0.1 * torch.randn(x.shape, generator=generator)
        sets.append(x.relu_())
    return sets[0], sets[1]


def _manifold(overlap: Callable[[Tensor, Tensor], dict[str, float]]) -> Work:
    def work(options: argparse.Namespace) -> dict[str, float]:
        fake, real = _features(options)
        start = time.perf_counter()
        values = overlap(fake, real)
        return {"seconds": time.perf_counter() - start, **values}

    return work


def _fidelity_overlap(full: bool) -> Callable[[Tensor, Tensor], dict[str, float]]:
    def overlap(fake: Tensor, real: Tensor) -> dict[str, float]:
        _declare_nms()
        prc = importlib.import_module("torch_fidelity.metric_prc")
        start = time.perf_counter()
        part = prc.calculate_precision_recall_part
        precision, recall = (prc.calculate_precision_recall_full if full else part)(fake, real)
        seconds = time.perf_counter() - start  # without the import
        return {"precision": precision, "recall": recall, "seconds": seconds}

    return overlap


def _declare_nms() -> None:
    """Let a torchvision built for CUDA import beside a CPU torch, which lacks its operators."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")  # type: ignore[no-untyped-call]
        KEPT_ALIVE.append(library)


KEPT_ALIVE: list[object] = []


def _prdc_overlap(fake: Tensor, real: Tensor) -> dict[str, float]:
    import prdc

    start = time.perf_counter()
    found = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=3)
    seconds = time.perf_counter() - start
    return {name: float(value) for name, value in found.items()} | {"seconds": seconds}


# Moments of a stream.


def _stream(share: float) -> Work:
    def work(options: argparse.Namespace) -> dict[str, float]:
        generator, moments = torch.Generator().manual_seed(0), Moments.empty(options.dim)
        start = time.perf_counter()
        for _ in range(round(share * options.pictures / 100)):
            moments += Moments.of(torch.randn(100, options.dim, generator=generator))
        return {"seconds": time.perf_counter() - start, "pictures": moments.n}

    return work


# Intervals: 200 resamples of a Frechet distance.


def _resamples(method: Callable[[Tensor, Gaussian, Tensor], Tensor]) -> Work:
    def work(options: argparse.Namespace) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(2000, 112, generator=generator, dtype=F64) for _ in range(2))
        reference, w = Gaussian.of(Moments.of(y)), weights(2000, 200)
        start = time.perf_counter()
        values = method(1.1 * x, reference, w)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "mean": values.mean().item(), "std": values.std().item()}

    return work


def _repeated_rows(x: Tensor, reference: Gaussian, w: Tensor) -> Tensor:
    """Gather the rows of each resample and measure them anew."""
    sets = (x.repeat_interleave(row.to(torch.long), dim=0) for row in w)
    return torch.tensor([frechet(Gaussian.of(Moments.of(s)), reference) for s in sets])


def _nothing(options: argparse.Namespace) -> dict[str, float]:
    return {"seconds": 0.0}


SECTIONS: dict[str, tuple[Method, ...]] = {
    "Frechet distance, d = {dim}, full rank and rank d / 2 - 24, mean seconds of both": (
        Method("diffsteer (both roots anew)", None, _frechet(_ours_frechet)),
        Method("scipy.linalg.sqrtm(S1 S2)", "scipy", _frechet(_sqrtm_frechet)),
        Method("torch.linalg.eigvals(S1 S2)", None, _frechet(_eigvals_frechet)),
    ),
    "Precision, recall, density, coverage, {pictures} + {pictures} of {dim} numbers, k = 3": (
        Method("diffsteer", None, _manifold(lambda x, y: manifold(x, y)._asdict())),
        Method("torch-fidelity (P, R)", "torch_fidelity", _manifold(_fidelity_overlap(full=True))),
        Method(
            "torch-fidelity, save_cpu_ram (P, R)",
            "torch_fidelity",
            _manifold(_fidelity_overlap(full=False)),
        ),
        Method("prdc", "prdc", _manifold(_prdc_overlap)),
    ),
    "Frechet distance of 200 resamples, N = 2000, d = 112": (
        Method("diffsteer", None, _resamples(frechet_resampled)),
        Method("each set of rows measured anew", None, _resamples(_repeated_rows)),
    ),
    "Moments of a stream, d = {dim}": (
        Method("all pictures", None, _stream(1)),
        Method("a tenth of them", None, _stream(0.1)),
        Method("import only", None, _nothing),
    ),
}


if __name__ == "__main__":
    main()

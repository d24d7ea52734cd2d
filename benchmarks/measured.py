"""Time and memory of a sampling, for `steer.py`."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]


def timed(run: Run, device: str) -> float:
    """Seconds of one sampling."""
    clock = time.perf_counter if device == "cuda" else time.thread_time
    gc.collect()
    start = clock()
    with torch.no_grad():
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def peak(run: Run, device: str) -> float:
    """Most memory held at a time in one sampling, in MiB beyond what was held before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    kept = most = 0
    events = seen.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        kept += event.nbytes()
        most = max(most, kept)
    return most / 2**20


def ratio(times: list[float], others: list[float]) -> str:
    """Median of the ratios of both in each turn, with its quartiles."""
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"

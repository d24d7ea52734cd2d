"""Views of panorama pipelines, each of which guidances remember by itself."""

from diffsteer.guidance.step_memory import StepMemory, Store
from diffsteer.hf.time_arguments import Now


class PanoramaViews:
    """Memories of the views that a pipeline samples with one scheduler.

    Each view begins anew at every call, in the same order at every timestep. All other pipelines
    have one view.
    """

    def __init__(self) -> None:
        self._memories: list[tuple[StepMemory, int]] = []
        self._view, self._left = 0, 0

    def end(self) -> None:
        """End a run of the pipeline."""
        self._left = 0

    def enter(self, now: Now) -> None:
        """Find the view of a call."""
        left = len(now.tracker.remaining())
        if now.step.first and left > self._left:  # a sampling begins
            self._memories, self._view = [], 0
        elif now.step.first:
            self._view = self._view + 1 if left == self._left else 0
        self._left = left

    def memory(self, step: int) -> StepMemory:
        """Memory of guidances of this view, as a step sees it."""
        if self._view == len(self._memories):
            return StepMemory(Store())
        memory, last = self._memories[self._view]
        return memory if last == step else StepMemory(memory.store)

    def keep(self, memory: StepMemory, step: int) -> None:
        """Keep the memory of this view after a step."""
        self._memories[self._view : self._view + 1] = [(memory, step)]

"""Timesteps are found without reading the device, and are right."""

import diffusers
import pytest
import tiny
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from diffsteer import CFG, PAG, SAG, AutoNoise
from diffsteer.hf.step_guidance import StepGuidance
from diffsteer.hf.time_arguments import predicted
from diffsteer.hf.timesteps import StepTracker
from diffsteer.steering import steer


def scheduler(cls=diffusers.DDIMScheduler, n=5, **more):
    made = cls(**more)
    made.set_timesteps(n)
    return made


CALLS = {
    "DDIMScheduler": [1] * 6,
    "EulerDiscreteScheduler": [1] * 6,
    "UniPCMultistepScheduler": [1] * 6,
    "DEISMultistepScheduler": [1] * 6,
    "DPMSolverSinglestepScheduler": [1] * 6,
    "HeunDiscreteScheduler": [2] * 5 + [1],
    "KDPM2DiscreteScheduler": [2] * 5 + [1],
    "KDPM2AncestralDiscreteScheduler": [2] * 5 + [1],
    "PNDMScheduler": [4] * 3 + [1] * 3,
    "PNDMScheduler skip_prk_steps": [2] + [1] * 5,
    "FlowMatchEulerDiscreteScheduler": [1] * 6,
    "FlowMatchHeunDiscreteScheduler": [2] * 5 + [1],
}
"""Calls of the network in each of 6 steps, by scheduler."""


def steps_of(calls) -> list[int]:
    return [step for step, n in enumerate(calls) for _ in range(n)]


@pytest.mark.parametrize("as_sent", ["view", "number", "float32", "bfloat16", "meta"])
@pytest.mark.parametrize("name", CALLS)
def test_steps_are_those_of_the_scheduler(name: str, as_sent: str) -> None:
    """In whatever form the network gets the timestep, and in the next sampling as well."""
    cls, *flags = name.split()
    made, tracker = scheduler(getattr(diffusers, cls), **dict.fromkeys(flags, True)), StepTracker()
    counts = hasattr(made, "step_index") or cls == "PNDMScheduler"
    x = torch.zeros(1, 4, 2, 2)
    for _ in range(2):
        made.set_timesteps(6)
        assert len(made.timesteps) == sum(CALLS[name])
        for i, (t, step) in enumerate(zip(made.timesteps, steps_of(CALLS[name]), strict=True)):
            given = {
                "view": t.expand(4),
                "number": t.item() / 1000,
                "float32": t.float().expand(4) / 1000,
                "bfloat16": t.expand(4).bfloat16() / 1000,
                "meta": torch.empty(4, device="meta") if i and counts else t / 1000,
            }[as_sent]
            read = tracker.read(given, made, 1.0 if as_sent == "view" else 1000.0)
            assert (read.time.item(), read.step, read.first) == (t.item(), step, i == 0)
            assert [step for step, _ in tracker.remaining()] == steps_of(CALLS[name])[i:]
            made.step(x, t, x)


@pytest.mark.parametrize(
    ("name", "start", "steps"),
    [
        ("DDIMScheduler", 3, [3, 4, 5]),
        ("HeunDiscreteScheduler", 6, [3, 3, 4, 4, 5]),
        ("KDPM2AncestralDiscreteScheduler", 6, [3, 3, 4, 4, 5]),
        ("PNDMScheduler skip_prk_steps", 3, [3, 3, 4, 5]),
    ],
)
def test_steps_from_the_middle(name: str, start: int, steps: list[int]) -> None:
    """Image to image leaves steps out; PNDM evaluates its first one twice wherever it begins."""
    cls, *flags = name.split()
    made, tracker = scheduler(getattr(diffusers, cls), **dict.fromkeys(flags, True)), StepTracker()
    made.set_timesteps(6)
    for as_sent in (lambda t: t, lambda t: t.item() / 1000):
        if hasattr(made, "set_begin_index"):
            made.set_timesteps(6)
            made.set_begin_index(start)
        read, x = [], torch.zeros(1, 4, 2, 2)
        for t in made.timesteps[start:]:
            given = as_sent(t)
            read.append(tracker.read(given, made, 1000.0 if given is not t else 1.0).step)
            made.step(x, t, x)
        assert read == steps
        made.set_timesteps(6)


def test_steps_in_a_pipeline(tmp_path) -> None:
    """`.over(0, 2)` guides the first two steps, however many calls these have."""
    pipe, rows = tiny.stable_diffusion(scheduler(), tmp_path), []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for name in (n for n in CALLS if n.startswith(("PNDM", "KDPM2A"))):
        cls, *flags = name.split()
        pipe.scheduler = getattr(diffusers, cls)(**dict.fromkeys(flags, True), beta_end=0.012)
        with steer(pipe, CFG(5).over(0, 2)):
            pipe("a cat", guidance_scale=2.0, num_inference_steps=6, output_type="latent")
        assert rows == [2 if step < 2 else 1 for step in steps_of(CALLS[name])], name
        rows.clear()


def test_views_of_the_timesteps() -> None:
    """Each is found by its place, whatever a pipeline expands, and repeated ones too."""
    made, clock = scheduler(diffusers.HeunDiscreteScheduler), StepTracker()
    for i, t in enumerate(made.timesteps[2:], 2):
        tick = clock.read(t.expand(4), made)
        assert (tick.time.item(), tick.step, tick.first) == (t.item(), i // 2, i == 2)
    made.set_timesteps(7)
    assert clock.read(made.timesteps[0], made)[1:] == (0, True)
    assert clock.read(made.timesteps[1], made)[1:] == (0, False)
    assert clock.read(made.timesteps[0], made)[1:] == (0, True)  # sampled once more


def test_other_times() -> None:
    """Numbers, copies and what is no timestep of the scheduler are read as they are."""
    made, clock = scheduler(), StepTracker()
    for given in (601, 601.0, torch.tensor(601), torch.tensor([601.0, 601.0])):
        tick = clock.read(given, made)
        assert (tick.time.item(), tick.step) == (601.0, 1)
    assert clock.read(torch.tensor(590), made).time == 590
    assert clock.read(torch.tensor(0.59), made, 1000.0).time == pytest.approx(590)
    assert clock.read(torch.tensor(602.0).bfloat16(), made).time == made.timesteps[1]
    assert clock.read(torch.tensor(5), diffusers.DDIMScheduler(), 1.0).time == 5


def test_an_accelerator_is_not_read() -> None:
    """Meta tensors cannot be; the scheduler says where it is."""
    made, clock = scheduler(diffusers.FlowMatchEulerDiscreteScheduler), StepTracker()
    made.set_begin_index(0)
    x = torch.zeros(1)
    clock.read(made.timesteps[0] / 1000, made, 1000.0)
    for i, t in enumerate(made.timesteps):
        if i:
            tick = clock.read(torch.empty(2, device="meta"), made, 1000.0)
            assert (tick.time.item(), tick.step, tick.first) == (t.item(), i, False)
        made.step(x, t, x)


class Reads(TorchDispatchMode):
    """Counts what would wait for an accelerator: numbers read from what the network is given.

    And from all that is computed from it. Coefficients live on the CPU wherever a pipeline runs, so
    that reading them is free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.there = 0, WeakTensorKeyDictionary()

    def mark(self, tree) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor):
                self.there[leaf] = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(x in self.there for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)):
            self.count += any(not isinstance(x, torch.Tensor) for x in tree_leaves(out))
            self.mark(out)
        return out


class Copies(TorchFunctionMode):
    """Counts copies to the CPU as well, which nothing dispatches where all lies there."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.tolist, torch.Tensor.cpu) and args[0] in self.reads.there:
            self.reads.count += 1
            out = torch.tensor(out.tolist(), dtype=out.dtype) if func is torch.Tensor.cpu else out
        return out


@pytest.mark.parametrize("which", ["sd", "dit"])
def test_later_steps_read_one_number_each(which: str, tmp_path, monkeypatch) -> None:
    """Each checks what the pipeline makes of its network's answers; the first also measures it."""
    made = diffusers.DDIMScheduler(clip_sample=False)
    if which == "sd":
        pipe, total = tiny.stable_diffusion(made, tmp_path), CFG(5) + PAG(3) + SAG(0.5)
        total = total.within(0, 1e4).over(0, 9) + PAG(1).rescaled(0.7) + AutoNoise(2)
    else:
        pipe, total = tiny.dit(made), CFG(5) + PAG(3, layer="transformer_blocks.1")
    counts, reads = [0], Reads()

    def watched(act):
        def watching(*args, **kwargs):
            reads.mark((args, kwargs))
            before = reads.count
            with reads, Copies(reads):
                out = act(*args, **kwargs)
            counts[-1] += reads.count - before
            return out

        return watching

    def stepped(*args, **kwargs):  # what the scheduler reads is its own
        counts.append(0)
        before = reads.count
        out = type(made).step(made, *args, **kwargs)
        reads.count = before
        return out

    monkeypatch.setattr(StepGuidance, "_answer", watched(StepGuidance._answer))
    monkeypatch.setattr(StepGuidance, "_guided_step", watched(StepGuidance._guided_step))
    made.step = stepped
    with steer(pipe, total):
        for n in (4, 3):
            call = {"guidance_scale": 2.0, "num_inference_steps": n, "output_type": "np"}
            pipe(["a", "b"], **call) if which == "sd" else pipe([1, 7], **call)
    more = int(which == "sd")  # AutoNoise reads what the network is told of the time
    assert counts[2:5] + counts[6:] == [1 + more] * 5


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"shift": 3.0}, {"invert_sigmas": True}),
        *({"num_train_timesteps": 500}, {"num_train_timesteps": 500, "invert_sigmas": True}),
    ],
    ids=str,
)
def test_the_data_that_is_predicted_is_where_a_step_to_the_end_goes(settings) -> None:
    """Flows of any number of timesteps, from noise to data or, of Mochi, the other way."""
    own = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    own.set_timesteps(sigmas=[0.6])
    out, x = torch.randn(2, 1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    said = predicted(own, out, own.timesteps[0], x)
    assert 0.1 < said.level.sigma < 0.9
    torch.testing.assert_close(said.x0, own.step(out, own.timesteps[0], x)[0])

"""`diffsteer plan`: what a guidance costs in each step, without any network."""

from itertools import groupby

from diffsteer.cli.schedule import load
from diffsteer.core.parse import parse
from diffsteer.core.prediction import V, Velocity
from diffsteer.core.schedule import Flow
from diffsteer.core.spacing import grid
from diffsteer.guidance import Guidance
from diffsteer.guidance.cost import plans, total


def show(guidance: str, schedule: str, steps: int, spacing: str) -> str:
    """Rows and passes of each step of a sampling, and their sum, for one sample."""
    steered = parse(guidance, Guidance)
    source, _, own = load(schedule)
    spacing = spacing or own or source.spacing
    prediction = Velocity() if isinstance(source, Flow) else V()
    levels = grid(source, steps, spacing)[:-1]
    costs = plans(steered, levels, source, prediction)
    lines = [f"{steered!r} on {schedule}, {steps} steps, {spacing}:"]
    for cost, run in groupby(range(steps), key=lambda i: costs[i]):
        those = list(run)
        first, last = those[0], those[-1]
        span = f"step {first + 1}" if first == last else f"steps {first + 1} to {last + 1}"
        noise = f"sigma/alpha {levels[first].ratio:.3g}"
        if first != last:
            noise += f" to {levels[last].ratio:.3g}"
        lines.append(f"  {span} ({noise}): {cost}")
    whole = f"In all {total(costs)}; without guidance main: {steps} rows."
    return "\n".join([*lines, whole, "A row is one network evaluation (NFE); a pass is a batch."])

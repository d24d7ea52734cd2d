"""The section of the page on what is predicted on the way."""

from collections.abc import Mapping

from diffsteer.report.html import table
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.cells import cell, grids, key, side_by_side
from diffsteer_lab.noise_analysis.charts import TRAJECTORIES
from diffsteer_lab.noise_analysis.trajectory import ALL, LAYOUT, TEACHER, images_of


def trajectory_section(found: Analysis, drawn: Mapping[str, str]) -> str:
    """Charts over the steps, the numbers of the first one, and images."""
    left = {name: found.record.ratios(name) for name in (ALL, LAYOUT, TEACHER)}
    ways = list(left[ALL]["1"])
    head = {ALL: "to its own end", LAYOUT: "to its own end, lowest tenth", TEACHER: "to guided"}
    rows = []
    for way in ways:
        first = "".join(f"<td>{cell(e['1'][way])}</td>" for e in left.values() if e)
        rows.append(f"<tr><th>{way}</th>{first}</tr>")
    return (
        "<h2>8. Over the steps of sampling</h2>"
        "<p>In each step, of which schedulers of second order take two for one, the network says "
        "what it takes for the clean data, x0; in guided sampling "
        "guidance included, which leads too far at first. How far is that from the latents in "
        "which the sampling ends? The number is the squared distance over the square of that end: "
        "0 where all of it is there already, 1 where no more of it is there than in latents of "
        "zeros. The paper says that with refined noise the layout is there from the first step: "
        "the lowest tenth of frequencies, mean included, is taken alone in the second chart. "
        f"{_third(found)}</p><p>{key(ways)}</p>"
        + side_by_side(drawn, TRAJECTORIES)
        + "<p>The first step:</p>"
        + table(["x0 of step 1", *(head[name] for name, each in left.items() if each)], rows)
        + grids(found, {way: images_of(way) for way in ways})
    )


def _third(found: Analysis) -> str:
    if found.recipe["guidance"]:
        return "The third is of the distance to where guided sampling of the same noise ends."
    return "Without a guidance there is no guided image to compare with."

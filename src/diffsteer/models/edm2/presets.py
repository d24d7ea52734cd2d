"""Published configurations of EDM2 by their names; importable without torch.

A name ends in the metric that its settings were tuned for. "guid" is classifier-free guidance by an
unconditional network, "autog" autoguidance. All take 32 Heun steps from sigma 80 to 0.002 without
churn; a figure is the best of three sets of 50,000 images.

Source: Karras et al. 2024, https://arxiv.org/abs/2406.02507, table 1 and the published presets;
"interval" is Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724.
"""

import csv
from dataclasses import dataclass, replace
from importlib.resources import files

from diffsteer.core.errors import InputError


@dataclass(frozen=True)
class Net:
    """A published network.

    Attributes:
        size: Data set, size and whether it is unconditional, such as "img512-xs-uncond".
        mi: Training images in units of 2^20.
        ema: Relative width of its average; None where it is not recorded here.
    """

    size: str
    mi: int
    ema: float | None

    @property
    def stem(self) -> str:
        """Name of its file without suffix, such as "edm2-img512-s-2147483-0.130"."""
        if self.ema is None:
            raise InputError(
                f"which average of edm2-{self.size} gave the published figure is not recorded "
                "here: give its relative width, such as --ema 0.1"
            )
        return f"edm2-{self.size}-{self.mi * 2**20 // 1000:07d}-{self.ema:.3f}"


@dataclass(frozen=True)
class Preset:
    """A published configuration.

    Attributes:
        name: As users know it.
        main: The network.
        guide: The network that guides it; None for none.
        weight: Of guidance, 1 is off; None where it is not recorded here.
        interval: Guide where lo < sigma <= hi; None is everywhere.
        metric: What was measured, "fid" or "fd_dinov2".
        figure: Its published value.
    """

    name: str
    main: Net
    guide: Net | None
    weight: float | None
    interval: tuple[float, float] | None
    metric: str
    figure: float

    def varied(self, weight: float | None, ema: float | None, guide_ema: float | None) -> "Preset":
        """Return it with other settings, each as it is where None; `figure` then says nothing."""
        for width in (ema, guide_ema):
            if width is not None and round(width, 3) != width:
                raise InputError(
                    f"relative width {width}: names of files have three decimals, such as 0.125"
                )
        main = self.main if ema is None else replace(self.main, ema=ema)
        guide = self.guide
        if guide is None and (weight, guide_ema) != (None, None):
            raise InputError(f"{self.name} has no guide: it takes neither weight nor guide's ema")
        if guide is not None and guide_ema is not None:
            guide = replace(guide, ema=guide_ema)
        weight = self.weight if weight is None else weight
        return replace(self, main=main, guide=guide, weight=weight)

    def guidance(self) -> str:
        """Text of the guidance; empty for none."""
        if self.guide is None:
            return ""
        if self.weight is None:
            raise InputError(
                f"the weight of {self.name} is not recorded here: give one, such as --weight 1.4"
            )
        where = "" if self.interval is None else ".within({}, {})".format(*self.interval)
        return f"Auto({self.weight}){where}"


def presets() -> dict[str, Preset]:
    """All presets by name."""
    text = (files("diffsteer.models.edm2") / "presets.csv").read_text("utf-8")
    return {row["name"]: _preset(row) for row in csv.DictReader(text.splitlines())}


def preset(name: str) -> Preset:
    """Return a preset."""
    known = presets()
    if name not in known:
        raise InputError(f"no preset is called {name!r}: there are {', '.join(known)}")
    return known[name]


def _preset(row: dict[str, str]) -> Preset:
    guide = (
        Net(row["guide"], int(row["guide_mi"]), _known(row["guide_ema"])) if row["guide"] else None
    )
    interval = (float(row["lo"]), float(row["hi"])) if row["lo"] else None
    main = Net(row["main"], int(row["main_mi"]), _known(row["ema"]))
    figure, weight = float(row["figure"]), _known(row["weight"])
    return Preset(row["name"], main, guide, weight, interval, row["metric"], figure)


def _known(text: str) -> float | None:
    return float(text) if text not in ("", "?") else None

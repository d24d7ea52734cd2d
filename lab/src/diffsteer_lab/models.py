"""Models that ship with the lab, as extensions "diffsteer.models"."""

from importlib.resources import files
from pathlib import Path

from diffsteer.hf.load import Shipped

_POCKET = Path(str(files("diffsteer_lab"))) / "assets" / "pocket"

POCKET = Shipped(_POCKET / "pocket", guide="pocket-guide")
POCKET_EPS = Shipped(_POCKET / "pocket-eps", base=_POCKET / "pocket")
POCKET_GUIDE = Shipped(_POCKET / "pocket-guide")
POCKET_REFINER = Shipped(_POCKET / "pocket-refiner")

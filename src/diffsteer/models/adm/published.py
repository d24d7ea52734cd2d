"""The published ADM and IDDPM checkpoints by file name, with the flags of their README files.

Source: https://github.com/openai/guided-diffusion and https://github.com/openai/improved-diffusion.
IDDPM's code rescales timesteps unless told not to, has no heads of given channels and changes
resolution by convolutions; `published.csv` writes that out.
"""

import csv
from importlib.resources import files

from diffsteer.models.adm.flags import Flags

_TABLE = (files("diffsteer.models.adm") / "published.csv").read_text("utf-8")
PUBLISHED = {row["name"]: Flags.parse(row["flags"]) for row in csv.DictReader(_TABLE.splitlines())}
"""Flags by file name."""

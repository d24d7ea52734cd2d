"""CPU seconds (user and system) of what every command waits for first, medians and range.

    python benchmarks/startup.py [--runs 5]

Each run is a process of its own, in turns. CPU seconds, since the clock of a busy machine says
little; on an idle one a command takes about as long.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

SAMPLE = [
    "sample",
    "critters",
    "--prompt",
    "a purple three-eyed critter with antennae, on a black background",
    "--steps",
    "8",
]
COMMAND = ["-m", "diffsteer.cli"]
UNET = "from diffusers import UNet2DConditionModel"
STARTS = {
    "import torch": ["-c", "import torch"],
    "import diffsteer": ["-c", "import diffsteer"],
    "from diffsteer import steer": ["-c", "from diffsteer import steer"],
    "diffsteer --help": [*COMMAND, "--help"],
    "a mistake: diffsteer sample critters --guidance cfg(5)": [
        *COMMAND,
        *SAMPLE[:2],
        "--guidance=cfg(5)",
    ],
    "import torch._dynamo": ["-c", "import torch._dynamo"],
    "import peft": ["-c", "import peft"],
    "import transformers": ["-c", "import transformers"],
    UNET: ["-c", UNET],
    "from diffusers import StableDiffusionPipeline": [
        "-c",
        "from diffusers import StableDiffusionPipeline",
    ],
    "diffsteer sample critters, one image": [*COMMAND, *SAMPLE],
}


def seconds(words: list[str], folder: str) -> float:
    """CPU seconds of a process of Python, and of those that it waited for."""
    start = os.times()
    subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
    end = os.times()
    return end.children_user + end.children_system - start.children_user - start.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(runs):
        for name, words in STARTS.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(seconds(words, folder))
    print(f"| of {runs} runs | CPU seconds: median (least to most) |\n|---|---|")
    for name, values in taken.items():
        text = f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        print(f"| `{name}` | {text} |")


if __name__ == "__main__":
    main()

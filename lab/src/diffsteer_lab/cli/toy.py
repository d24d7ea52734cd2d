"""`diffsteer toy`; importable without torch."""

from pathlib import Path


def toy(
    out: Path = Path("toy"), seeds: str = "0", guides: str = "0-2", samples: int = 8192
) -> None:
    """Show what guidance does where the truth is known: autoguidance and CFG on a tree of points.

    Trains networks of two dimensions in a quarter of an hour, samples them in every way, and
    measures the samples against the exact distribution. Networks that are in the folder are not
    trained again.

    Args:
        out: Folder for toy.png, toy.md, toy.json and networks.
        seeds: Of main networks, such as "0" or "1,2".
        guides: Seeds of guides, for autoguidance and for CFG; each is used with each main network.
        samples: Points that each way makes, and exact ones to compare with.
    """
    from diffsteer.io.atomic import require_writable
    from diffsteer.io.seeds import parse_seeds

    require_writable(out)
    mains, guided = parse_seeds(seeds), parse_seeds(guides)
    from diffsteer_lab.toy.run import run

    print(run(out, mains, guided, samples))
    print(f"\n{out / 'toy.png'}, {out / 'toy.md'}, {out / 'toy.json'}")

"""Damaged and hostile variants of good files: bytes, trees of JSON, texts."""

import json
import random
import re
from typing import Any

NAMES = [b"posix\nsystem", b"builtins\neval", b"os\nsystem", b"torch\nload", b"nt\nsystem"]


def of_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, copies, insertions and foreign names."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        if not made:
            break
        at, size = rng.randrange(len(made)), rng.choice((1, 2, 4, 8, 64, 1024))
        match rng.randrange(7):
            case 0:
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at : at + size] = rng.randbytes(min(size, 8))
            case 2:
                del made[at : at + size]
            case 3:
                made[at:at] = made[(other := rng.randrange(len(made))) : other + size]
            case 4:
                made[at : at + 1] = b"c" + rng.choice(NAMES) + b"\n" + b"(R"
            case 5:
                made[at : at + 1] = bytes([rng.randrange(256)]) * rng.choice((1, 1, 500))
            case 6:
                del made[max(at, 1) :]
    return bytes(made)


def deep(levels: int) -> Any:
    tree: Any = 1
    for i in range(levels):
        tree = [tree] if i % 2 else {"a": tree}
    return tree


HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, -(2**70), int("4" * 400), 10**9),
    *(0.5, -0.0, 1e308, -1e308, float("inf"), float("nan"), 5e-324),
    *("", "x", "1", "true", "\ud800", "a\0b", "x" * 5000, "é\u2028\r\n", "%s{w}{0}", "../../etc"),
    *("/dev/zero", "/etc/passwd", "."),
    *([], {}, [1], [[1, 2]], {"a": 1}, [None] * 50, deep(60), deep(200)),
]


def of_tree(tree: Any, rng: random.Random) -> Any:
    """Values of other types, removed, renamed and exchanged entries."""
    tree = copied(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = _places(tree)
        if not places:
            return copied(rng.choice(HOSTILE))
        node, key = rng.choice(places)
        match rng.randrange(10):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(["x", "", "_class_name", "model", "seed", "a" * 300])] = node.pop(
                    key
                )
            case 2:
                other, name = rng.choice(_places(tree))
                node[key] = copied(other[name]) if isinstance(other, dict) else 0
            case 3 if type(node[key]) in (int, float) and abs(node[key]) < 1e300:
                node[key] = node[key] * rng.choice([-1, 0, 2, 1e3, 1e300, 10**6])
            case _:
                node[key] = copied(rng.choice(HOSTILE))
    return tree


def copied(tree: Any) -> Any:
    return json.loads(json.dumps(tree))


def _places(tree: Any) -> list[Any]:
    places, nodes = [], [tree]
    for node in nodes:
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            places += [(node, key) for key in keys]
            nodes += [node[key] for key in keys]
    return places


def json_bytes(tree: Any, rng: random.Random) -> bytes:
    """JSON of a changed tree, or changed JSON; now and then what is only partly JSON."""
    if rng.random() < 0.3:
        return of_bytes(json.dumps(tree).encode(), rng)
    if rng.random() < 0.03:
        return b"[" * rng.choice((10, 100, 990, 100_000))
    return json.dumps(of_tree(tree, rng)).encode()


def of_text(words: list[str], texts: list[str], rng: random.Random) -> str:
    """A good text with words and letters changed, or words at random."""
    text = rng.choice(texts)
    match rng.randrange(12):
        case 0:
            return "".join(rng.choice(words) for _ in range(rng.randrange(1, 30)))
        case 1:
            return text + rng.choice(words) * rng.choice((1, 5, 100, 900))
        case 2:
            count = rng.choice((1, 30, 60, 250))
            return rng.choice(["(", "2 * (", "-", "CFG(", "Clamped("]) * count + text + ")" * count
        case 3:
            return of_bytes(text.encode(), rng).decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2))):
        numbers = list(re.finditer(r"[0-9.]+", text))
        if numbers and rng.random() < 0.7:
            number = rng.choice(numbers)
            usual = ["0", "1", "0.7", "3", "9", "1e-3", "100"]
            value = rng.choice(usual if rng.random() < 0.6 else words)
            text = text[: number.start()] + value + text[number.end() :]
        else:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(words) + text[at + rng.choice((0, 1, 3)) :]
    return text

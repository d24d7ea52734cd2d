"""The core imports torch alone, nothing points back, and help needs no torch."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import diffsteer

ROOT = Path(diffsteer.__file__).parent
LAYERS = {  # what each may import of diffsteer besides itself
    "core": set(),
    "io": {"core"},
    "guidance": {"core"},
    "models": {"core", "guidance", "io"},
    "hf": {"core", "guidance", "io"},
    "refine": {"core", "guidance", "io", "hf"},
    "steering": {"core", "guidance", "io", "hf", "refine"},
    "generate": {"core", "guidance", "io", "models", "hf", "refine", "steering"},
}
LAYERS["metrics"] = {*LAYERS["generate"], "generate"}
LAYERS["report"] = {*LAYERS["metrics"], "metrics"}
LAYERS["doctor"] = {*LAYERS["report"], "report"}
LAYERS["train"] = {*LAYERS["metrics"], "metrics"}
LAYERS["tune"] = {*LAYERS["report"], "report"}
LAYERS["studio"] = {*LAYERS["doctor"], "doctor"}
LAYERS["cli"] = {*LAYERS["report"], "report", "train", "tune", "doctor", "studio"}
LAYERS["_renamed"], LAYERS["__init__"] = set(), {"_renamed"}
HEAVY = {"diffusers", "transformers", "accelerate", "peft", "matplotlib", "gradio"}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return names


def layer(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_inwards(path: Path) -> None:
    own = {(n + ".").split(".")[1] for n in imports(path) if n.startswith("diffsteer")}
    assert own <= {layer(path), *LAYERS[layer(path)]}


def test_files_and_most_functions_are_short() -> None:
    lengths = []
    for path in FILES:
        text = path.read_text("utf-8")
        assert text.count("\n") <= 300, path
        defined = ast.FunctionDef, ast.AsyncFunctionDef
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, defined)]
        lengths += [f.end_lineno - f.lineno + 1 for f in functions]
    assert sorted(lengths)[len(lengths) * 9 // 10] <= 25
    assert not {path.stem for path in FILES} & {"utils", "helpers", "misc"}


def test_no_module_imports_itself_through_others() -> None:
    """Layers that know each other, as hf and refine do, are in order by module; lazily too."""
    modules = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p for p in FILES}
    order = graphlib.TopologicalSorter()
    for name, path in modules.items():
        found = {n.rpartition(".")[0] for n in imports(path)} | imports(path)
        order.add(name, *(found & modules.keys() - {name}))
    order.prepare()  # raises where there is a cycle


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if layer(p) in ("core", "guidance")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_core_needs_torch_only(path: Path) -> None:
    third_party = {n.split(".")[0] for n in imports(path)} - set(sys.stdlib_module_names)
    assert third_party <= {"torch", "diffsteer", "typing_extensions"}


def test_a_class_is_abstract_or_final() -> None:
    """Nothing of ours inherits from a class that can be made; errors are caught by their base."""
    files = [p.relative_to(ROOT.parent).with_suffix("") for p in FILES if p.stem != "__main__"]
    names = [".".join(p.parts).removesuffix(".__init__") for p in files]
    modules = [importlib.import_module(name) for name in names]
    ours = {c for m in modules for c in vars(m).values() if inspect.isclass(c)}
    ours = {c for c in ours if c.__module__.startswith("diffsteer.")}
    for c in ours:
        for base in set(c.__mro__[1:]) & ours:
            interface = inspect.isabstract(base) or getattr(base, "_is_protocol", False)
            assert interface or issubclass(base, Exception), f"{c} inherits from {base}"


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_needs_no_torch() -> None:
    code = "from diffsteer.cli.main import main\nsys.argv = ['diffsteer', '--help']\n"
    loaded = loaded_after(code + "try: main()\nexcept SystemExit as end: assert not end.code")
    assert not loaded & {"torch", *HEAVY}


def test_core_loads_nothing_heavy() -> None:
    assert not loaded_after("import diffsteer\ndiffsteer.DDIM; diffsteer.grid") & HEAVY


def test_every_public_name_is_there() -> None:
    assert all(getattr(diffsteer, name) is not None for name in diffsteer.__all__)


def test_version_needs_no_torch() -> None:
    code = "from diffsteer.cli.main import main\nsys.argv = ['diffsteer', '--version']\nmain()"
    assert not loaded_after(code) & {"torch", *HEAVY}
    assert diffsteer.__version__.split(".")[:2] == ["0", "2"]

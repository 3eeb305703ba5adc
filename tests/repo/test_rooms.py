"""Rooms import only the rooms below them, without cycles. Only baselines and diagnose reach privileged contexts."""

import ast
import functools
import graphlib
from collections import defaultdict
from pathlib import Path

import verl_cast

ROOT = Path(verl_cast.__file__).parent
PRIVILEGED = "verl_cast.teacher.privileged"
# Room -> the rooms that it may import. A file at the root is a room of its own.
ORDER = {
    "config": (),
    "files": (),
    "seams": (),
    "wire": (),
    "trajectories": ("files",),
    "advantage": ("config",),
    "verifier": (),
    "platform": ("seams",),
    "teacher": ("config", "files", "wire"),
    "checks": ("config", "files", "platform", "seams", "teacher"),
    "training": ("advantage", "config", "checks", "files", "seams", "teacher", "trajectories", "wire"),
    "plugin": ("config", "checks", "platform", "seams", "training"),
    "tools": (
        "advantage",
        "config",
        "files",
        "checks",
        "platform",
        "seams",
        "teacher",
        "training",
        "trajectories",
        "wire",
    ),
    "__init__": ("config",),
    "__main__": ("tools",),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@functools.cache
def imports(module: str) -> set[tuple[str, bool]]:
    """Modules of the package that a module imports, each with True unless the import is inside a function."""
    tree = ast.parse(MODULES[module].read_text())
    in_functions = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            # `from verl_cast.tools import stats` imports a module, `from verl_cast.config import CastConfig` a name.
            of_package = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in of_package]
        else:
            continue
        found |= {(name, node not in in_functions) for name in names if name.split(".")[0] == "verl_cast"}
    return found


def test_a_room_imports_only_the_rooms_below_it():
    assert {room_of(module) for module in MODULES} == set(ORDER)
    for module in MODULES:
        room = room_of(module)
        # Its own room, and the package's `__init__` for the version.
        allowed = {room, "__init__", *ORDER[room]}
        foreign = {name for name, _ in imports(module) if room_of(name) not in allowed}
        assert not foreign, f"{module} ({room}) imports {sorted(foreign)}"


def test_no_imports_run_in_a_circle():
    """Imports inside functions count too."""
    arrows = {module: {name for name, _ in imports(module)} - {"verl_cast"} for module in MODULES}
    graphlib.TopologicalSorter(arrows).prepare()  # a CycleError names the circle


def test_privileged_contexts_are_reached_by_baselines_and_the_diagnosis_alone():
    """A run reaches them only through imports inside functions of three modules. A CAST run does not call these."""
    importers = defaultdict(set)
    for module in MODULES:
        for name, at_once in imports(module):
            if name.startswith(PRIVILEGED) and not module.startswith(PRIVILEGED):
                importers[at_once].add(module)
    assert importers[False] == {"verl_cast.checks.run", "verl_cast.training.trainer", "verl_cast.training.worker"}
    assert importers[True] == {"verl_cast.tools.diagnose.privileged"}

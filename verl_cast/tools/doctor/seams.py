"""Section "Seams": the functions of verl that verl_cast relies on; for the CPU platform also of vLLM and Megatron."""

import importlib
import importlib.util

from verl_cast.platform import is_cpu
from verl_cast.seams import SEAMS, SeamChanged, parameters_of
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok


def check(with_megatron: bool) -> list[Line]:
    """Import the modules that hold the seams. A changed or missing seam is an error that names it.

    Args:
        with_megatron: check Megatron's too (the run trains with it).
    """
    broken = [line for module_name in SEAMS for line in _broken(module_name)]
    count = sum(map(len, SEAMS.values()))
    lines = broken or [ok("verl", f"{count} functions in {len(SEAMS)} modules match what verl_cast was written for")]
    return lines + (_cpu_platform(with_megatron) if is_cpu() else [])


def _broken(module_name: str) -> list[Line]:
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:  # an import beside unknown versions may raise anything
        return [error(module_name.rpartition(".")[2], f"{module_name} cannot be imported: {first_line(problem)}")]
    lines = []
    for name, expected in SEAMS[module_name].items():
        try:
            found = parameters_of(module, name, expected)
        except SeamChanged as problem:
            lines.append(error(name, str(problem)))
            continue
        if found != expected:
            lines.append(
                error(
                    name,
                    f"{module_name}.{name} takes ({', '.join(found)}) here; verl_cast was written for "
                    f"({', '.join(expected)}).",
                )
            )
    return lines


def _cpu_platform(with_megatron: bool) -> list[Line]:
    """Import the modules that the CPU platform changes: it checks its seams at their import."""
    from verl_cast.platform import cpu, megatron

    departures = [*cpu.DEPARTURES, *(megatron.DEPARTURES if with_megatron else ())]
    lines, modules = [], list(dict.fromkeys(name for name, _ in departures))
    for module_name in modules:
        package = module_name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            lines.append(note("CPU platform", f"{module_name}: skipped, {package} is not installed"))
            continue
        try:
            importlib.import_module(module_name)
        except Exception as problem:  # SeamChanged, or as above
            lines.append(error("CPU platform", f"{module_name}: {first_line(problem)}"))
    if not any(line.mark == "error" for line in lines):
        lines.insert(0, ok("CPU platform", f"{len(departures)} departures in {len(modules)} modules still fit"))
    return lines

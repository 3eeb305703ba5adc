"""Section "Seams": the functions of verl that verl_cast relies on; for the CPU platform also of vLLM and Megatron."""

import importlib
import importlib.util

from verl_cast.platform import is_cpu
from verl_cast.seams import SEAMS, changed_seams
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok


def check(with_megatron: bool) -> list[Line]:
    """Import the modules that hold the seams. A changed or missing seam is an error that names it.

    Args:
        with_megatron: check Megatron's too (the run trains with it).
    """
    lines = []
    for module_name in SEAMS:
        try:
            lines += [error(name, problem) for name, problem in changed_seams(module_name)]
        except Exception as problem:  # an import beside unknown versions may raise anything
            label = module_name.rpartition(".")[2]
            lines.append(error(label, f"{module_name} cannot be imported: {first_line(problem)}"))
    count = sum(map(len, SEAMS.values()))
    lines = lines or [ok("verl", f"{count} functions in {len(SEAMS)} modules match what verl_cast was written for")]
    return lines + (_cpu_platform(with_megatron) if is_cpu() else [])


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

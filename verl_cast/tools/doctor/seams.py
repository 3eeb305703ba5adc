"""Section "Seams": every function of verl (and, on the CPU platform, of verl, vLLM and Megatron) that is relied on."""

import importlib
import importlib.util

from verl_cast.platform import is_cpu
from verl_cast.seams import SEAMS, SeamChanged, parameters_of
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok


def check(with_megatron: bool) -> list[Line]:
    """Imports the modules that hold the seams; a changed or missing one is an error that names it.

    Args:
        with_megatron: look at Megatron's too (the run trains with it).
    """
    broken = [line for module_name in SEAMS for line in _broken(module_name)]
    count = sum(map(len, SEAMS.values()))
    lines = broken or [ok("verl", f"{count} functions in {len(SEAMS)} modules are what verl_cast was written for")]
    return lines + (_cpu_platform(with_megatron) if is_cpu() else [])


def _broken(module_name: str) -> list[Line]:
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:  # whatever a module does when it is imported beside versions that it does not know
        return [error(module_name.rpartition(".")[2], f"{module_name} cannot be imported: {first_line(problem)}")]
    lines = []
    for name, expected in SEAMS[module_name].items():
        try:
            found = parameters_of(module, name)
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
    """The CPU platform checks its seams when their modules are imported: so they are imported."""
    from verl_cast.platform import cpu, megatron

    departures = [*cpu.DEPARTURES, *(megatron.DEPARTURES if with_megatron else ())]
    lines, modules = [], list(dict.fromkeys(name for name, _ in departures))
    for module_name in modules:
        package = module_name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            lines.append(note("CPU platform", f"{module_name}: not looked at, {package} is not installed"))
            continue
        try:
            importlib.import_module(module_name)
        except Exception as problem:  # SeamChanged, or as above
            lines.append(error("CPU platform", f"{module_name}: {first_line(problem)}"))
    if not any(line.mark == "error" for line in lines):
        lines.insert(0, ok("CPU platform", f"{len(departures)} departures in {len(modules)} modules still fit"))
    return lines

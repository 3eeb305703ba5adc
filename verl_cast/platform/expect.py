"""The CPU platform patches verl, torch and vLLM only if their code is as expected.

The `expect_*` checks compare the code that is to be changed with the code that the departure was written for. Their
error names what differs.
Left out: adapting to a changed verl or vLLM. A changed seam ends the process.
"""

import inspect
from collections.abc import Callable, Iterable

from verl_cast.seams import SeamChanged


def _changed(owner, name: str, expected: str, found: str) -> SeamChanged:
    owner_name = owner.__name__ if inspect.ismodule(owner) else f"{owner.__module__}.{owner.__qualname__}"
    return SeamChanged(
        f"verl_cast's CPU platform (VERL_PLATFORM=cpu) relies on {owner_name}.{name} {expected}; "
        f"the installed version has {found}. The platform was written for verl 0.9.1, vLLM 0.30 and torch 2.13."
    )


def expect_attribute(owner, name: str):
    """Return `owner.name`."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise _changed(owner, name, "to exist", "no such attribute") from None


def expect_parameters(owner, name: str, parameters: Iterable[str]) -> Callable:
    """Return the function `owner.name` if its parameters have exactly these names."""
    function = expect_attribute(owner, name)
    expected, found = ", ".join(parameters), ", ".join(inspect.signature(function).parameters)
    if found != expected:
        raise _changed(owner, name, f"to take ({expected})", f"({found})")
    return function


def expect_mentions(owner, name: str, *words: str) -> None:
    """Check that the body of `owner.name` still uses these names or string constants."""
    code = inspect.unwrap(expect_attribute(owner, name)).__code__
    mentioned = {*code.co_names, *code.co_varnames, *_strings(code.co_consts)}
    missing = [word for word in words if word not in mentioned]
    if missing:
        raise _changed(owner, name, f"to use {', '.join(missing)}", "a body that does not")


def _strings(constants) -> set[str]:
    """The strings among code constants, those inside constant tuples (keyword names) included."""
    flat = set()
    for constant in constants:
        if isinstance(constant, str):
            flat.add(constant)
        elif isinstance(constant, tuple):
            flat |= _strings(constant)
    return flat

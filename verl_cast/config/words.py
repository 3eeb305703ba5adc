"""Settings as words: of a command line, and of one line that says what a run has set. The one place for both.

Start line, doctor, report and diagnosis print `narration`. Every recommendation, on a screen or a page, is made of
`command_words`: whole words, which can be pasted behind a command as they stand.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from verl_cast.config.cast import CastConfig, MethodConfig


def command_words(settings: Mapping[str, Any], method: type[MethodConfig] = CastConfig) -> str:
    """Settings of a method as hydra overrides: {"flip": "none"} -> "++algorithm.cast.flip=none".

    `++` sets a key whether or not the config has it, so the words fit verl's own config and `cast_trainer`.

    Args:
        settings: keys below the method's group; a key of a part of it has a dot ("teacher.context").
    """
    return " ".join(f"++{method.key()}.{key}={_shown(value)}" for key, value in settings.items())


def narration(method: MethodConfig) -> str:
    """Every setting that differs from the method's default, by name; "all defaults" where none does."""
    changed = [f"{key}={_shown(value)}" for key, value in differing(method).items()]
    return " ".join(changed) or "all defaults"


def differing(method: MethodConfig) -> dict[str, Any]:
    """Key below the method's group -> value, of every setting that differs from its default."""
    defaults = dict(_flat(type(method)()))
    return {key: value for key, value in _flat(method) if value != defaults[key]}


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)

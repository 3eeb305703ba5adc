"""`algorithm.cast`: types, bounds and defaults of its keys. cast_trainer.yaml says what every key means.

The defaults are those of the evaluated run (method section 9). Building a `CastConfig` validates it: a config object
that exists makes sense. What depends on the rest of verl's config is checked in checks/run.py. The baselines' configs
(baselines.py) are built from the same parts. Imports the standard library only.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

FLIPS = ("both", "correct", "wrong", "none")
FLIP_GROUPS = ("all", "zero_variance")
TEACHER_WEIGHTS = ("snapshot", "ema", "initial", "current")
TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
MISSING_STATES = ("error", "snapshot")
NOISE = "noise"  # gap_deadzone: the engine's measured noise floor
TRUSTS = ("always", "measured")
MEASURED = "measured"


class CastConfigError(ValueError):
    """Settings that cannot work.

    Attributes:
        complaints: a sentence per setting, with the key, the value and the remedy; the message has one a line.
    """

    def __init__(self, key: str, value: Any, remedy: str):
        self.complaints = (f"{key}={value!r}: {remedy}",)
        super().__init__(self.complaints[0])

    @classmethod
    def of_several(cls, complaints: Sequence[str]) -> "CastConfigError":
        error = cls.__new__(cls)
        error.complaints = tuple(complaints)
        ValueError.__init__(error, "\n".join(error.complaints))
        return error

    def __reduce__(self):  # Ray pickles what a trainer raises
        return CastConfigError.of_several, (self.complaints,)


class Complaints:
    """Keeps errors until all settings have been looked at, so that the user gets them in one message.

    with complaints:                the first CastConfigError inside ends this block, and no more
        ...
    complaints.raise_if_any()
    """

    def __init__(self):
        self._errors: list[CastConfigError] = []

    def __enter__(self) -> "Complaints":
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        if not isinstance(error, CastConfigError):
            return False
        self._errors.append(error)
        return True

    def raise_if_any(self) -> None:
        """
        Raises:
            CastConfigError: there was one; with the complaints of all.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            lines = dict.fromkeys(line for error in self._errors for line in error.complaints)
            raise CastConfigError.of_several(list(lines))


def _known_keys(cls, prefix: str, values: Any, complaints: Complaints) -> dict[str, Any]:
    """The values of keys that exist; the others become complaints.

    Raises:
        CastConfigError: this is no group of keys.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise CastConfigError(prefix, values, "must be a group of keys, as in ++algorithm.cast.flip=both.")
    names = [f.name for f in fields(cls)]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {prefix}.{close[0]}?" if close else f"the keys are {', '.join(names)}."
            with complaints:
                raise CastConfigError(f"{prefix}.{key}", values[key], f"unknown key; {hint}")
    return {key: value for key, value in values.items() if key in names}


def require_whole_number(key: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise CastConfigError(key, value, f"must be a whole number, at least {minimum}.")


def require_truth_value(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise CastConfigError(key, value, "must be True or False.")


def number(key: str, value: Any, minimum: float | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CastConfigError(key, value, "must be a finite number.")
    if minimum is not None and value < minimum:
        raise CastConfigError(key, value, f"must be at least {minimum:g}.")
    return float(value)


def _weight_bounds(key: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise CastConfigError(key, value, "must be two numbers [lower, upper], as in [0.8,1.05].")
    lower, upper = (number(key, bound, minimum=0.0) for bound in value)
    if lower > upper:
        raise CastConfigError(
            key, [lower, upper], f"the bounds are in the wrong order; use ++{key}=[{upper:g},{lower:g}]."
        )
    if upper < 1:
        # A token whose gap agrees with the verifier, and every flipped token, has a weight of at least 1 (section 5).
        raise CastConfigError(key, [lower, upper], "the upper bound must be at least 1, the weight of a gap of 0.")
    return lower, upper


def _decay(key: str, value: Any) -> float:
    decay = number(key, value)
    if not 0 < decay < 1:
        weights = f"++{key.removesuffix('ema_decay')}weights"
        raise CastConfigError(
            key,
            decay,
            f"must lie between 0 and 1; use {weights}=current for a teacher without memory, {weights}=initial for one "
            "that never moves.",
        )
    return decay


def _not_negative(key: str, value: Any) -> float:
    return number(key, value, minimum=0.0)


def _deadzone(key: str, value: Any) -> float | str:
    if isinstance(value, str) and value != NOISE:
        raise CastConfigError(key, value, f"must be a number of nats, at least 0, or {NOISE}.")
    return value if value == NOISE else _not_negative(key, value)


def _advantage_clip(key: str, value: Any) -> float | None:
    if value is None:
        return None
    clip = number(key, value)
    if clip <= 0:
        raise CastConfigError(key, clip, "must be greater than 0, or null for no clip.")
    return clip


def require_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = " (quote it: YAML reads a bare word like off or no as a truth value)" if isinstance(value, bool) else ""
        raise CastConfigError(key, value, f"must be one of {', '.join(choices)}{hint}.")


@dataclass(frozen=True)
class TeacherConfig:
    """`algorithm.cast.teacher`: the weights and the context of the self-teacher (method section 8)."""

    KEY: ClassVar[str] = "algorithm.cast.teacher"
    PRIVILEGED: ClassVar[bool] = False  # whether the context shows what a student never sees (a reference, say)

    weights: str = "snapshot"
    refresh_interval: int = 10
    ema_decay: float = 0.995
    context: str = "plain"
    missing_state: str = "error"
    pin_memory: bool | str = "auto"

    def __post_init__(self):
        prefix, complaints = self.KEY, Complaints()
        with complaints:
            require_choice(f"{prefix}.weights", self.weights, TEACHER_WEIGHTS)
        with complaints:
            require_choice(f"{prefix}.missing_state", self.missing_state, MISSING_STATES)
        with complaints:
            if not isinstance(self.pin_memory, bool) and self.pin_memory != "auto":
                raise CastConfigError(f"{prefix}.pin_memory", self.pin_memory, "must be auto, True or False.")
        with complaints:
            require_whole_number(f"{prefix}.refresh_interval", self.refresh_interval, minimum=1)
        with complaints:
            object.__setattr__(self, "ema_decay", _decay(f"{prefix}.ema_decay", self.ema_decay))
        with complaints:
            self._check_context()
        complaints.raise_if_any()

    @property
    def who_can_score(self) -> str:
        """For messages about rows that only the student's own prompt can precede."""
        return f"only {self.KEY}.context=same"

    def _check_context(self) -> None:
        if not isinstance(self.context, str) or not (
            self.context in ("plain", "same") or self.context.endswith(TEMPLATE_SUFFIXES)
        ):
            raise CastConfigError(
                f"{self.KEY}.context",
                self.context,
                f"must be plain, same, or the path of a Jinja template ending in {', '.join(TEMPLATE_SUFFIXES)}.",
            )


@dataclass(frozen=True)
class DumpConfig:
    """`algorithm.cast.dump`: trajectories with all that CAST knows of their tokens (trajectories.py)."""

    interval: int = 0
    groups: int = 4
    directory: str | None = None

    def __post_init__(self):
        prefix, complaints = "algorithm.cast.dump", Complaints()
        with complaints:
            require_whole_number(f"{prefix}.interval", self.interval, minimum=0)
        with complaints:
            require_whole_number(f"{prefix}.groups", self.groups, minimum=1)
        with complaints:
            if self.directory is not None and (not isinstance(self.directory, str) or not self.directory):
                raise CastConfigError(f"{prefix}.directory", self.directory, "must be a path, or null for the default.")
        complaints.raise_if_any()


class MethodConfig:
    """Base class of the settings of a method with a self-teacher; they stand in `algorithm.<NAME>`."""

    NAME: ClassVar[str]  # also the estimator's
    TITLE: ClassVar[str]  # what people call it
    GROUPS: ClassVar[dict[str, type]]  # parts that are groups of keys themselves
    COMPARES_A_GROUP: ClassVar[bool] = True  # whether the rule needs several responses to a prompt
    teacher: TeacherConfig
    one_pass: bool
    # Off, unless the method has these keys.
    dump: ClassVar[DumpConfig] = DumpConfig()
    noise_floor_interval: ClassVar[int | None] = None
    gap_deadzone: ClassVar[float | str] = 0.0
    trust: ClassVar[str] = "always"

    @classmethod
    def key(cls) -> str:
        """Where the method's settings stand in verl's config."""
        return f"algorithm.{cls.NAME}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "MethodConfig":
        """Build from the plain container of `algorithm.<NAME>` (None or empty: all defaults).

        Raises:
            CastConfigError: for all unknown keys, wrong types and values out of range, with key, value and remedy.
        """
        complaints = Complaints()
        values = _known_keys(cls, cls.key(), values, complaints)
        for key, group in cls.GROUPS.items():
            if key in values:
                given = values.pop(key)  # a bad group leaves its default, and the other keys are still looked at
                with complaints:
                    values[key] = group(**_known_keys(group, f"{cls.key()}.{key}", given, complaints))
        with complaints:
            built = cls(**values)
        complaints.raise_if_any()
        return built

    def _check_groups(self) -> None:
        for key, group in self.GROUPS.items():
            if not isinstance(getattr(self, key), group):
                names = ", ".join(f.name for f in fields(group))
                raise CastConfigError(f"{self.key()}.{key}", getattr(self, key), f"must be a group of keys ({names}).")


@dataclass(frozen=True)
class CastConfig(MethodConfig):
    """`algorithm.cast`: CAST's settings (method sections 2 to 8)."""

    NAME: ClassVar[str] = "cast"
    TITLE: ClassVar[str] = "CAST"
    GROUPS: ClassVar[dict[str, type]] = {"teacher": TeacherConfig, "dump": DumpConfig}

    gap_weight: float = 1.0  # λ
    positive_clip: tuple[float, float] = (0.8, 1.05)  # (L, U) where B >= 0
    negative_clip: tuple[float, float] = (0.95, 1.2)  # (L, U) where B < 0
    flip: str = "both"
    flip_groups: str = "all"
    advantage_clip: float | None = 1.2
    base_correct: float = 1.0  # b_correct
    base_wrong: float = 1.0  # b_wrong
    correct_threshold: float = 0.5
    gap_deadzone: float | str = 0.0  # nats, or NOISE
    noise_floor_interval: int | None = 0  # None: never measured
    one_pass: bool = True
    trust: str = "always"
    trust_responses: int = 128
    trust_standard_errors: float = 3.0
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    dump: DumpConfig = field(default_factory=DumpConfig)

    def __post_init__(self):
        checks = {
            "gap_weight": _not_negative,
            "base_correct": _not_negative,
            "base_wrong": _not_negative,
            "gap_deadzone": _deadzone,
            "correct_threshold": number,
            "trust_standard_errors": _not_negative,
            "positive_clip": _weight_bounds,
            "negative_clip": _weight_bounds,
            "advantage_clip": _advantage_clip,
        }
        prefix, complaints = self.key(), Complaints()
        for key, checked in checks.items():
            with complaints:
                object.__setattr__(self, key, checked(f"{prefix}.{key}", getattr(self, key)))
        with complaints:
            require_choice(f"{prefix}.flip", self.flip, FLIPS)
        with complaints:
            require_choice(f"{prefix}.flip_groups", self.flip_groups, FLIP_GROUPS)
        with complaints:
            require_choice(f"{prefix}.trust", self.trust, TRUSTS)
        with complaints:
            # A teacher that has every response right, beside a policy that has none, needs about z² of them.
            require_whole_number(f"{prefix}.trust_responses", self.trust_responses, minimum=32)
        if self.noise_floor_interval is not None:
            with complaints:
                require_whole_number(f"{prefix}.noise_floor_interval", self.noise_floor_interval, minimum=0)
        elif self.gap_deadzone == NOISE:
            with complaints:
                key = f"{prefix}.noise_floor_interval"
                remedy = (
                    f"gap_deadzone={NOISE} needs a measurement; use ++{key}=0 (only in the first step), or ++{key}=50."
                )
                raise CastConfigError(key, None, remedy)
        with complaints:
            require_truth_value(f"{prefix}.one_pass", self.one_pass)
        with complaints:
            self._check_groups()
        complaints.raise_if_any()

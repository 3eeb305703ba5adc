"""`algorithm.cast`: types, bounds and defaults of its keys. cast_trainer.yaml says what every key means.

The defaults are those of the evaluated run (method section 9). Building a `CastConfig` validates it: a config object
that exists makes sense. What depends on the rest of verl's config is checked in checks/run.py. The baselines' configs
(baselines.py) are built from the same parts. Imports the standard library only.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
NOISE = "noise"  # gap_deadzone: the engine's measured noise floor
MEASURED = "measured"  # trust: as the run's own reward finds it
MIN_PROBLEMS = 32  # of a measurement: fewer make a poor estimate of the standard error over problems


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


# A check of one setting: (key, value) -> the value as it is kept, or a CastConfigError. It stands in a setting's type,
# as in `gap_weight: Annotated[float, number(0)] = 1.0`.
Check = Callable[[str, Any], Any]


def whole_number(minimum: int) -> Check:
    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise CastConfigError(key, value, f"must be a whole number, at least {minimum}.")
        return value

    return check


def number(minimum: float = -math.inf, maximum: float = math.inf) -> Check:
    def check(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CastConfigError(key, value, "must be a finite number.")
        if value < minimum:
            raise CastConfigError(key, value, f"must be at least {minimum:g}.")
        if value > maximum:
            raise CastConfigError(key, value, f"must be at most {maximum:g}.")
        return float(value)

    return check


def one_of(*choices: str) -> Check:
    def check(key: str, value: Any) -> str:
        if value not in choices:
            quote = " (quote it: YAML reads a bare word like off or no as a truth value)"
            hint = quote if isinstance(value, bool) else ""
            raise CastConfigError(key, value, f"must be one of {', '.join(choices)}{hint}.")
        return value

    return check


def truth_value(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise CastConfigError(key, value, "must be True or False.")
    return value


def _weight_bounds(key: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise CastConfigError(key, value, "must be two numbers [lower, upper], as in [0.8,1.05].")
    lower, upper = (number(0)(key, bound) for bound in value)
    if lower > upper:
        raise CastConfigError(
            key, [lower, upper], f"the bounds are in the wrong order; use ++{key}=[{upper:g},{lower:g}]."
        )
    if upper < 1:
        # A token whose gap agrees with the verifier, and every flipped token, has a weight of at least 1 (section 5).
        raise CastConfigError(key, [lower, upper], "the upper bound must be at least 1, the weight of a gap of 0.")
    return lower, upper


def _decay(key: str, value: Any) -> float:
    decay = number()(key, value)
    if not 0 < decay < 1:
        weights = f"++{key.removesuffix('ema_decay')}weights"
        raise CastConfigError(
            key,
            decay,
            f"must lie between 0 and 1; use {weights}=current for a teacher without memory, {weights}=initial for one "
            "that never moves.",
        )
    return decay


def _deadzone(key: str, value: Any) -> float | str:
    if isinstance(value, str) and value != NOISE:
        raise CastConfigError(key, value, f"must be a number of nats, at least 0, or {NOISE}.")
    return value if value == NOISE else number(0)(key, value)


def _advantage_clip(key: str, value: Any) -> float | None:
    if value is not None and number()(key, value) <= 0:
        raise CastConfigError(key, value, "must be greater than 0, or null for no clip.")
    return None if value is None else float(value)


def _noise_floor_interval(key: str, value: Any) -> int | None:
    return None if value is None else whole_number(0)(key, value)


def _context(key: str, value: Any) -> str:
    if value not in ("plain", "same") and not (isinstance(value, str) and value.endswith(TEMPLATE_SUFFIXES)):
        suffixes = ", ".join(TEMPLATE_SUFFIXES)
        raise CastConfigError(key, value, f"must be plain, same, or the path of a Jinja template ending in {suffixes}.")
    return value


def _pin_memory(key: str, value: Any) -> bool | str:
    if not isinstance(value, bool) and value != "auto":
        raise CastConfigError(key, value, "must be auto, True or False.")
    return value


def _directory(key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise CastConfigError(key, value, "must be a path, or null for the default.")
    return value


NotNegative = Annotated[float, number(0)]
Weight = Annotated[tuple[float, float], _weight_bounds]
Switch = Annotated[bool, truth_value]
TeacherWeights = Annotated[str, one_of("snapshot", "ema", "initial", "current")]


class Settings:
    """A group of keys, which is checked when it is built.

    Raises:
        CastConfigError: for all types and values that are wrong, with key, value and remedy.
    """

    KEY: ClassVar[str]  # where the group stands in verl's config

    @classmethod
    def key(cls) -> str:
        """Where the group stands in verl's config."""
        return cls.KEY

    @classmethod
    def parts(cls) -> dict[str, type["Settings"]]:
        """Keys that are groups of keys themselves."""
        hints = get_type_hints(cls).items()
        return {name: hint for name, hint in hints if isinstance(hint, type) and issubclass(hint, Settings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Settings":
        """Build from the plain container of the group in verl's config (None or empty: all defaults).

        Raises:
            CastConfigError: for all unknown keys, wrong types and values out of range, with key, value and remedy.
        """
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise CastConfigError(cls.key(), values, "must be a group of keys, as in ++algorithm.cast.flip=both.")
        names, known, complaints = [f.name for f in fields(cls)], {}, Complaints()
        for name, value in values.items():
            with complaints:  # what is bad leaves its default, and the other keys are still looked at
                if name not in names:
                    close = difflib.get_close_matches(str(name), names, n=1)
                    hint = f"did you mean {cls.key()}.{close[0]}?" if close else f"the keys are {', '.join(names)}."
                    raise CastConfigError(f"{cls.key()}.{name}", value, f"unknown key; {hint}")
                group = cls.parts().get(name)
                known[name] = value if group is None else group.from_dict(value)
        with complaints:
            built = cls(**known)
        complaints.raise_if_any()
        return built

    def __post_init__(self):
        complaints = Complaints()
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            if get_origin(hint) is Annotated:
                with complaints:
                    object.__setattr__(self, name, hint.__metadata__[0](f"{self.key()}.{name}", getattr(self, name)))
        for name, group in self.parts().items():
            with complaints:
                if not isinstance(getattr(self, name), group):
                    keys = ", ".join(f.name for f in fields(group))
                    raise CastConfigError(
                        f"{self.key()}.{name}", getattr(self, name), f"must be a group of keys ({keys})."
                    )
        with complaints:
            self._check_together()
        complaints.raise_if_any()

    def _check_together(self) -> None:
        """What a check of one key cannot see."""


@dataclass(frozen=True)
class TeacherConfig(Settings):
    """`algorithm.cast.teacher`: the weights and the context of the self-teacher (method section 8)."""

    KEY: ClassVar[str] = "algorithm.cast.teacher"
    PRIVILEGED: ClassVar[bool] = False  # whether the context shows what a student never sees (a reference, say)

    weights: TeacherWeights = "snapshot"
    refresh_interval: Annotated[int, whole_number(1)] = 10
    ema_decay: Annotated[float, _decay] = 0.995
    context: Annotated[str, _context] = "plain"
    missing_state: Annotated[str, one_of("error", "snapshot")] = "error"
    pin_memory: Annotated[bool | str, _pin_memory] = "auto"

    @property
    def who_can_score(self) -> str:
        """For messages about rows that only the student's own prompt can precede."""
        return f"only {self.KEY}.context=same"


@dataclass(frozen=True)
class DumpConfig(Settings):
    """`algorithm.cast.dump`: trajectories with all that CAST knows of their tokens (trajectories.py)."""

    KEY: ClassVar[str] = "algorithm.cast.dump"

    interval: Annotated[int, whole_number(0)] = 0
    groups: Annotated[int, whole_number(1)] = 4
    directory: Annotated[str | None, _directory] = None


class MethodConfig(Settings):
    """Base class of the settings of a method with a self-teacher; they stand in `algorithm.<NAME>`."""

    NAME: ClassVar[str]  # also the estimator's
    TITLE: ClassVar[str]  # what people call it
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
        return f"algorithm.{cls.NAME}"


@dataclass(frozen=True)
class CastConfig(MethodConfig):
    """`algorithm.cast`: CAST's settings (method sections 2 to 8)."""

    NAME: ClassVar[str] = "cast"
    TITLE: ClassVar[str] = "CAST"

    gap_weight: NotNegative = 1.0  # λ
    positive_clip: Weight = (0.8, 1.05)  # (L, U) where B >= 0
    negative_clip: Weight = (0.95, 1.2)  # (L, U) where B < 0
    flip: Annotated[str, one_of("both", "correct", "wrong", "none")] = "both"
    flip_groups: Annotated[str, one_of("all", "zero_variance")] = "all"
    advantage_clip: Annotated[float | None, _advantage_clip] = 1.2
    base_correct: NotNegative = 1.0  # b_correct
    base_wrong: NotNegative = 1.0  # b_wrong
    correct_threshold: Annotated[float, number()] = 0.5
    gap_deadzone: Annotated[float | str, _deadzone] = 0.0  # nats, or NOISE
    noise_floor_interval: Annotated[int | None, _noise_floor_interval] = 0  # None: never measured
    one_pass: Switch = True
    trust: Annotated[str, one_of("always", MEASURED)] = "always"
    # A teacher that has every response right, beside a policy that has none, needs about z² of them.
    trust_responses: Annotated[int, whole_number(32)] = 128
    trust_standard_errors: NotNegative = 3.0
    teacher: TeacherConfig = TeacherConfig()
    dump: DumpConfig = DumpConfig()

    def _check_together(self) -> None:
        if self.noise_floor_interval is None and self.gap_deadzone == NOISE:
            key = f"{self.key()}.noise_floor_interval"
            remedy = f"gap_deadzone={NOISE} needs a measurement; use ++{key}=0 (only in the first step), or ++{key}=50."
            raise CastConfigError(key, None, remedy)

"""The methods that CAST is compared with (method section 10): OPSD, GRPO+OPSD, RLSD and RLRT.

Each is an estimator of its own (`algorithm.adv_estimator=rlsd`) with settings of its own (`algorithm.rlsd`). Their
teachers are privileged: they read a reference or another response of the group, which CAST's teacher never does and
which `algorithm.cast` cannot select. cast_trainer.yaml says what every key means.

The defaults are those of each method's own paper, as far as method section 10 or its authors' public code gives them.
Left out: OPSD over the whole vocabulary (its sampled-token form is here), SDPO. Imports the standard library only.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from verl_cast.config.cast import (
    CastConfigError,
    Complaints,
    MethodConfig,
    TeacherConfig,
    number,
    require_choice,
    require_truth_value,
    require_whole_number,
)


@dataclass(frozen=True)
class PrivilegedTeacherConfig(TeacherConfig):
    """The teacher of a baseline: as CAST's, but its context shows what no student sees (teacher/privileged.py)."""

    PRIVILEGED: ClassVar[bool] = True
    CONTEXTS: ClassVar[tuple[str, ...]] = ("reference", "reference_chat")

    context: str = "reference"
    reference_key: str = "reward_model.ground_truth"  # verl's own place for an answer

    @property
    def who_can_score(self) -> str:
        return "no privileged teacher"

    def _check_context(self) -> None:
        complaints = Complaints()
        with complaints:
            require_choice(f"{self.KEY}.context", self.context, self.CONTEXTS)
        with complaints:
            self._check_reference_key()
        complaints.raise_if_any()

    def _check_reference_key(self) -> None:
        parts = self.reference_key.split(".") if isinstance(self.reference_key, str) else [""]
        if not all(parts):
            raise CastConfigError(
                f"{self.KEY}.reference_key",
                self.reference_key,
                "must name a column of the data and the keys in it, as in extra_info.solution.",
            )


@dataclass(frozen=True)
class OpsdTeacherConfig(PrivilegedTeacherConfig):
    KEY: ClassVar[str] = "algorithm.opsd.teacher"
    weights: str = "initial"  # as OPSD recommends
    context: str = "reference_chat"


@dataclass(frozen=True)
class GrpoOpsdTeacherConfig(OpsdTeacherConfig):
    KEY: ClassVar[str] = "algorithm.grpo_opsd.teacher"


@dataclass(frozen=True)
class RlsdTeacherConfig(PrivilegedTeacherConfig):
    KEY: ClassVar[str] = "algorithm.rlsd.teacher"  # weights: a snapshot every 10 steps, as in CAST


@dataclass(frozen=True)
class RlrtTeacherConfig(PrivilegedTeacherConfig):
    KEY: ClassVar[str] = "algorithm.rlrt.teacher"
    CONTEXTS: ClassVar[tuple[str, ...]] = ("peer", "reference", "reference_chat")
    weights: str = "current"
    context: str = "peer"


@dataclass(frozen=True)
class BaselineConfig(MethodConfig):
    """What all baselines share."""

    correct_threshold: float = 0.5
    one_pass: bool = True

    def __post_init__(self):
        complaints, threshold = Complaints(), f"{self.key()}.correct_threshold"
        with complaints:
            object.__setattr__(self, "correct_threshold", number(threshold, self.correct_threshold))
        with complaints:
            require_truth_value(f"{self.key()}.one_pass", self.one_pass)
        with complaints:
            self._check_groups()
        self._check_own(complaints)
        complaints.raise_if_any()

    def _check_own(self, complaints: Complaints) -> None:
        """The keys that not every baseline has."""

    def _check_number(self, name: str, minimum: float, maximum: float | None = None) -> None:
        key, value = f"{self.key()}.{name}", number(f"{self.key()}.{name}", getattr(self, name), minimum=minimum)
        if maximum is not None and value > maximum:
            raise CastConfigError(key, value, f"must be at most {maximum:g}.")
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class OpsdConfig(BaselineConfig):
    """On-policy self-distillation (arXiv 2601.18734), sampled-token form: the gap is the advantage."""

    NAME: ClassVar[str] = "opsd"
    TITLE: ClassVar[str] = "OPSD"
    GROUPS: ClassVar[dict[str, type]] = {"teacher": OpsdTeacherConfig}
    COMPARES_A_GROUP: ClassVar[bool] = False
    teacher: OpsdTeacherConfig = field(default_factory=OpsdTeacherConfig)


@dataclass(frozen=True)
class GrpoOpsdConfig(BaselineConfig):
    """GRPO's advantage plus OPSD's."""

    NAME: ClassVar[str] = "grpo_opsd"
    TITLE: ClassVar[str] = "GRPO+OPSD"
    GROUPS: ClassVar[dict[str, type]] = {"teacher": GrpoOpsdTeacherConfig}
    gap_weight: float = 1.0  # λ; its value in the papers' comparisons is not known here
    teacher: GrpoOpsdTeacherConfig = field(default_factory=GrpoOpsdTeacherConfig)

    def _check_own(self, complaints: Complaints) -> None:
        with complaints:
            self._check_number("gap_weight", minimum=0.0)


@dataclass(frozen=True)
class RlsdConfig(BaselineConfig):
    """RLSD (arXiv 2604.03128): the privileged gap scales GRPO's advantage within bounds, less and less."""

    NAME: ClassVar[str] = "rlsd"
    TITLE: ClassVar[str] = "RLSD"
    GROUPS: ClassVar[dict[str, type]] = {"teacher": RlsdTeacherConfig}
    gap_weight: float = 0.5  # λ of the first step
    gap_weight_decay_steps: int = 50
    weight_clip: float = 0.2  # ε
    teacher: RlsdTeacherConfig = field(default_factory=RlsdTeacherConfig)

    def _check_own(self, complaints: Complaints) -> None:
        for name in ("gap_weight", "weight_clip"):
            with complaints:
                self._check_number(name, minimum=0.0, maximum=1.0)
        with complaints:
            require_whole_number(f"{self.key()}.gap_weight_decay_steps", self.gap_weight_decay_steps, minimum=0)


@dataclass(frozen=True)
class RlrtConfig(BaselineConfig):
    """RLRT (arXiv 2605.10781): on correct responses, tokens that the privileged teacher likes less gain weight."""

    NAME: ClassVar[str] = "rlrt"
    TITLE: ClassVar[str] = "RLRT"
    GROUPS: ClassVar[dict[str, type]] = {"teacher": RlrtTeacherConfig}
    gap_weight: float = 0.5  # λ
    weight_clip: float = 1.0  # ε
    teacher: RlrtTeacherConfig = field(default_factory=RlrtTeacherConfig)

    def _check_own(self, complaints: Complaints) -> None:
        for name in ("gap_weight", "weight_clip"):
            with complaints:
                self._check_number(name, minimum=0.0, maximum=1.0)


BASELINES = (OpsdConfig, GrpoOpsdConfig, RlsdConfig, RlrtConfig)

"""`algorithm.opsd`, `algorithm.grpo_opsd`, `algorithm.rlsd`, `algorithm.rlrt`: keys, defaults, validation.

The defaults are those of each method's own paper as far as method section 10 or its authors' public code says them;
what is not known is said at the key. Imports nothing but the standard library and `verl_cast.config`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from verl_cast.config import (
    CastConfigError,
    MethodConfig,
    TeacherConfig,
    number,
    require_choice,
    require_truth_value,
    require_whole_number,
)


@dataclass(frozen=True)
class PrivilegedTeacherConfig(TeacherConfig):
    """The teacher of a baseline: as CAST's, but its context shows what no student sees (baselines/privileged.py)."""

    PRIVILEGED: ClassVar[bool] = True
    CONTEXTS: ClassVar[tuple[str, ...]] = ("reference", "reference_chat")

    context: str = "reference"
    # Where the reference stands in a row of the data. A worked solution, where the data have one, is what the papers of
    # OPSD and RLSD show their teachers; verl's own place for an answer is the default.
    reference_key: str = "reward_model.ground_truth"

    def _check_context(self) -> None:
        require_choice(f"{self.KEY}.context", self.context, self.CONTEXTS)
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
    weights: str = "initial"  # OPSD's recommended setting: a teacher that never moves
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

    # A response is correct if its reward is greater: for the metrics, and for RLRT's rule.
    correct_threshold: float = 0.5
    one_pass: bool = True  # as in CastConfig

    def __post_init__(self):
        object.__setattr__(self, "correct_threshold", number(f"{self.key()}.correct_threshold", self.correct_threshold))
        require_truth_value(f"{self.key()}.one_pass", self.one_pass)
        self._check_groups()

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
    gap_weight: float = 1.0  # of OPSD's part; the weight in the papers' comparisons is not known here
    teacher: GrpoOpsdTeacherConfig = field(default_factory=GrpoOpsdTeacherConfig)

    def __post_init__(self):
        super().__post_init__()
        self._check_number("gap_weight", minimum=0.0)


@dataclass(frozen=True)
class RlsdConfig(BaselineConfig):
    """RLSD (arXiv 2604.03128): the privileged gap scales GRPO's advantage within bounds, less and less."""

    NAME: ClassVar[str] = "rlsd"
    TITLE: ClassVar[str] = "RLSD"
    GROUPS: ClassVar[dict[str, type]] = {"teacher": RlsdTeacherConfig}
    gap_weight: float = 0.5  # λ of the first step
    gap_weight_decay_steps: int = 50  # training steps in which λ falls linearly to 0; 0: it stays
    weight_clip: float = 0.2  # the weight lies in 1 ± weight_clip
    teacher: RlsdTeacherConfig = field(default_factory=RlsdTeacherConfig)

    def __post_init__(self):
        super().__post_init__()
        self._check_number("gap_weight", minimum=0.0, maximum=1.0)
        self._check_number("weight_clip", minimum=0.0, maximum=1.0)
        require_whole_number(f"{self.key()}.gap_weight_decay_steps", self.gap_weight_decay_steps, minimum=0)


@dataclass(frozen=True)
class RlrtConfig(BaselineConfig):
    """RLRT (arXiv 2605.10781): on correct responses, tokens that the privileged teacher likes less gain weight."""

    NAME: ClassVar[str] = "rlrt"
    TITLE: ClassVar[str] = "RLRT"
    GROUPS: ClassVar[dict[str, type]] = {"teacher": RlrtTeacherConfig}
    gap_weight: float = 0.5  # λ
    weight_clip: float = 1.0
    teacher: RlrtTeacherConfig = field(default_factory=RlrtTeacherConfig)

    def __post_init__(self):
        super().__post_init__()
        self._check_number("gap_weight", minimum=0.0, maximum=1.0)
        self._check_number("weight_clip", minimum=0.0, maximum=1.0)


BASELINES = (OpsdConfig, GrpoOpsdConfig, RlsdConfig, RlrtConfig)

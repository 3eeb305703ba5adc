"""The methods that CAST is compared with (method section 10): OPSD, GRPO+OPSD, RLSD and RLRT.

Each is an estimator of its own (`algorithm.adv_estimator=rlsd`) with settings of its own (`algorithm.rlsd`). Their
teachers are privileged: they read a reference or another response of the group, which CAST's teacher never does and
which `algorithm.cast` cannot select. cast_trainer.yaml says what every key means.

The defaults are those of each method's own paper, as far as method section 10 or its authors' public code gives them.
Left out: OPSD over the whole vocabulary (its sampled-token form is here), SDPO. Imports the standard library only.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from verl_cast.config.cast import (
    CastConfigError,
    MethodConfig,
    NotNegative,
    Switch,
    TeacherConfig,
    TeacherWeights,
    number,
    one_of,
    whole_number,
)

ReferenceContext = Annotated[str, one_of("reference", "reference_chat")]
Share = Annotated[float, number(0, 1)]


def _reference_key(key: str, value: Any) -> str:
    if not isinstance(value, str) or not all(value.split(".")):
        raise CastConfigError(
            key, value, "must name a column of the data and the keys in it, as in extra_info.solution."
        )
    return value


@dataclass(frozen=True)
class PrivilegedTeacherConfig(TeacherConfig):
    """The teacher of a baseline: as CAST's, but its context shows what no student sees (teacher/privileged.py)."""

    PRIVILEGED: ClassVar[bool] = True

    context: ReferenceContext = "reference"
    reference_key: Annotated[str, _reference_key] = "reward_model.ground_truth"  # verl's own place for an answer

    @property
    def who_can_score(self) -> str:
        return "no privileged teacher"


@dataclass(frozen=True)
class OpsdTeacherConfig(PrivilegedTeacherConfig):
    KEY: ClassVar[str] = "algorithm.opsd.teacher"
    weights: TeacherWeights = "initial"  # as OPSD recommends
    context: ReferenceContext = "reference_chat"


@dataclass(frozen=True)
class GrpoOpsdTeacherConfig(OpsdTeacherConfig):
    KEY: ClassVar[str] = "algorithm.grpo_opsd.teacher"


@dataclass(frozen=True)
class RlsdTeacherConfig(PrivilegedTeacherConfig):
    KEY: ClassVar[str] = "algorithm.rlsd.teacher"  # weights: a snapshot every 10 steps, as in CAST


@dataclass(frozen=True)
class RlrtTeacherConfig(PrivilegedTeacherConfig):
    KEY: ClassVar[str] = "algorithm.rlrt.teacher"
    weights: TeacherWeights = "current"
    context: Annotated[str, one_of("peer", "reference", "reference_chat")] = "peer"


@dataclass(frozen=True)
class BaselineConfig(MethodConfig):
    """What all baselines share."""

    correct_threshold: Annotated[float, number()] = 0.5
    one_pass: Switch = True


@dataclass(frozen=True)
class OpsdConfig(BaselineConfig):
    """On-policy self-distillation (arXiv 2601.18734), sampled-token form: the gap is the advantage."""

    NAME: ClassVar[str] = "opsd"
    TITLE: ClassVar[str] = "OPSD"
    COMPARES_A_GROUP: ClassVar[bool] = False
    teacher: OpsdTeacherConfig = OpsdTeacherConfig()


@dataclass(frozen=True)
class GrpoOpsdConfig(BaselineConfig):
    """GRPO's advantage plus OPSD's."""

    NAME: ClassVar[str] = "grpo_opsd"
    TITLE: ClassVar[str] = "GRPO+OPSD"
    gap_weight: NotNegative = 1.0  # λ; its value in the papers' comparisons is not known here
    teacher: GrpoOpsdTeacherConfig = GrpoOpsdTeacherConfig()


@dataclass(frozen=True)
class RlsdConfig(BaselineConfig):
    """RLSD (arXiv 2604.03128): the privileged gap scales GRPO's advantage within bounds, less and less."""

    NAME: ClassVar[str] = "rlsd"
    TITLE: ClassVar[str] = "RLSD"
    gap_weight: Share = 0.5  # λ of the first step
    gap_weight_decay_steps: Annotated[int, whole_number(0)] = 50
    weight_clip: Share = 0.2  # ε
    teacher: RlsdTeacherConfig = RlsdTeacherConfig()


@dataclass(frozen=True)
class RlrtConfig(BaselineConfig):
    """RLRT (arXiv 2605.10781): on correct responses, tokens that the privileged teacher likes less gain weight."""

    NAME: ClassVar[str] = "rlrt"
    TITLE: ClassVar[str] = "RLRT"
    gap_weight: Share = 0.5  # λ
    weight_clip: Share = 1.0  # ε
    teacher: RlrtTeacherConfig = RlrtTeacherConfig()


BASELINES = (OpsdConfig, GrpoOpsdConfig, RlsdConfig, RlrtConfig)

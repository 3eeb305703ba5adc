"""All figures of the report, by section. drawing.py draws them.

A figure draws each run's lines in the run's colour: the first solid, the second dashed, the third dotted. A run
without the first line's metric is not in the figure, and a figure without runs is left out. A method other than CAST is
drawn with its own metrics in place of CAST's.
"""

from dataclasses import dataclass

from verl_cast.tools.report.healthy import HEALTHY, Range
from verl_cast.tools.report.runs import Run

# Only mixed groups enter this metric. From few of them it is chance, so steps with fewer are not drawn.
IN_MIXED_GROUPS = "cast/gap/correctness_corr_in_group"
MIN_MIXED_GROUPS = 4
MAX_VALIDATIONS = 3


def series(run: Run, metric: str) -> dict[int, float]:
    """{step: value} that is drawn of a metric."""
    values = run.series(metric)
    if metric == IN_MIXED_GROUPS:
        counts = run.values("cast/group/mixed_count")
        values = {step: v for step, v in values.items() if counts.get(step, MIN_MIXED_GROUPS) >= MIN_MIXED_GROUPS}
    return values


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        title: no other figure's.
        lines: {label: metric}, as in `Run.series`.
        caption: what is drawn.
        unit: of the y axis.
        log: whether the y axis is logarithmic.
        between: pairs of metrics; the area between the two is shaded.
        marks: a metric; steps where it is 1 have a ground in the run's colour.
    """

    section: str
    title: str
    lines: dict[str, str]
    caption: str
    unit: str = ""
    log: bool = False
    between: tuple[tuple[str, str], ...] = ()
    marks: str = ""

    def has(self, run: Run) -> bool:
        return bool(run.values(next(iter(self.lines.values()))))

    @property
    def ranges(self) -> dict[str, Range]:
        """{label: healthy range} of its lines that have one."""
        named = ((label, metric.removeprefix("cast/")) for label, metric in self.lines.items())
        return {label: HEALTHY[metric] for label, metric in named if metric in HEALTHY}

    @property
    def healthy(self) -> str:
        """The healthy ranges in words."""
        words = ", ".join(f"{label} {healthy}" for label, healthy in self.ranges.items())
        return f"Healthy: {words}." if words else ""


FIGURES = (
    Figure("Learning", "Mean reward", {"reward": "critic/score/mean"}, "Over the step's responses."),
    Figure(
        "Learning",
        "Groups",
        {
            "mixed": "cast/group/mixed_share",
            "all correct": "cast/group/all_correct_share",
            "all wrong": "cast/group/all_wrong_share",
        },
        "Shares of the step's groups. Only mixed groups let the verifier compare responses.",
    ),
    Figure(
        "Is the teacher better?",
        "Trust in the teacher",
        {"teacher": "cast/trust/teacher_share", "policy": "cast/trust/policy_share"},
        "Measured shares of correct responses, in the teacher's context and under the student's prompt. On coloured "
        "ground the teacher was trusted; the other steps are GRPO's.",
        marks="cast/trust/trusted",
    ),
    Figure(
        "Is the teacher better?",
        "Correlation of gap and correctness",
        {"within groups": IN_MIXED_GROUPS, "over all responses": "cast/gap/correctness_corr"},
        "Above 0 the teacher prefers correct responses. Within groups, the difficulty of problems plays no part; steps "
        f"with fewer than {MIN_MIXED_GROUPS} mixed groups are left out there.",
    ),
    Figure(
        "Is the teacher better?",
        "Mean gap by correctness",
        {"correct responses": "cast/gap/correct_mean", "wrong responses": "cast/gap/wrong_mean"},
        "Healthy: the gap of correct responses lies above that of wrong ones.",
        unit="nats",
    ),
    Figure(
        "Gap",
        "Gap g = log π_teacher − log π_old",
        {"mean": "cast/gap/mean", "median": "cast/gap/p50"},
        "Over tokens, before the dead zone. Shaded: the middle half, and 5 to 95 % of the tokens.",
        unit="nats",
        between=(("cast/gap/p05", "cast/gap/p95"), ("cast/gap/p25", "cast/gap/p75")),
    ),
    Figure(
        "Gap",
        "Size of the gap and the engine's noise",
        {
            "mean |g|": "cast/gap/abs_mean",
            "noise (99 % of the tokens)": "cast/noise/p99",
            "dead zone": "cast/gap/deadzone",
        },
        "Healthy: the gap lies far above the noise, which is drawn where it was measured and is not 0.",
        unit="nats",
        log=True,
    ),
    Figure(
        "Gap",
        "Gaps within the engine's noise",
        {"share": "cast/noise/gap_share"},
        "Share of tokens whose gap is not above the noise, outside the dead zone: its sign may be chance.",
    ),
    Figure(
        "Flips and advantages",
        "Flipped tokens",
        {"correct responses": "cast/flip/correct_share", "wrong responses": "cast/flip/wrong_share"},
        "Shares of tokens whose advantage has the opposite sign of the base advantage.",
    ),
    Figure(
        "Flips and advantages",
        "Clipped weights and advantages",
        {"weight": "cast/weight/clipped_share", "advantage": "cast/advantage/clipped_share"},
        "Shares of tokens that a bound changes. With weights always clipped, only signs are left of the gap.",
    ),
    Figure(
        "Flips and advantages",
        "Advantage mass without contrast",
        {"share": "cast/advantage/zero_variance_mass"},
        "Share of Σ|Â| from all-correct and all-wrong groups, where only the gap tells tokens apart.",
    ),
    Figure(
        "Flips and advantages",
        "Advantages",
        {"mean |Â|": "cast/advantage/abs_mean", "mean |B|": "cast/base/abs_mean", "mean Â": "cast/advantage/mean"},
        "With a mean Â far below 0, more probability is pushed away than drawn in, and entropy grows.",
    ),
    Figure(
        "Collapse and cost",
        "Entropy of the policy",
        {
            "all responses": "actor/entropy",
            "correct": "cast/entropy/correct_mean",
            "wrong": "cast/entropy/wrong_mean",
        },
        "Healthy: it falls slowly. Near 0 the policy explores no more; growth means that it drifts.",
        unit="nats",
    ),
    Figure(
        "Collapse and cost",
        "Response length",
        {
            "all responses": "response_length/mean",
            "correct": "cast/length/correct_mean",
            "wrong": "cast/length/wrong_mean",
        },
        "Healthy: it changes slowly. A change while the reward falls is how a collapse begins.",
        unit="tokens",
    ),
    Figure(
        "Collapse and cost",
        "CAST's share of a step",
        {
            "teacher's pass": "timing_s/cast_teacher over timing_s/step",
            "measuring trust": "timing_s/cast_trust over timing_s/step",
        },
        "Shares of its seconds. With one pass, the teacher's pass replaces the pass for old log-probs.",
    ),
)


def with_data(runs: list[Run]) -> dict[str, list[Figure]]:
    """{section: its figures that at least one run is in}, and a figure for each of verl's first validation scores."""
    scores = sorted({n for run in runs for values in run.steps.values() for n in values if n.startswith("val-core/")})
    validations = (
        Figure("Learning", f"Validation: {name.removeprefix('val-core/')}", {"score": name}, "verl's own score.")
        for name in scores[:MAX_VALIDATIONS]
    )
    found = {}
    for figure in (*FIGURES, *validations):
        if any(figure.has(run) for run in runs):
            found.setdefault(figure.section, []).append(figure)
    return found

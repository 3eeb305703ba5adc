"""All figures of the report, section by section. drawing.py draws them.

A figure draws each run's lines in the run's colour: the first solid, the second dashed, the third dotted. A run
without the first line's metric is not in the figure, and a figure without runs is left out: a run without CAST is never
drawn as a CAST run.
"""

from dataclasses import dataclass

from verl_cast.tools.report.healthy import HEALTHY, Range
from verl_cast.tools.report.runs import Run

# Only mixed groups enter this metric. From few of them it is chance, so steps with fewer are not drawn.
IN_MIXED_GROUPS = "{method}/gap/correctness_corr_in_group"
MIN_MIXED_GROUPS = 4
MAX_VALIDATIONS = 3


def series(run: Run, metric: str) -> dict[int, float]:
    """{step: value} that is drawn of a metric, or of the ratio of two ("a over b")."""
    metric, _, over = metric.partition(" over ")
    values = run.series(metric, over)
    if metric == IN_MIXED_GROUPS:
        counts = run.values("{method}/group/mixed_count")
        values = {step: v for step, v in values.items() if counts.get(step, MIN_MIXED_GROUPS) >= MIN_MIXED_GROUPS}
    return values


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        lines: {label: metric}; `{method}` in a metric stands for the run's method.
        caption: what is drawn.
        unit: of the y axis.
        log: whether the y axis is logarithmic.
        between: pairs of metrics; the area between the two is shaded.
        marks: a metric; steps where it is 1 have a ground in the run's colour.
    """

    key: str
    title: str
    lines: dict[str, str]
    caption: str
    unit: str = ""
    log: bool = False
    between: tuple[tuple[str, str], ...] = ()
    marks: str = ""

    def has(self, run: Run) -> bool:
        return bool(run.values(*next(iter(self.lines.values())).split(" over ")))

    @property
    def ranges(self) -> dict[str, Range]:
        """{label: healthy range} of its lines that have one."""
        named = ((label, metric.removeprefix("{method}/")) for label, metric in self.lines.items())
        return {label: HEALTHY[metric] for label, metric in named if metric in HEALTHY}

    @property
    def healthy(self) -> str:
        """The healthy ranges in words."""
        words = ", ".join(f"{label} {healthy}" for label, healthy in self.ranges.items())
        return f"Healthy: {words}." if words else ""


SECTIONS: tuple[tuple[str, tuple[Figure, ...]], ...] = (
    (
        "Learning",
        (
            Figure("reward", "Mean reward", {"reward": "critic/score/mean"}, "Over the step's responses."),
            Figure(
                "groups",
                "Groups",
                {
                    "mixed": "{method}/group/mixed_share",
                    "all correct": "{method}/group/all_correct_share",
                    "all wrong": "{method}/group/all_wrong_share",
                },
                "Shares of the step's groups. Only mixed groups let the verifier compare responses.",
            ),
        ),
    ),
    (
        "Is the teacher better?",
        (
            Figure(
                "trust",
                "Trust in the teacher",
                {"teacher": "{method}/trust/teacher_share", "policy": "{method}/trust/policy_share"},
                "Measured shares of correct responses, in the teacher's context and under the student's prompt. On "
                "coloured ground the teacher was trusted; the other steps are GRPO's.",
                marks="{method}/trust/trusted",
            ),
            Figure(
                "agreement",
                "Correlation of gap and correctness",
                {"within groups": IN_MIXED_GROUPS, "over all responses": "{method}/gap/correctness_corr"},
                "Above 0 the teacher prefers correct responses. Within groups, the difficulty of "
                f"problems plays no part; steps with fewer than {MIN_MIXED_GROUPS} mixed groups are left out there.",
            ),
            Figure(
                "gap_by_correctness",
                "Mean gap by correctness",
                {"correct responses": "{method}/gap/correct_mean", "wrong responses": "{method}/gap/wrong_mean"},
                "Healthy: the gap of correct responses lies above that of wrong ones.",
                unit="nats",
            ),
        ),
    ),
    (
        "Gap",
        (
            Figure(
                "gap",
                "Gap g = log π_teacher − log π_old",
                {"mean": "{method}/gap/mean", "median": "{method}/gap/p50"},
                "Over tokens, before the dead zone. Shaded: the middle half, and 5 to 95 % of the tokens.",
                unit="nats",
                between=(("{method}/gap/p05", "{method}/gap/p95"), ("{method}/gap/p25", "{method}/gap/p75")),
            ),
            Figure(
                "noise",
                "Size of the gap and the engine's noise",
                {
                    "mean |g|": "{method}/gap/abs_mean",
                    "noise (99 % of the tokens)": "{method}/noise/p99",
                    "dead zone": "{method}/gap/deadzone",
                },
                "Healthy: the gap lies far above the noise, which is drawn where it was measured and is not 0.",
                unit="nats",
                log=True,
            ),
            Figure(
                "in_noise",
                "Gaps within the engine's noise",
                {"share": "{method}/noise/gap_share"},
                "Share of tokens whose gap is not above the noise, outside the dead zone: its sign may be chance.",
            ),
        ),
    ),
    (
        "Flips and advantages",
        (
            Figure(
                "flips",
                "Flipped tokens",
                {"correct responses": "{method}/flip/correct_share", "wrong responses": "{method}/flip/wrong_share"},
                "Shares of tokens whose advantage has the opposite sign of the base advantage.",
            ),
            Figure(
                "clips",
                "Clipped weights and advantages",
                {"weight": "{method}/weight/clipped_share", "advantage": "{method}/advantage/clipped_share"},
                "Shares of tokens that a bound changes. With weights always clipped, only signs are left of the gap.",
            ),
            Figure(
                "zero_variance",
                "Advantage mass without contrast",
                {"share": "{method}/advantage/zero_variance_mass"},
                "Share of Σ|Â| from all-correct and all-wrong groups, where only the gap tells tokens apart.",
            ),
            Figure(
                "advantage",
                "Advantages",
                {
                    "mean |Â|": "{method}/advantage/abs_mean",
                    "mean |B|": "{method}/base/abs_mean",
                    "mean Â": "{method}/advantage/mean",
                },
                "With a mean Â far below 0, more probability is pushed away than drawn in, and entropy grows.",
            ),
        ),
    ),
    (
        "Collapse and cost",
        (
            Figure(
                "entropy",
                "Entropy of the policy",
                {
                    "all responses": "actor/entropy",
                    "correct": "{method}/entropy/correct_mean",
                    "wrong": "{method}/entropy/wrong_mean",
                },
                "Healthy: it falls slowly. Near 0 the policy explores no more; growth means that it drifts.",
                unit="nats",
            ),
            Figure(
                "length",
                "Response length",
                {
                    "all responses": "response_length/mean",
                    "correct": "{method}/length/correct_mean",
                    "wrong": "{method}/length/wrong_mean",
                },
                "Healthy: it changes slowly. A change while the reward falls is how a collapse begins.",
                unit="tokens",
            ),
            Figure(
                "cost",
                "CAST's share of a step",
                {
                    "teacher's pass": "timing_s/cast_teacher over timing_s/step",
                    "measuring trust": "timing_s/cast_trust over timing_s/step",
                },
                "Shares of its seconds. With one pass, the teacher's pass replaces the pass for old log-probs.",
            ),
        ),
    ),
)


def with_data(runs: list[Run]) -> list[tuple[str, list[Figure]]]:
    """The sections with data, each with those of its figures that at least one run is in."""
    found = []
    for title, figures in SECTIONS:
        if title == "Learning":
            figures += _validations(runs)
        figures = [figure for figure in figures if any(figure.has(run) for run in runs)]
        if figures:
            found.append((title, figures))
    return found


def _validations(runs: list[Run]) -> tuple[Figure, ...]:
    """A figure for each of verl's first validation scores (`val-core/...`)."""
    names = sorted({n for run in runs for values in run.steps.values() for n in values if n.startswith("val-core/")})
    return tuple(
        Figure(f"validation_{i}", f"Validation: {name.removeprefix('val-core/')}", {"score": name}, "verl's own score.")
        for i, name in enumerate(names[:MAX_VALIDATIONS])
    )

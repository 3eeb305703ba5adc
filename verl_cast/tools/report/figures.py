"""All figures of the report, section by section. drawing.py draws them.

A figure draws each run's lines in the run's colour: the first solid, the second dashed, the third dotted. A run
without the first line's metric is not in the figure, and a figure without runs is left out: a run without CAST is never
drawn as a CAST run.
"""

from dataclasses import dataclass

from verl_cast.tools.report.healthy import HEALTHY, Range
from verl_cast.tools.report.runs import Run

STYLES = ("solid", "dashed", "dotted")
MIN_MIXED_GROUPS = 4  # a correlation within fewer is mostly chance
MAX_VALIDATIONS = 3


@dataclass(frozen=True)
class Line:
    """A curve: a metric, or the ratio of two (`over`). `{method}` in a metric stands for the run's method.

    Attributes:
        in_mixed_groups: whether only mixed groups enter the metric. Steps with fewer than MIN_MIXED_GROUPS are not
            drawn.
    """

    metric: str
    label: str = ""
    over: str = ""
    in_mixed_groups: bool = False

    def series(self, run: Run) -> dict[int, float]:
        """{step: value} that is drawn."""
        values = run.series(self.metric, self.over)
        mixed = run.values("{method}/group/mixed_count") if self.in_mixed_groups else {}
        few = {step for step, count in mixed.items() if count < MIN_MIXED_GROUPS}
        return {step: value for step, value in values.items() if step not in few}

    @property
    def healthy(self) -> Range | None:
        return None if self.over else HEALTHY.get(self.metric.removeprefix("{method}/"))


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        caption: what is drawn; `healthy` adds the ranges of healthy.py.
        unit: of the y axis.
        log: whether the y axis is logarithmic.
        between: pairs of metrics; the area between the two is shaded.
        marks: a metric; steps where it is 1 have a ground in the run's colour.
    """

    key: str
    title: str
    lines: tuple[Line, ...]
    caption: str
    unit: str = ""
    log: bool = False
    between: tuple[tuple[str, str], ...] = ()
    marks: str = ""

    def has(self, run: Run) -> bool:
        line = self.lines[0]
        return bool(run.values(line.metric, line.over))

    @property
    def key_text(self) -> str:
        """The style and the healthy range of each line, in words; the page's legend names the runs."""
        parts = []
        for line, style in zip(self.lines, STYLES, strict=False):
            healthy = f"healthy: {line.healthy}" if line.healthy else ""
            if len(self.lines) > 1:
                parts.append(f"{line.label} ({', '.join(filter(None, (style, healthy)))})")
            elif healthy:
                parts.append(healthy)
        return f"{', '.join(parts).capitalize()}." if parts else ""


SECTIONS: tuple[tuple[str, tuple[Figure, ...]], ...] = (
    (
        "Learning",
        (
            Figure("reward", "Mean reward", (Line("critic/score/mean"),), "Mean reward of the step's responses."),
            Figure(
                "groups",
                "Groups",
                (
                    Line("{method}/group/mixed_share", "mixed"),
                    Line("{method}/group/all_correct_share", "all correct"),
                    Line("{method}/group/all_wrong_share", "all wrong"),
                ),
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
                (Line("{method}/trust/teacher_share", "teacher"), Line("{method}/trust/policy_share", "policy")),
                "Measured shares of correct responses, in the teacher's context and under the student's prompt. On coloured "
                "ground the teacher was trusted; the other steps are GRPO's.",
                marks="{method}/trust/trusted",
            ),
            Figure(
                "agreement",
                "Correlation of gap and correctness",
                (
                    Line("{method}/gap/correctness_corr_in_group", "within groups", in_mixed_groups=True),
                    Line("{method}/gap/correctness_corr", "over all responses"),
                ),
                "Above 0 the teacher prefers correct responses. Within groups the difficulty of problems is taken out; "
                f"steps with fewer than {MIN_MIXED_GROUPS} mixed groups are not drawn there.",
            ),
            Figure(
                "gap_by_correctness",
                "Mean gap by correctness",
                (Line("{method}/gap/correct_mean", "correct"), Line("{method}/gap/wrong_mean", "wrong")),
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
                (Line("{method}/gap/mean", "mean"), Line("{method}/gap/p50", "median")),
                "Over tokens, before the dead zone. Shaded: the middle half, and 5 to 95 % of the tokens.",
                unit="nats",
                between=(("{method}/gap/p05", "{method}/gap/p95"), ("{method}/gap/p25", "{method}/gap/p75")),
            ),
            Figure(
                "noise",
                "Size of the gap and the engine's noise",
                (
                    Line("{method}/gap/abs_mean", "mean |g|"),
                    Line("{method}/noise/p99", "noise (99 % of the tokens)"),
                    Line("{method}/gap/deadzone", "dead zone"),
                ),
                "Healthy: the gap lies far above the noise, which is drawn where it was measured and is not 0.",
                unit="nats",
                log=True,
            ),
            Figure(
                "in_noise",
                "Gaps within the engine's noise",
                (Line("{method}/noise/gap_share"),),
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
                (
                    Line("{method}/flip/correct_share", "of correct responses"),
                    Line("{method}/flip/wrong_share", "of wrong responses"),
                ),
                "Shares of tokens whose advantage has the opposite sign of the base advantage.",
            ),
            Figure(
                "clips",
                "Clipped weights and advantages",
                (
                    Line("{method}/weight/clipped_share", "weight"),
                    Line("{method}/advantage/clipped_share", "advantage"),
                ),
                "Shares of tokens that a bound changes. With weights always clipped, only signs are left of the gap.",
            ),
            Figure(
                "zero_variance",
                "Advantage mass without contrast",
                (Line("{method}/advantage/zero_variance_mass"),),
                "Share of Σ|Â| from all-correct and all-wrong groups, where only the gap tells tokens apart.",
            ),
            Figure(
                "advantage",
                "Size of the advantage",
                (Line("{method}/advantage/abs_mean", "token |Â|"), Line("{method}/base/abs_mean", "base |B|")),
                "Means over tokens and over responses.",
            ),
            Figure(
                "advantage_mean",
                "Mean advantage",
                (Line("{method}/advantage/mean"),),
                "Far below 0 for many steps, more probability is pushed away than drawn in, and entropy grows.",
            ),
        ),
    ),
    (
        "Signs of a collapse",
        (
            Figure(
                "entropy",
                "Entropy of the policy",
                (
                    Line("actor/entropy", "all responses"),
                    Line("{method}/entropy/correct_mean", "correct"),
                    Line("{method}/entropy/wrong_mean", "wrong"),
                ),
                "Healthy: it falls slowly. Near 0 the policy explores no more; growth means that it drifts.",
                unit="nats",
            ),
            Figure(
                "length",
                "Response length",
                (
                    Line("response_length/mean", "all responses"),
                    Line("{method}/length/correct_mean", "correct"),
                    Line("{method}/length/wrong_mean", "wrong"),
                ),
                "Healthy: it changes slowly. A change while the reward falls is how a collapse begins.",
                unit="tokens",
            ),
        ),
    ),
    (
        "Cost",
        (
            Figure("seconds", "Seconds per step", (Line("timing_s/step"),), "Peaks are checkpoints and validations."),
            Figure(
                "teacher_cost",
                "CAST's share of a step",
                (
                    Line("timing_s/cast_teacher", "teacher's pass", over="timing_s/step"),
                    Line("timing_s/cast_trust", "measuring trust", over="timing_s/step"),
                ),
                "Seconds of each over those of the step. In one-pass steps the teacher's pass replaces the pass for old "
                "log-probs.",
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
        Figure(f"validation_{i}", f"Validation: {name.removeprefix('val-core/')}", (Line(name),), "verl's own score.")
        for i, name in enumerate(names[:MAX_VALIDATIONS])
    )

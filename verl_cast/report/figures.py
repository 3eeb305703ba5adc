"""Which figures the report has: metrics, titles, and one sentence each about what is healthy. No plotting here.

A line figure draws, per run, its lines in the run's colour; a second line of the same run is dashed, a third dotted. A
figure whose metrics no run has does not exist, and a run without a figure's metrics is not in it: a run without CAST is
never drawn as if it were one.
"""

import math
from dataclasses import dataclass

from verl_cast.report.runs import Run

LINES, BANDS, STACK, STAGES = "lines", "bands", "stack", "stages"


@dataclass(frozen=True)
class Line:
    """A curve: a metric, or the ratio of two (`over`)."""

    metric: str
    label: str = ""
    over: str = ""

    def series(self, run: Run) -> tuple[list[int], list[float]]:
        return run.ratio(self.metric, self.over) if self.over else run.series(self.metric)


@dataclass(frozen=True)
class Figure:
    """One figure: its lines, and the sentence below it.

    Attributes:
        kind: LINES; BANDS: the quantile bands of the gap around its median; STACK: shares that add up to 1, one panel a
            run; STAGES: mean seconds per stage, one bar a run.
        unit: of the y axis; "share" draws 0 to 1 as per cent, "log" a logarithmic axis.
        zero: whether a line marks y = 0.
    """

    key: str
    title: str
    caption: str
    lines: tuple[Line, ...]
    unit: str = ""
    kind: str = LINES
    zero: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    figures: tuple[Figure, ...]


SECTIONS = (
    Section(
        "Learning",
        (
            Figure(
                "reward",
                "Mean reward",
                "The verifier's mean reward over the step's responses. Healthy: it rises.",
                (Line("critic/score/mean"),),
            ),
            Figure(
                "correct",
                "Correct responses",
                "Share of responses whose reward is above correct_threshold. Healthy: it rises with the reward.",
                (Line("cast/correct_share"),),
                unit="share",
            ),
        ),
    ),
    Section(
        "Does the teacher agree with the verifier?",
        (
            Figure(
                "agreement",
                "Correlation of gap and correctness",
                "Over the step's trajectories: mean gap against correctness, within groups (solid) and over all "
                "(dashed). Healthy: above 0. Clearly below 0, CAST trains towards what is wrong.",
                (Line("cast/gap/correctness_corr_in_group", "in group"), Line("cast/gap/correctness_corr", "all")),
                unit="correlation",
                zero=True,
            ),
            Figure(
                "gap_by_correctness",
                "Mean gap, correct and wrong",
                "The teacher's mean gap on correct (solid) and wrong (dashed) trajectories. Healthy: the solid line "
                "lies above the dashed.",
                (Line("cast/gap/correct_mean", "correct"), Line("cast/gap/wrong_mean", "wrong")),
                unit="nats",
                zero=True,
            ),
        ),
    ),
    Section(
        "Gap and teacher",
        (
            Figure(
                "gap",
                "Gap g = log π_teacher − log π_old",
                "Mean over tokens (line), median (dotted), middle half and 5 to 95 % of the tokens (bands). "
                "Healthy: a mean at or a little below 0 that does not fall.",
                (
                    Line("cast/gap/mean", "mean"),
                    Line("cast/gap/p50", "median"),
                    Line("cast/gap/p25"),
                    Line("cast/gap/p75"),
                    Line("cast/gap/p05"),
                    Line("cast/gap/p95"),
                ),
                unit="nats",
                kind=BANDS,
                zero=True,
            ),
            Figure(
                "noise",
                "Size of the gap and the engine's noise",
                "Mean |g| (solid) against the difference of two passes of the same weights: its 99th percentile "
                "(dashed), where it was measured. Healthy: far apart. Where they meet, signs are chance. "
                "Logarithmic.",
                (Line("cast/gap/abs_mean", "mean |g|"), Line("cast/noise/p99", "noise, p99")),
                unit="log",
            ),
            Figure(
                "gap_signs",
                "Signs of the gap",
                "Tokens that the teacher likes more than the policy (solid), and tokens with gap 0, exactly or by "
                "the dead zone (dashed, dotted). Healthy: the solid line below one half, the dashed at 0 unless "
                "policy and teacher are the same.",
                (
                    Line("cast/gap/positive_share", "g > 0"),
                    Line("cast/gap/zero_share", "g = 0"),
                    Line("cast/gap/deadzone_share", "dead zone"),
                ),
                unit="share",
            ),
            Figure(
                "teacher_age",
                "Age of the teacher",
                "Training steps since the teacher's weights were the policy's. With snapshots a saw from 0 to "
                "refresh_interval − 1.",
                (Line("cast/teacher/age"),),
                unit="steps",
            ),
        ),
    ),
    Section(
        "Groups",
        (
            Figure(
                "groups",
                "Groups by verdict",
                "Mixed groups carry the verifier's comparison; in the others CAST has the gap alone, and GRPO "
                "nothing. Healthy: 30 to 70 % mixed (the paper's run: 48 % mixed, 20 % all correct, 31 % all wrong).",
                (
                    Line("cast/group/all_correct_share", "all correct"),
                    Line("cast/group/mixed_share", "mixed"),
                    Line("cast/group/all_wrong_share", "all wrong"),
                ),
                unit="share",
                kind=STACK,
            ),
            Figure(
                "zero_variance",
                "Advantage mass from one-sided groups",
                "Share of Σ|Â| that comes from all-correct and all-wrong groups. Healthy: like their share of "
                "groups; near 1 the self-teacher alone drives the run.",
                (Line("cast/advantage/zero_variance_mass"),),
                unit="share",
            ),
        ),
    ),
    Section(
        "Flips, clips and advantages",
        (
            Figure(
                "flips",
                "Flipped tokens",
                "Tokens whose advantage got the opposite sign, among those of correct (solid) and of wrong (dashed) "
                "trajectories. Healthy: the solid line clearly below 60 %.",
                (Line("cast/flip/correct_share", "correct"), Line("cast/flip/wrong_share", "wrong")),
                unit="share",
            ),
            Figure(
                "clips",
                "Clipped tokens",
                "Tokens whose weight exp(±g) was cut to its bounds (solid), and whose advantage stands at the final "
                "clip (dashed). The bounds are narrow: a large share is normal for the weight.",
                (Line("cast/weight/clipped_share", "weight"), Line("cast/advantage/clipped_share", "advantage")),
                unit="share",
            ),
            Figure(
                "advantage",
                "Size of the advantage",
                "Mean |Â| over tokens (solid) and mean |B| over responses (dashed). Healthy: 0.8 to 1.1.",
                (Line("cast/advantage/abs_mean", "token |Â|"), Line("cast/base/abs_mean", "base |B|")),
            ),
            Figure(
                "advantage_mean",
                "Mean advantage",
                "Mean Â over tokens. Below 0 more probability is pushed away than drawn in; far below for long, "
                "entropy grows.",
                (Line("cast/advantage/mean"),),
                zero=True,
            ),
        ),
    ),
    Section(
        "Signs of a collapse",
        (
            Figure(
                "length",
                "Response length",
                "Mean tokens per response. Healthy: slow change. Growth or shrinking with a falling reward is how a "
                "collapse begins.",
                (Line("response_length/mean"),),
                unit="tokens",
            ),
            Figure(
                "length_by_correctness",
                "Response length, correct and wrong",
                "Mean tokens of correct (solid) and wrong (dashed) responses. Healthy: they move together.",
                (Line("cast/length/correct_mean", "correct"), Line("cast/length/wrong_mean", "wrong")),
                unit="tokens",
            ),
            Figure(
                "cut_off",
                "Cut-off responses",
                "Responses that end at the length limit. Healthy: few; a cut response counts as wrong.",
                (Line("response_length/clip_ratio"),),
                unit="share",
            ),
            Figure(
                "entropy",
                "Entropy of the policy",
                "Mean over tokens. Healthy: a slow fall. Near 0 the policy stopped exploring; growth means that it "
                "drifts.",
                (Line("actor/entropy"),),
                unit="nats",
            ),
            Figure(
                "entropy_by_correctness",
                "Entropy, correct and wrong",
                "Mean entropy on correct (solid) and wrong (dashed) trajectories. Healthy: wrong ones are the less "
                "sure.",
                (Line("cast/entropy/correct_mean", "correct"), Line("cast/entropy/wrong_mean", "wrong")),
                unit="nats",
            ),
        ),
    ),
    Section(
        "Optimisation",
        (
            Figure(
                "grad_norm", "Gradient norm", "Before clipping. Healthy: no lasting growth.", (Line("actor/grad_norm"),)
            ),
            Figure(
                "pg_loss",
                "Policy loss",
                "It has no level to reach; jumps are what to look for.",
                (Line("actor/pg_loss"),),
                zero=True,
            ),
            Figure(
                "pg_clipfrac",
                "Clipped ratios",
                "Tokens whose ratio left the loss's range. With one update per batch it is 0; healthy otherwise: a "
                "few per cent.",
                (Line("actor/pg_clipfrac"),),
                unit="share",
            ),
            Figure(
                "ppo_kl",
                "KL to the old policy",
                "Within a step's updates. With one update per batch it is 0; healthy otherwise: small and steady.",
                (Line("actor/ppo_kl"), Line("actor/kl_loss", "to reference")),
                unit="nats",
                zero=True,
            ),
            Figure("lr", "Learning rate", "As the schedule says.", (Line("actor/lr"),)),
        ),
    ),
    Section(
        "Cost",
        (
            Figure(
                "stages",
                "Seconds per step, by stage",
                "Mean over all steps. The self-teacher should cost what the old log-probs cost, times the ratio of "
                "context lengths.",
                (
                    Line("timing_s/gen", "generation"),
                    Line("timing_s/reward", "reward"),
                    Line("timing_s/old_log_prob", "old log-probs"),
                    Line("timing_s/ref", "reference policy"),
                    Line("timing_s/cast_teacher", "self-teacher"),
                    Line("timing_s/cast_noise", "noise measurement"),
                    Line("timing_s/adv", "advantages"),
                    Line("timing_s/update_actor", "update"),
                    Line("timing_s/update_weights", "weight sync"),
                    Line("timing_s/save_checkpoint", "checkpoint"),
                    Line("timing_s/testing", "validation"),
                ),
                unit="seconds",
                kind=STAGES,
            ),
            Figure(
                "seconds",
                "Seconds per step",
                "Whole steps. Peaks are checkpoints and validations; slow growth follows response length.",
                (Line("timing_s/step"),),
                unit="seconds",
            ),
            Figure(
                "teacher_share",
                "Teacher's share of a step",
                "Seconds of the teacher's pass over those of the step. The paper's whole overhead over GRPO is 25 %.",
                (Line("timing_s/cast_teacher", over="timing_s/step"),),
                unit="share",
            ),
            Figure(
                "throughput",
                "Throughput",
                "Tokens per second and accelerator, as verl counts them.",
                (Line("perf/throughput"),),
                unit="tokens/s",
            ),
            Figure(
                "memory",
                "Memory of the actor's accelerator",
                "verl's peak allocation (solid) and the peak within the teacher's pass (dashed). Healthy: the "
                "dashed line is no higher.",
                (Line("perf/max_memory_allocated_gb", "actor"), Line("cast/teacher/peak_memory_gib", "teacher's pass")),
                unit="GB",
            ),
            Figure(
                "host_memory",
                "Host memory",
                "In use on the trainer's node (solid); of it the teacher's copy on one rank (dashed). Healthy: flat.",
                (Line("perf/cpu_memory_used_gb", "node"), Line("cast/teacher/host_gib", "teacher's copy")),
                unit="GB",
            ),
        ),
    ),
)

MAX_VALIDATION_FIGURES = 6


def sections(runs: list[Run]) -> list[tuple[Section, list[Figure]]]:
    """The sections that have something to show, each with its figures that have data."""
    found = []
    for section in SECTIONS:
        figures = [figure for figure in section.figures if any(has_data(figure, run) for run in runs)]
        if section.title == "Learning":
            figures += validation_figures(runs)
        if figures:
            found.append((section, figures))
    return found


def has_data(figure: Figure, run: Run) -> bool:
    """Whether a run is drawn in a figure: its first line decides, except where every line has a place of its own."""
    if figure.kind == STAGES:
        return any(run.has(line.metric) for line in figure.lines)
    if figure.kind == STACK:
        return all(run.has(line.metric) for line in figure.lines)
    values = [value for value in figure.lines[0].series(run)[1] if not math.isnan(value)]
    # On a machine without accelerator verl logs 0: nothing was measured.
    return any(values) if figure.unit == "GB" else bool(values)


def validation_figures(runs: list[Run]) -> list[Figure]:
    """One figure per validation score of verl (`val-core/...`), the first few by name."""
    names = sorted({n for run in runs for values in run.steps.values() for n in values if n.startswith("val-core/")})
    left_out = len(names) - MAX_VALIDATION_FIGURES
    more = f" {left_out} more val-core metrics are in the file." if left_out > 0 else ""
    return [
        Figure(
            f"validation_{i}",
            f"Validation: {name.removeprefix('val-core/')}",
            f"Measured every trainer.test_freq steps. Healthy: it rises with the reward, and stays.{more}",
            (Line(name),),
        )
        for i, name in enumerate(names[:MAX_VALIDATION_FIGURES])
    ]

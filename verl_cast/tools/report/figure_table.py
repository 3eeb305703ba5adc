"""The report's figures, section by section.

Captions speak of verl's metrics and of the drawing. The metric table (explained.py) adds what our metrics mean.
"""

from verl_cast.tools.report.figures import BANDS, FEW_MIXED_GROUPS, STACK, STAGES, Figure, Line, Section

SECTIONS = (
    Section(
        "Learning",
        (
            Figure(
                "reward",
                "Mean reward",
                (Line("critic/score/mean"),),
                caption="The verifier's mean reward over the step's responses. Healthy: it rises.",
            ),
            Figure("correct", "Correct responses", (Line("{method}/correct_share"),), unit="share"),
        ),
    ),
    Section(
        "Does the teacher agree with the verifier?",
        (
            Figure(
                "agreement",
                "Correlation of gap and correctness",
                (
                    Line("{method}/gap/correctness_corr_in_group", "in group", in_mixed_groups=True),
                    Line("{method}/gap/correctness_corr", "all"),
                ),
                caption=(
                    f"in group: steps with fewer than {FEW_MIXED_GROUPS} mixed groups are not drawn, where the run "
                    "logged their number (group/mixed_count)."
                ),
                unit="correlation",
                zero=True,
            ),
            Figure(
                "gap_by_correctness",
                "Mean gap, correct and wrong",
                (Line("{method}/gap/correct_mean", "correct"), Line("{method}/gap/wrong_mean", "wrong")),
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
                (
                    Line("{method}/gap/mean", "mean"),
                    Line("{method}/gap/p50", "median"),
                    Line("{method}/gap/p25"),
                    Line("{method}/gap/p75"),
                    Line("{method}/gap/p05"),
                    Line("{method}/gap/p95"),
                ),
                caption=(
                    "Line: mean; dotted: median; bands: the middle half and 5 to 95 % of the tokens. Before the dead "
                    "zone."
                ),
                unit="nats",
                kind=BANDS,
                zero=True,
            ),
            Figure(
                "noise",
                "Size of the gap and the engine's noise",
                (
                    Line("{method}/gap/abs_mean", "mean |g|"),
                    Line("{method}/noise/p99", "noise, p99"),
                    Line("{method}/gap/deadzone", "dead zone"),
                ),
                caption=(
                    "Logarithmic. The noise is drawn where it was measured and is not 0. Where the two meet, signs "
                    "are chance."
                ),
                unit="log",
            ),
            Figure(
                "gap_signs",
                "Signs of the gap",
                (
                    Line("{method}/gap/positive_share", "g > 0"),
                    Line("{method}/gap/zero_share", "g = 0"),
                    Line("{method}/gap/deadzone_share", "dead zone"),
                ),
                unit="share",
            ),
            Figure("teacher_age", "Age of the teacher", (Line("{method}/teacher/age"),), unit="steps", smooth=False),
        ),
    ),
    Section(
        "Groups",
        (
            Figure(
                "groups",
                "Groups by verdict",
                (
                    Line("{method}/group/all_correct_share", "all correct"),
                    Line("{method}/group/mixed_share", "mixed"),
                    Line("{method}/group/all_wrong_share", "all wrong"),
                ),
                unit="share",
                kind=STACK,
            ),
            Figure(
                "zero_variance",
                "Advantage mass from all-correct and all-wrong groups",
                (Line("{method}/advantage/zero_variance_mass"),),
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
                (Line("{method}/flip/correct_share", "correct"), Line("{method}/flip/wrong_share", "wrong")),
                unit="share",
            ),
            Figure(
                "clips",
                "Clipped tokens",
                (
                    Line("{method}/weight/clipped_share", "weight"),
                    Line("{method}/advantage/clipped_share", "advantage"),
                ),
                unit="share",
            ),
            Figure(
                "advantage",
                "Size of the advantage",
                (Line("{method}/advantage/abs_mean", "token |Â|"), Line("{method}/base/abs_mean", "base |B|")),
            ),
            Figure("advantage_mean", "Mean advantage", (Line("{method}/advantage/mean"),), zero=True),
        ),
    ),
    Section(
        "Signs of a collapse",
        (
            Figure(
                "length",
                "Response length",
                (Line("response_length/mean"),),
                caption=(
                    "verl's mean length of responses, in tokens. Healthy: it changes slowly. A change while the "
                    "reward falls is how a collapse begins."
                ),
                unit="tokens",
            ),
            Figure(
                "length_by_correctness",
                "Response length, correct and wrong",
                (Line("{method}/length/correct_mean", "correct"), Line("{method}/length/wrong_mean", "wrong")),
                unit="tokens",
            ),
            Figure(
                "cut_off",
                "Responses at the longest length",
                (Line("response_length/clip_ratio"),),
                caption=(
                    "Share of responses that are as long as the longest of their batch. If that is the length limit, "
                    "they were cut off. Healthy: few."
                ),
                unit="share",
            ),
            Figure(
                "entropy",
                "Entropy of the policy",
                (Line("actor/entropy"),),
                caption=(
                    "verl's mean entropy over tokens. Healthy: it falls slowly. Near 0 the policy explores no more; "
                    "growth means that it drifts."
                ),
                unit="nats",
            ),
            Figure(
                "entropy_by_correctness",
                "Entropy, correct and wrong",
                (Line("{method}/entropy/correct_mean", "correct"), Line("{method}/entropy/wrong_mean", "wrong")),
                unit="nats",
            ),
        ),
    ),
    Section(
        "Optimisation",
        (
            Figure(
                "grad_norm",
                "Gradient norm",
                (Line("actor/grad_norm"),),
                caption="Before clipping. Healthy: no lasting growth.",
            ),
            Figure(
                "pg_loss",
                "Policy loss",
                (Line("actor/pg_loss"),),
                caption="It has no level to reach. Look for jumps.",
                zero=True,
            ),
            Figure(
                "pg_clipfrac",
                "Clipped ratios",
                (Line("actor/pg_clipfrac"),),
                caption=(
                    "Share of tokens whose ratio left the loss's range. Healthy: 0 with one update per batch, else a "
                    "few per cent."
                ),
                unit="share",
            ),
            Figure(
                "ppo_kl",
                "KL to the old policy",
                (Line("actor/ppo_kl"), Line("actor/kl_loss", "to reference")),
                caption=(
                    "KL divergence within a step's updates. Healthy: 0 with one update per batch, else small and "
                    "steady."
                ),
                unit="nats",
                zero=True,
            ),
            Figure(
                "rollout",
                "Rollout engine and trainer",
                (Line("training/rollout_actor_probs_pearson_corr"),),
                caption=(
                    "Correlation of the sampled tokens' probabilities in the two engines. Healthy: above 0.99. "
                    "Asynchronous samples come from an older policy and lie lower."
                ),
            ),
            Figure("lr", "Learning rate", (Line("actor/lr"),), caption="As the schedule says.", smooth=False),
        ),
    ),
    Section(
        "Cost",
        (
            Figure(
                "stages",
                "Seconds per step, by stage",
                (
                    Line("timing_s/gen", "generation"),
                    Line("timing_s/reward", "reward"),
                    Line("timing_s/old_log_prob", "old log-probs"),
                    Line("timing_s/ref", "reference policy"),
                    Line("timing_s/cast_teacher", "self-teacher"),
                    Line("timing_s/cast_noise", "noise measurement"),
                    Line("timing_s/adv", "advantages"),
                    Line("timing_s/cast_dump", "trajectory dump"),
                    Line("timing_s/update_actor", "update"),
                    Line("timing_s/cast_after_update", "bookkeeping after a one-pass update"),
                    Line("timing_s/update_weights", "weight sync"),
                    Line("timing_s/save_checkpoint", "checkpoint"),
                    Line("timing_s/testing", "validation"),
                ),
                caption=(
                    "Mean over all steps. The self-teacher should cost what the old log-probs cost, times the ratio "
                    "of context lengths. In one-pass steps it replaces them."
                ),
                unit="seconds",
                kind=STAGES,
            ),
            Figure(
                "seconds",
                "Seconds per step",
                (Line("timing_s/step"),),
                caption="Whole steps. Peaks are checkpoints and validations. Slow growth follows response length.",
                unit="seconds",
            ),
            Figure(
                "teacher_share",
                "Teacher's share of a step",
                (Line("timing_s/cast_teacher", over="timing_s/step"),),
                caption=(
                    "Seconds of the teacher's pass over those of the step. The paper's whole overhead over GRPO is "
                    "25 %."
                ),
                unit="share",
            ),
            Figure(
                "throughput",
                "Throughput",
                (Line("perf/throughput"),),
                caption="Tokens per second and accelerator, as verl counts them.",
                unit="tokens/s",
            ),
            Figure(
                "memory",
                "Memory of the actor's accelerator",
                (
                    Line("actor/perf/max_memory_allocated_gb", "actor"),
                    Line("{method}/teacher/peak_memory_gib", "rise by the teacher's pass"),
                ),
                caption="actor (solid): verl's peak allocation of the actor's accelerator.",
                unit="GB",
            ),
            Figure(
                "host_memory",
                "Host memory",
                (Line("actor/perf/cpu_memory_used_gb", "node"), Line("{method}/teacher/host_gib", "teacher's copy")),
                caption="node (solid): host memory in use on the trainer's node. Healthy: flat.",
                unit="GB",
            ),
        ),
    ),
)

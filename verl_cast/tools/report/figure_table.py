"""The report's figures, section by section: metrics, titles, and one sentence each about what is healthy."""

from verl_cast.tools.report.figures import BANDS, STACK, STAGES, Figure, Line, Section

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
                (Line("{method}/correct_share"),),
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
                (
                    Line("{method}/gap/correctness_corr_in_group", "in group"),
                    Line("{method}/gap/correctness_corr", "all"),
                ),
                unit="correlation",
                zero=True,
            ),
            Figure(
                "gap_by_correctness",
                "Mean gap, correct and wrong",
                "The teacher's mean gap on correct (solid) and wrong (dashed) trajectories. Healthy: the solid line "
                "lies above the dashed.",
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
                "Before the dead zone: mean over tokens (line), median (dotted), middle half and 5 to 95 % (bands). "
                "Healthy: a mean at or a little below 0 that does not fall, the middle half well inside ±1.",
                (
                    Line("{method}/gap/mean", "mean"),
                    Line("{method}/gap/p50", "median"),
                    Line("{method}/gap/p25"),
                    Line("{method}/gap/p75"),
                    Line("{method}/gap/p05"),
                    Line("{method}/gap/p95"),
                ),
                unit="nats",
                kind=BANDS,
                zero=True,
            ),
            Figure(
                "noise",
                "Size of the gap and the engine's noise",
                "Mean |g| before the dead zone (solid) against the difference of two passes of the same weights: its "
                "99th percentile (dashed), where it was measured and is not 0. Healthy: far apart. Where they meet, "
                "the signs of gaps that no dead zone silences are chance. Logarithmic.",
                (Line("{method}/gap/abs_mean", "mean |g|"), Line("{method}/noise/p99", "noise, p99")),
                unit="log",
            ),
            Figure(
                "gap_signs",
                "Signs of the gap",
                "Before the dead zone, tokens that the teacher likes more than the policy (solid) and tokens with gap "
                "0 (dashed); gaps that the dead zone silences (dotted). Healthy: the solid line below one half at "
                "first, the dashed at 0 unless policy and teacher are the same.",
                (
                    Line("{method}/gap/positive_share", "g > 0"),
                    Line("{method}/gap/zero_share", "g = 0"),
                    Line("{method}/gap/deadzone_share", "dead zone"),
                ),
                unit="share",
            ),
            Figure(
                "teacher_age",
                "Age of the teacher",
                "Training steps since the teacher's weights were the policy's. With snapshots a saw from 0 to "
                "refresh_interval − 1.",
                (Line("{method}/teacher/age"),),
                unit="steps",
                smooth=False,
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
                    Line("{method}/group/all_correct_share", "all correct"),
                    Line("{method}/group/mixed_share", "mixed"),
                    Line("{method}/group/all_wrong_share", "all wrong"),
                ),
                unit="share",
                kind=STACK,
            ),
            Figure(
                "zero_variance",
                "Advantage mass from one-sided groups",
                "Share of Σ|Â| that comes from all-correct and all-wrong groups. Healthy: like their share of "
                "groups; near 1 the self-teacher alone drives the run.",
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
                "Tokens whose advantage got the opposite sign, among those of correct (solid) and of wrong (dashed) "
                "trajectories. Healthy: the solid line clearly below 60 %.",
                (Line("{method}/flip/correct_share", "correct"), Line("{method}/flip/wrong_share", "wrong")),
                unit="share",
            ),
            Figure(
                "clips",
                "Clipped tokens",
                "Tokens whose weight exp(±g) was cut to its bounds (solid), and whose advantage the final clip really "
                "changed (dashed). Healthy for the weight, whose bounds are narrow: 30 to 90 %; at 100 % only signs "
                "are left.",
                (
                    Line("{method}/weight/clipped_share", "weight"),
                    Line("{method}/advantage/clipped_share", "advantage"),
                ),
                unit="share",
            ),
            Figure(
                "advantage",
                "Size of the advantage",
                "Mean |Â| over tokens (solid) and mean |B| over responses (dashed). Healthy: 0.8 to 1.1.",
                (Line("{method}/advantage/abs_mean", "token |Â|"), Line("{method}/base/abs_mean", "base |B|")),
            ),
            Figure(
                "advantage_mean",
                "Mean advantage",
                "Mean Â over tokens. Below 0 more probability is pushed away than drawn in; far below for long, "
                "entropy grows.",
                (Line("{method}/advantage/mean"),),
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
                (Line("{method}/length/correct_mean", "correct"), Line("{method}/length/wrong_mean", "wrong")),
                unit="tokens",
            ),
            Figure(
                "cut_off",
                "Responses at the longest length",
                "Share of the responses that are as long as the longest of their batch. Where that is the length "
                "limit, these are cut off and count as wrong. Healthy: few.",
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
                "Mean entropy on correct (solid) and wrong (dashed) trajectories. Healthy: a slow fall; where it "
                "falls on wrong ones, the policy is sure of errors.",
                (Line("{method}/entropy/correct_mean", "correct"), Line("{method}/entropy/wrong_mean", "wrong")),
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
            Figure(
                "rollout",
                "Rollout engine and trainer",
                "Correlation of the sampled tokens' probabilities in the two engines. Healthy: above 0.99; "
                "asynchronous samples are a policy old and lie lower.",
                (Line("training/rollout_actor_probs_pearson_corr"),),
            ),
            Figure("lr", "Learning rate", "As the schedule says.", (Line("actor/lr"),), smooth=False),
        ),
    ),
    Section(
        "Cost",
        (
            Figure(
                "stages",
                "Seconds per step, by stage",
                "Mean over all steps. The self-teacher should cost what the old log-probs cost (in one-pass steps it "
                "replaces them), times the ratio of context lengths.",
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
                "verl's peak allocation (solid), and the rise of the process's peak by the teacher's pass (dashed): "
                "what it took beyond all before it, not what it takes. Healthy: 0, unless the teacher's context is "
                "much the longer.",
                (
                    Line("actor/perf/max_memory_allocated_gb", "actor"),
                    Line("{method}/teacher/peak_memory_gib", "rise by the teacher's pass"),
                ),
                unit="GB",
            ),
            Figure(
                "host_memory",
                "Host memory",
                "In use on the trainer's node (solid); of it the teacher's copy on one rank (dashed). Healthy: flat.",
                (Line("actor/perf/cpu_memory_used_gb", "node"), Line("{method}/teacher/host_gib", "teacher's copy")),
                unit="GB",
            ),
        ),
    ),
)

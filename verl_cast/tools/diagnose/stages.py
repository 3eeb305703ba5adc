"""The stages of a diagnosis that run the model: sampling and verifying, comparing contexts, scoring."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from verl_cast.checks import fitness
from verl_cast.config.cast import NOISE
from verl_cast.teacher.context import TeacherContext
from verl_cast.tools.cli import UserError
from verl_cast.tools.diagnose import contexts
from verl_cast.tools.diagnose.privileged import privileged_messages
from verl_cast.tools.diagnose.rollouts import Rollouts, Trajectory, sampled
from verl_cast.tools.diagnose.sampling import sample
from verl_cast.tools.diagnose.scoring import Scorer
from verl_cast.tools.diagnose.setup import Problem, Setup, Verifier

NOISE_ROWS = 16  # trajectories that are scored again, one by one, to measure the forward's noise


@dataclass(frozen=True)
class Samples:
    """Verified samples by context, `contexts.STUDENT` first.

    Attributes:
        outputs: the samples per context and problem, from `sampling.sample`.
        rewards: per context (problems, samples).
    """

    problems: list[Problem]
    outputs: dict[str, list[list[dict[str, Any]]]]
    rewards: dict[str, np.ndarray]

    def rollouts(self, setup: Setup) -> Rollouts:
        """The student's samples as rollouts to score."""
        return sampled(setup, self.problems, self.outputs[contexts.STUDENT], self.rewards[contexts.STUDENT])


def sample_and_verify(
    args: argparse.Namespace, setup: Setup, teachers: dict[str, TeacherContext], directory: Path, clock: Any
) -> Samples:
    """Sample the policy under the student's prompt and under every teacher context; grade with the run's reward.

    Args:
        teachers: by name; `same` is the student's prompt and is not sampled again.
        directory: for vLLM's log.
    """
    setup.check_sampling()
    verifier = Verifier(setup)
    problems = setup.problems(args.data, args.problems, args.seed)
    if not args.no_gaps and not args.rollouts:
        _need_references(problem.reference for problem in problems)
    students = [setup.prompt_ids(problem.messages) for problem in problems]
    prompts = {contexts.STUDENT: students}
    for name, context in teachers.items():
        if not context.is_same:
            prompts[name] = [
                setup.teacher_ids(context, p.messages, ids) for p, ids in zip(problems, students, strict=True)
            ]
    number = len(problems)
    clock.begin("sampling", f"vLLM: {number} problems x {args.samples} samples under {len(prompts)} context(s)")
    found = sample(setup, [ids for group in prompts.values() for ids in group], args.samples, args.seed, directory)
    outputs = {name: found[i * number : (i + 1) * number] for i, name in enumerate(prompts)}

    total = len(prompts) * number * args.samples
    clock.begin("verifying", f"{total} responses, with the run's own reward")
    rewards = {name: np.zeros((number, args.samples)) for name in prompts}
    with tqdm(total=total, desc="verifying", leave=False, disable=None) as bar:
        for name, groups in outputs.items():
            for i, (problem, group) in enumerate(zip(problems, groups, strict=True)):
                for k, one in enumerate(group):
                    rewards[name][i, k] = verifier.score(problem, one["ids"])
                    bar.update()
    return Samples(problems, outputs, rewards)


def compare_contexts(args: argparse.Namespace, setup: Setup, samples: Samples) -> dict[str, Any]:
    """Accuracy under every context; saves a record per teacher context for `verl_cast.checks.fitness`."""
    threshold = setup.method.correct_threshold
    student, *teachers = (
        contexts.summarize(name, samples.outputs[name], rewards, threshold) for name, rewards in samples.rewards.items()
    )
    teachers = [contexts.compare(student, teacher, args.seed) for teacher in teachers]
    own, warning, records = setup.method.teacher.context, None, []
    for teacher in teachers:
        record = contexts.fitness_record(setup, student, teacher, args.samples, args.data, args.seed)
        if teacher["context"] == own:
            warning = fitness.warning(record)
        try:
            records.append(str(fitness.save(setup.config, record, teacher["context"])))
        except OSError as error:  # the results are still reported
            print(f"[fitness] the record could not be saved: {error}", file=sys.stderr)
    return {
        "problems": len(samples.problems),
        "samples": args.samples,
        "data": args.data,
        "own_context": own,
        "same": own == "same",
        "student": student,
        "teachers": teachers,
        "records": records,
        "warning": warning,
    }


def _need_references(references: Iterable[str | None]) -> None:
    missing = sum(reference is None for reference in references)
    if missing:
        raise UserError(
            f"{missing} problem(s) have no reference answer (reward_model.ground_truth), which the privileged teacher "
            "needs; leave that teacher out with --no-gaps."
        )


def score(
    args: argparse.Namespace, setup: Setup, teachers: dict[str, TeacherContext], rollouts: Rollouts, clock: Any
) -> None:
    """Fill in the log-probs that the rollouts do not have yet."""
    rows = rollouts.trajectories
    if not args.no_gaps:
        _need_references({t.group: t.reference for t in rows}.values())
    tokenizer = setup.tokenizer
    clock.begin("scoring", f"{len(rows)} trajectories, {int(rollouts.counted().sum())} tokens")
    scorer = Scorer(setup.model_path, setup.temperature, tokenizer.pad_token_id or 0, setup.trust_remote_code)
    responses = [t.response_ids for t in rows]

    def score_after(prompts: list[list[int]], label: str) -> list[np.ndarray]:
        return scorer.log_probs(prompts, responses, label)

    student = score_after([t.prompt_ids for t in rows], "student")
    if args.rollouts:
        differences = [np.abs(s - o)[t.mask] for s, o, t in zip(student, rollouts.old, rows, strict=True)]
        rollouts.distance = float(np.concatenate(differences).mean())
    else:
        rollouts.old = student
    rollouts.noise = _noise(scorer, rows, student, args.seed)
    if rollouts.method.gap_deadzone == NOISE:  # here the noise is that of this forward
        rollouts.method = dataclasses.replace(rollouts.method, gap_deadzone=rollouts.noise)

    for name, context in teachers.items():
        if context.is_same:
            rollouts.teachers.setdefault(name, rollouts.old)
        elif name not in rollouts.teachers:  # a dump has its own teacher's log-probs
            prompts = [setup.teacher_ids(context, t.messages, t.prompt_ids) for t in rows]
            rollouts.teachers[name] = score_after(prompts, name)
    if not args.no_gaps:
        prompts = [setup.prompt_ids(privileged_messages(t.messages, t.reference), limit=False) for t in rows]
        rollouts.privileged = score_after(prompts, "privileged")


def _noise(scorer: Scorer, rows: list[Trajectory], scores: list[np.ndarray], seed: int) -> float:
    """99th percentile over tokens of |difference| to the same rows scored one by one, nats."""
    again = np.random.default_rng(seed).permutation(len(rows))[:NOISE_ROWS]
    prompts, responses = [rows[i].prompt_ids for i in again], [rows[i].response_ids for i in again]
    alone = scorer.log_probs(prompts, responses, "noise", alone=True)
    differences = [np.abs(values - scores[i]) for values, i in zip(alone, again, strict=True)]
    return float(np.quantile(np.concatenate(differences), 0.99))

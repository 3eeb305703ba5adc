"""One course of the study: a policy trained on its own responses in a plain PyTorch loop.

The advantages are verl_cast's. The rest is what verl does with one update a batch: old log-probs are those of the
update's own forward, the teacher is a snapshot of the policy, the loss is a mean over tokens, then over responses.
"""

import itertools
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from verl_cast.advantage.base import MIXED
from verl_cast.advantage.compute import TokenAdvantage, compute_advantage
from verl_cast.config import CastConfig
from verl_cast.training.trust import Trust, compare, responses_per_problem

# GRPO is CAST without weight, flips, base advantages and clip, bit for bit.
GRPO = {"gap_weight": 0, "flip": "none", "base_correct": 0, "base_wrong": 0, "advantage_clip": None}


@dataclass(frozen=True)
class Arm:
    """Settings under `algorithm.cast`.

    Attributes:
        settings: what differs from the paper's.
        trust: the teacher's trust is measured, as by `algorithm.cast.trust=measured`; a step without trust is GRPO's.
        contrast: the gap is the teacher's log-prob less that of the same weights in the cell's careless context.
    """

    settings: dict[str, Any]
    trust: bool = False
    contrast: bool = False


ZERO_VARIANCE = {"flip_groups": "zero_variance"}
SMALL = {"base_correct": 0, "base_wrong": 0.3}
TENTH = {"base_correct": 0, "base_wrong": 0.1}
ARMS = {
    "grpo": Arm(GRPO),
    "exact": Arm({}),
    "exact_deadzone": Arm({"gap_deadzone": 1.0}),
    "no_flip": Arm({"flip": "none"}),
    "weights_only": Arm({"flip": "none", "base_correct": 0, "base_wrong": 0}),
    "zero_variance": Arm(ZERO_VARIANCE),
    "zero_variance_small": Arm(ZERO_VARIANCE | SMALL),
    "small_deadzone": Arm(ZERO_VARIANCE | SMALL | {"gap_deadzone": 1.0}),
    "tenth_deadzone": Arm(ZERO_VARIANCE | TENTH | {"gap_deadzone": 1.0}),
    # With measured trust.
    "exact_trusted": Arm({}, trust=True),
    "one_trusted": Arm(ZERO_VARIANCE | {"base_correct": 0, "base_wrong": 1}, trust=True),
    "small_trusted": Arm(ZERO_VARIANCE | SMALL, trust=True),
    "tenth_trusted": Arm(ZERO_VARIANCE | TENTH, trust=True),
    "tenth_deadzone_trusted": Arm(ZERO_VARIANCE | TENTH | {"gap_deadzone": 1.0}, trust=True),
    # A contrastive gap.
    "contrast": Arm({}, contrast=True),
    "contrast_trusted": Arm({}, trust=True, contrast=True),
    # Without a teacher: a constant in all-wrong groups.
    "wrong_third": Arm(GRPO | {"base_wrong": 1 / 3}),
    "wrong_tenth": Arm(GRPO | {"base_wrong": 0.1}),
}
NO_TEACHER = ("grpo", "wrong_third", "wrong_tenth")
MAX_GRAD_NORM = 1.0
HELD_OUT = 200  # responses of an evaluation


@dataclass
class Responses:
    """Sampled responses, n to each problem, in the problems' order: N rows.

    Attributes:
        tokens: (N, T) ids, padded.
        mask: (N, T) int64, 1 on the tokens of a response.
        rewards: (N,) float, 1 or 0.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    rewards: torch.Tensor

    def rows(self, start: int, stop: int) -> "Responses":
        return Responses(self.tokens[start:stop], self.mask[start:stop], self.rewards[start:stop])


class Policy(Protocol):
    """A model that reads a problem in a context. `group_batch`: problems of one forward with gradients."""

    model: torch.nn.Module
    group_batch: int

    def sample(self, problems: Sequence[Any], n: int, context: str, generator: torch.Generator) -> Responses: ...

    def log_probs(self, problems: Sequence[Any], responses: Responses, n: int, context: str) -> torch.Tensor:
        """(N, T) at the sampling temperature."""

    def snapshot(self) -> "Policy": ...


@dataclass(frozen=True)
class Cell:
    """A task, and the contexts in which student and teacher read its problems.

    `careless`: the context that a contrastive gap subtracts.
    """

    name: str
    train: Sequence[Any]
    held_out: Sequence[Any]
    student: str
    teacher: str
    careless: str | None = None


@dataclass(frozen=True)
class Plan:
    """What all courses of one study share. `block`: steps of which the raw file holds one mean reward."""

    steps: int
    problems: int
    n: int
    learning_rate: float
    evaluate_every: int
    block: int


def course(
    policy: Policy,
    cell: Cell,
    arm: Arm,
    plan: Plan,
    seed: int,
    batches: Sequence[Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Train `policy`, and return what the course looked like. Arms of one seed see the same problems.

    Args:
        batches: the problems of every step, where another program has drawn them.

    Returns:
        Per cent: `reward`, means over blocks of steps. Over five such blocks: `mixed` groups, `flips` of all tokens,
        and `trusted` with measured trust, whose `measured` holds every refresh. `course`: mean reward of all steps.
        `held_out`: [step, accuracy].
    """
    started, config, grpo = time.monotonic(), CastConfig.from_dict(arm.settings), CastConfig.from_dict(GRPO)
    problems_of_seed, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=plan.learning_rate, weight_decay=0.0, fused=True)
    teacher, trust = None, MeasuredTrust(config) if arm.trust else None
    needs_teacher = config.gap_weight > 0 or config.flip != "none"
    steps: list[dict[str, float]] = []
    held_out: list[list[float]] = []
    for step in range(plan.steps):
        if needs_teacher and step % config.teacher.refresh_interval == 0:
            teacher = policy.snapshot()
            if trust is not None:
                trust.measure(policy, cell, seed, step)
        problems = batches[step] if batches else problems_of_seed.sample(list(cell.train), plan.problems)
        with torch.no_grad():
            responses = policy.sample(problems, plan.n, cell.student, generator)
        trusted = trust is None or trust.holds(responses.rewards)
        careless = cell.careless if arm.contrast else None
        results = update(
            policy, teacher, optimizer, problems, responses, plan, cell, config if trusted else grpo, careless
        )
        steps.append(statistics(results) | ({} if trust is None else {"trusted": float(trusted)}))
        if (step + 1) % plan.evaluate_every == 0:
            held_out.append([step + 1, evaluate(policy, cell, seed)])
    return {
        "course": round(float(np.mean([step["reward"] for step in steps])), 4),
        "held_out": held_out,
        **{
            name: in_blocks([step[name] for step in steps], plan.block if name == "reward" else 5 * plan.block)
            for name in steps[0]
        },
        **({} if trust is None else {"measured": trust.measured}),
        "seconds": round(time.monotonic() - started, 1),
    }


def update(policy, teacher, optimizer, problems, responses, plan, cell, config, careless=None) -> list[TokenAdvantage]:
    """One optimizer step over all responses, some problems at a time; the advantages of each such part."""
    n, rows, results = plan.n, len(responses.rewards), []
    rewards = torch.zeros(responses.tokens.shape)
    rewards[:, 0] = responses.rewards
    optimizer.zero_grad(set_to_none=True)
    for first in range(0, len(problems), policy.group_batch):
        some = problems[first : first + policy.group_batch]
        part = slice(first * n, first * n + len(some) * n)
        own = responses.rows(part.start, part.stop)
        log_probs = policy.log_probs(some, own, n, cell.student)
        old = reference = log_probs.detach()
        if teacher is not None:
            with torch.no_grad():
                reference = teacher.log_probs(some, own, n, cell.teacher)
                if careless is not None:  # the rule's gap is reference - old
                    reference = old + (reference - teacher.log_probs(some, own, n, careless))
        index = np.repeat(np.arange(len(some)), n)
        result = compute_advantage(rewards[part], own.mask, index, old, reference, config)
        ratio = torch.exp(log_probs - old)
        per_response = (result.advantages * ratio * own.mask).sum(dim=-1) / own.mask.sum(dim=-1)
        (-per_response.sum() / rows).backward()
        results.append(result)
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return results


class MeasuredTrust:
    """The plugin's own decision (verl_cast/training/trust.py), on this loop's policies.

    Its random numbers are not the course's, which stay what they are.

    Attributes:
        measured: [step, the teacher's share of correct responses, the policy's, standard errors] of each refresh.
    """

    def __init__(self, config: CastConfig):
        self._trust = Trust(config.trust_responses, config.trust_standard_errors, config.teacher.refresh_interval)
        self._responses = config.trust_responses
        self.measured: list[list[float]] = []

    @torch.no_grad()
    def measure(self, policy: Policy, cell: Cell, seed: int, step: int) -> None:
        """At a refresh: both contexts answer the same problems, one response each where there are enough."""
        generator, drawn = torch.Generator().manual_seed(1_000 * seed + step), random.Random(f"{seed} {step}")
        problems = drawn.sample(list(cell.train), min(len(cell.train), self._responses))
        n = responses_per_problem(self._responses, len(problems))
        teacher, own = (
            (policy.sample(problems, n, context, generator).rewards.view(-1, n) > 0.5).tolist()
            for context in (cell.teacher, cell.student)
        )
        found = compare(teacher, own)
        self._trust.decide(step, found)
        shown = (found.teacher_share, found.policy_share, found.standard_errors)
        self.measured.append([step, *(round(value, 3) for value in shown)])

    def holds(self, rewards: torch.Tensor) -> bool:
        """Whether the step with these rewards follows the teacher."""
        self._trust.observe(int((rewards > 0.5).sum()), len(rewards))
        return self._trust.trusted


def statistics(results: Sequence[TokenAdvantage]) -> dict[str, float]:
    """Of one step: mean reward, share of mixed groups (all groups have one size), share of flipped tokens."""
    rows = sum(len(result.base.kind) for result in results)
    tokens = sum(int(result.mask.sum()) for result in results)
    return {
        "reward": sum(int(result.base.correct.sum()) for result in results) / rows,
        "mixed": sum(int((result.base.kind == MIXED).sum()) for result in results) / rows,
        "flips": sum(int(result.flipped.sum()) for result in results) / tokens,
    }


def in_blocks(values: Sequence[float], block: int) -> list[int]:
    """Means over blocks of steps, in whole per cent: a line of the raw file stays short."""
    return [round(100 * float(np.mean(values[first : first + block]))) for first in range(0, len(values), block)]


@torch.no_grad()
def evaluate(policy: Policy, cell: Cell, seed: int) -> float:
    """Accuracy on the held-out problems in the student's context, one response each; more where problems are few."""
    generator, n = torch.Generator().manual_seed(1_000_003 + seed), max(1, HELD_OUT // len(cell.held_out))
    return round(float(policy.sample(cell.held_out, n, cell.student, generator).rewards.mean()), 4)


# ------------------------------------------------------------------------------------------------------------ raw files


def pending(
    path: Path, seeds: Sequence[int], cells: Sequence[str], arms: Sequence[str], by_cell: bool = False
) -> list[tuple[str, str, int]]:
    """(cell, arm, seed) of the runs that a file of results lacks.

    A seed is complete before the next one starts; with `by_cell` a cell is. Arms without a teacher run in the fit cell
    of a density and count for the others.
    """
    outer, inner = (cells, seeds) if by_cell else (seeds, cells)
    jobs = {}
    for one, other, arm in itertools.product(outer, inner, arms):
        cell, seed = (one, other) if by_cell else (other, one)
        jobs[(f"{cell.rpartition('_')[0]}_fit" if arm in NO_TEACHER else cell, arm, seed)] = None
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(run["cell"], run["arm"], run["seed"]) for run in map(json.loads, lines)}
    return [job for job in jobs if job not in done]


def append(path: Path, run: dict[str, Any]) -> None:
    """Add a run to the file; several processes may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(run, separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)

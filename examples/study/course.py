"""One course of the study: a policy trained on its own responses in a plain PyTorch loop.

The advantages are verl_cast's. The rest is what verl does with one update a batch: old log-probs are those of the
update's own forward, the teacher is a snapshot of the policy, the loss is a mean over tokens, then over responses.
"""

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

from verl_cast.advantage.compute import compute_advantage
from verl_cast.advantage.metrics import advantage_metrics
from verl_cast.config import CastConfig

# GRPO is CAST without weight, flips, base advantages and clip, bit for bit.
GRPO = {"gap_weight": 0, "flip": "none", "base_correct": 0, "base_wrong": 0, "advantage_clip": None}


@dataclass(frozen=True)
class Arm:
    """Settings under `algorithm.cast`, and when the teacher is trusted.

    Attributes:
        settings: what differs from the paper's.
        trust: the in-group correlation of gap and correctness, averaged over steps, from which on the settings hold.
            Below it the step is GRPO's. None: always.
    """

    settings: dict[str, Any]
    trust: float | None = None


ZERO_VARIANCE = {"flip_groups": "zero_variance"}
SMALL = {"base_correct": 0, "base_wrong": 0.3}
ARMS = {
    "grpo": Arm(GRPO),
    "exact": Arm({}),
    "no_flip": Arm({"flip": "none"}),
    "zero_variance": Arm(ZERO_VARIANCE),
    "zero_variance_small": Arm(ZERO_VARIANCE | SMALL),
    "exact_trust": Arm({}, trust=0.1),
    "zero_variance_trust": Arm(ZERO_VARIANCE, trust=0.1),
}
TRUST_DECAY = 0.9
MAX_GRAD_NORM = 1.0


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
    """A task, and the contexts in which student and teacher read its problems."""

    name: str
    train: Sequence[Any]
    held_out: Sequence[Any]
    student: str
    teacher: str


@dataclass(frozen=True)
class Plan:
    """What all courses of one study share."""

    steps: int
    problems: int
    n: int
    learning_rate: float
    evaluate_every: int


def course(policy: Policy, cell: Cell, arm: Arm, plan: Plan, seed: int) -> dict[str, Any]:
    """Train `policy`, and return what the course looked like. Arms of one seed see the same problems."""
    started, config = time.monotonic(), CastConfig.from_dict(arm.settings)
    grpo = CastConfig.from_dict(GRPO)
    problems_of_seed, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    teacher, trust = policy, 0.0
    names = ("reward", "mixed", "flips", "gap", "correlation", "trusted")
    steps: dict[str, list[float | None]] = {name: [] for name in names}
    held_out = [[0, evaluate(policy, cell, seed)]]
    for step in range(plan.steps):
        trusted = arm.trust is None or trust >= arm.trust
        needs_teacher = arm.settings is not GRPO
        if needs_teacher and step % config.teacher.refresh_interval == 0:
            teacher = policy.snapshot()
        problems = problems_of_seed.sample(list(cell.train), plan.problems)
        with torch.no_grad():
            responses = policy.sample(problems, plan.n, cell.student, generator)
        metrics = update(
            policy, teacher if needs_teacher else None, optimizer, problems, responses, plan, cell,
            config if trusted else grpo,
        )  # fmt: skip
        correlation = metrics.get("gap/correctness_corr_in_group")
        if correlation is not None:
            trust = TRUST_DECAY * trust + (1 - TRUST_DECAY) * correlation
        for name, value in (
            ("reward", metrics["correct_share"]),
            ("mixed", metrics["group/mixed_share"]),
            ("flips", metrics["flip/share"]),
            ("gap", metrics["gap/mean"]),
            ("correlation", correlation),
            ("trusted", float(trusted)),
        ):
            steps[name].append(None if value is None else round(value, 4))
        if (step + 1) % plan.evaluate_every == 0:
            held_out.append([step + 1, evaluate(policy, cell, seed)])
    return {"steps": steps, "held_out": held_out, "seconds": round(time.monotonic() - started, 1)}


def update(policy, teacher, optimizer, problems, responses, plan, cell, config) -> dict[str, float]:
    """One optimizer step over all responses, some problems at a time; the method's metrics of the batch."""
    n, rows = plan.n, len(responses.rewards)
    index = np.repeat(np.arange(len(problems)), n)
    rewards = torch.zeros(responses.tokens.shape)
    rewards[:, 0] = responses.rewards
    old, scored = [], []
    optimizer.zero_grad(set_to_none=True)
    for first in range(0, len(problems), policy.group_batch):
        some = problems[first : first + policy.group_batch]
        part = slice(first * n, first * n + len(some) * n)
        own = responses.rows(part.start, part.stop)
        log_probs = policy.log_probs(some, own, n, cell.student)
        reference = log_probs.detach()
        if teacher is not None:
            with torch.no_grad():
                reference = teacher.log_probs(some, own, n, cell.teacher)
        result = compute_advantage(rewards[part], own.mask, index[part], log_probs.detach(), reference, config)
        ratio = torch.exp(log_probs - log_probs.detach())
        per_response = (result.advantages * ratio * own.mask).sum(dim=-1) / own.mask.sum(dim=-1)
        (-per_response.sum() / rows).backward()
        old.append(log_probs.detach())
        scored.append(reference)
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    result = compute_advantage(rewards, responses.mask, index, torch.cat(old), torch.cat(scored), config)
    return advantage_metrics(result, None)


@torch.no_grad()
def evaluate(policy: Policy, cell: Cell, seed: int) -> float:
    """Accuracy on the held-out problems, one sampled response each, in the student's context."""
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    return round(float(policy.sample(cell.held_out, 1, cell.student, generator).rewards.mean()), 4)


# ------------------------------------------------------------------------------------------------------------ raw files


def finished(path: Path) -> set[tuple[str, str, int]]:
    """(cell, arm, seed) of every run in a file of results, one run a line."""
    if not path.exists():
        return set()
    runs = map(json.loads, path.read_text().splitlines())
    return {(run["cell"], run["arm"], run["seed"]) for run in runs}


def append(path: Path, run: dict[str, Any]) -> None:
    """Add a run to the file; several processes may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(run, separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)

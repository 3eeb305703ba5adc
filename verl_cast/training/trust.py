"""Is the teacher better than the policy? `algorithm.cast.trust=measured` asks the verifier at every snapshot.

A snapshot has the policy's weights, so the rollout engine can sample both: the teacher's policy is the same weights
under the teacher's prompt. The run's own reward grades the responses of both to the same problems.

* The teacher is trusted if its share of correct responses exceeds the policy's by `trust_standard_errors` standard
  errors. Otherwise the steps up to the next snapshot are GRPO's.
* It is taken back at the next snapshot, or earlier: as soon as the policy's share in the last training steps (as few as
  hold `trust_responses` responses) has reached the share that was measured for the teacher.

The standard error is the larger one of two. The paired one, over problems, knows that responses to one problem are
alike, and that a context may help with some problems and hurt with others. It is too small where almost every problem
is solved (or none): a few problems then decide it. The binomial one, of both contexts pooled, holds there.

Why the comparison is honest: both contexts answer the same problems, with the same weights, under the same sampling,
and the same reward grades them. No response is chosen by its reward. The policy's responses are those of the training
batch where the mode is sync and the batch has MIN_PROBLEMS problems. Elsewhere they are sampled with the teacher's: an
asynchronous batch holds responses of earlier policies, which are mostly worse, and a teacher would pass for better.

This module decides; measurement.py samples.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_cast.config.cast import MIN_PROBLEMS

_STATE_VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """The teacher's policy and the policy, on the same problems.

    Attributes:
        teacher_share, policy_share: mean over problems of the share of correct responses.
        standard_error: of their difference.
        teacher_responses, policy_responses, problems: how many there were.
    """

    teacher_share: float
    policy_share: float
    standard_error: float
    teacher_responses: int
    policy_responses: int
    problems: int

    @property
    def standard_errors(self) -> float:
        """The difference in standard errors; 0 where both shares are 0, or both are 1."""
        difference = self.teacher_share - self.policy_share
        return difference / self.standard_error if difference else 0.0


def compare(teacher: Sequence[Sequence[bool]], policy: Sequence[Sequence[bool]]) -> Comparison:
    """
    Args:
        teacher, policy: for every problem the correctness of its responses; both in the same order of problems.

    Raises:
        ValueError: fewer than MIN_PROBLEMS problems, or a problem without a response.
    """
    if len(teacher) < MIN_PROBLEMS:
        raise ValueError(
            f"{len(teacher)} problems are too few to compare teacher and policy; {MIN_PROBLEMS} are needed."
        )
    sizes = np.array([[len(a), len(b)] for a, b in zip(teacher, policy, strict=True)])
    if not sizes.all():
        raise ValueError(f"{int((sizes == 0).any(axis=1).sum())} problems have no response in one of the two contexts.")
    correct = np.array([[sum(a), sum(b)] for a, b in zip(teacher, policy, strict=True)])
    shares = correct / sizes
    over_problems = np.std(shares[:, 0] - shares[:, 1], ddof=1) / math.sqrt(len(shares))
    (teacher_responses, policy_responses), pooled = sizes.sum(axis=0), correct.sum() / sizes.sum()
    binomial = math.sqrt(pooled * (1 - pooled) * (1 / teacher_responses + 1 / policy_responses))
    return Comparison(
        teacher_share=float(shares[:, 0].mean()),
        policy_share=float(shares[:, 1].mean()),
        standard_error=float(max(over_problems, binomial)),
        teacher_responses=int(teacher_responses),
        policy_responses=int(policy_responses),
        problems=len(shares),
    )


class Trust:
    """Whether the teacher of this run is trusted; one object a run.

    Args:
        responses: `trust_responses`.
        standard_errors: `trust_standard_errors`.
        refresh_interval: training steps between snapshots.

    Attributes:
        trusted: in the step that runs.
        measured_at: completed training steps when the teacher was measured last; None before that.
    """

    def __init__(self, responses: int, standard_errors: float, refresh_interval: int):
        self._responses = responses
        self._standard_errors = standard_errors
        self._refresh_interval = refresh_interval
        self.trusted = False
        self.measured_at: int | None = None
        self._teacher_share = 0.0
        self._recent: list[list[int]] = []  # [correct, all] responses of the last steps

    def due(self, completed_steps: int) -> bool:
        """Whether a snapshot is taken, and so measured, in the step after `completed_steps` training steps."""
        interval = self._refresh_interval
        return self.measured_at is None or completed_steps // interval > self.measured_at // interval

    def decide(self, completed_steps: int, measured: Comparison) -> str:
        """Give trust or not, after a measurement. Returns the decision in words."""
        better = measured.teacher_share > measured.policy_share
        self.trusted = better and measured.standard_errors >= self._standard_errors
        self.measured_at, self._teacher_share, self._recent = completed_steps, measured.teacher_share, []
        return (
            f"the teacher is {'trusted' if self.trusted else f'not trusted: {self._grpo()}'}. Of its "
            f"{measured.teacher_responses} responses to {measured.problems} problems {measured.teacher_share:.2f} are "
            f"correct, of the policy's {measured.policy_responses} {measured.policy_share:.2f}: "
            f"{measured.standard_errors:.1f} standard errors, {self._standard_errors:g} are needed"
        )

    def observe(self, correct: int, responses: int) -> str | None:
        """Take trust back where the policy has reached the teacher's share. Returns this in words.

        Args:
            correct, responses: of the training batch of the step that runs.
        """
        if not self.trusted:
            return None
        self._recent.append([correct, responses])
        while sum(size for _, size in self._recent[1:]) >= self._responses:
            del self._recent[0]
        (correct, size) = (sum(column) for column in zip(*self._recent, strict=True))
        if size < self._responses or correct < self._teacher_share * size:
            return None
        self.trusted = False
        return (
            f"the teacher is no longer trusted: {self._grpo()}. {correct / size:.2f} of the policy's last {size} "
            f"responses are correct, {self._teacher_share:.2f} of the teacher's were"
        )

    def _grpo(self) -> str:
        return f"GRPO until the next snapshot (at most {self._refresh_interval} steps)"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to decide alike. JSON can hold it."""
        return {
            "version": _STATE_VERSION,
            "trusted": self.trusted,
            "measured_at": self.measured_at,
            "teacher_share": self._teacher_share,
            "recent": self._recent,
        }

    def restore(self, state: Mapping[str, Any] | None, taken_at: int, completed_steps: int) -> str | None:
        """Go on after a checkpoint. Returns in words why its measurement cannot be used, where a later one must decide.

        Args:
            state: of `state_dict`; None where the checkpoint has none.
            taken_at: completed training steps when the teacher's weights were the policy's.
            completed_steps: of the checkpoint.

        Raises:
            ValueError: the state is of another version.
        """
        if state is not None and state["version"] != _STATE_VERSION:
            raise ValueError(
                f"CAST: the checkpoint's state of trust has version {state['version']!r}, this package's is "
                f"{_STATE_VERSION}. Move the file away to wait for the next snapshot."
            )
        if state is not None and state["measured_at"] == taken_at:
            self.trusted, self.measured_at = state["trusted"], state["measured_at"]
            self._teacher_share, self._recent = state["teacher_share"], state["recent"]
        elif taken_at != completed_steps:
            self.measured_at = taken_at
            return f"the checkpoint holds no measurement of its teacher: {self._grpo()}"
        return None


def responses_per_problem(responses: int, problems: int) -> int:
    """Responses to each of `problems` problems, so that there are at least `responses`."""
    return -(-responses // problems)


def draw_problems(seed: int | None, completed_steps: int, problems: int, count: int) -> list[int]:
    """Rows of the training data, drawn for one measurement; a resumed run draws the same.

    No generator of the training is touched.

    Args:
        seed: `data.seed`.
        problems: rows that the data have.
        count: rows to draw, without repetition.
    """
    generator = np.random.default_rng([0 if seed is None else seed, completed_steps])
    return generator.choice(problems, size=count, replace=False).tolist()


def by_problem(graded: Iterable[tuple[str, bool]], problems: Sequence[str]) -> list[list[bool]]:
    """The correctness of responses, for every problem.

    Args:
        graded: (problem, correct) of every response. Responses to other problems are left out.
        problems: their names, in the order of the result.
    """
    found: dict[str, list[bool]] = {problem: [] for problem in problems}
    for problem, correct in graded:
        if problem in found:
            found[problem].append(correct)
    return list(found.values())

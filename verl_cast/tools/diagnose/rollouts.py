"""Rollouts to analyse: sampled here, or read from a run's trajectory dump.

A dump's own log-probs and verdicts are used unchanged. Rows that do not count in the run, or that its teacher did not
score, are left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verl_cast import trajectories
from verl_cast.config.words import command_words
from verl_cast.tools.cli import UserError
from verl_cast.training.dump import token_texts


@dataclass(frozen=True)
class Trajectory:
    """One response of T tokens.

    Attributes:
        group: the problem that it answers.
        prompt_ids: the student's prompt.
        texts: the text of each of the T tokens.
        mask: (T,) bool, tokens that the policy wrote and that count; at least one.
    """

    group: str
    messages: list[dict[str, Any]]
    reference: str | None
    prompt_ids: list[int]
    response_ids: list[int]
    texts: list[str]
    mask: np.ndarray
    correct: bool


@dataclass
class Rollouts:
    """Trajectories with log-probs; a list of log-probs holds one (T,) array per trajectory.

    Attributes:
        about: their origin, for the reader.
        context: of the run's own teacher.
        old: log π_old with the student's prompt.
        teachers: log-probs by teacher: contexts, and gaps.PRIVILEGED.
        distance: mean |log-prob of the scoring model − old| over tokens, where old comes from a dump; else None.
    """

    about: str
    context: str
    trajectories: list[Trajectory]
    old: list[np.ndarray] = field(default_factory=list)
    teachers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    distance: float | None = None

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return np.array([t.correct for t in self.trajectories])

    @property
    def groups(self) -> np.ndarray:
        """(N,) group of every trajectory, as 0, 1, 2, ..."""
        return np.unique([t.group for t in self.trajectories], return_inverse=True)[1]

    def gaps(self, teacher: str) -> list[np.ndarray]:
        """N arrays (T,), the gap of every token in nats (method section 3); NaN where the token does not count."""
        pairs = zip(self.teachers[teacher], self.old, self.trajectories, strict=True)
        return [np.where(t.mask, scored.astype(np.float64) - old, np.nan) for scored, old, t in pairs]


def sampled(setup: Any, problems: Sequence[Any], outputs: Sequence[Any], rewards: np.ndarray) -> Rollouts:
    """Rollouts from samples with the student's prompt.

    Args:
        setup: a `Setup`.
        problems: N problems, from `setup.problems`.
        outputs: the samples of every problem, from `sampling.sample`.
        rewards: (N, samples).
    """
    rows = [
        Trajectory(
            group=f"{i:06d}",
            messages=problem.messages,
            reference=problem.reference,
            prompt_ids=setup.prompt_ids(problem.messages),
            response_ids=one["ids"],
            texts=token_texts(setup.tokenizer, one["ids"]),
            mask=np.ones(len(one["ids"]), dtype=bool),
            correct=bool(reward > setup.method.correct_threshold),
        )
        for i, (problem, samples, scores) in enumerate(zip(problems, outputs, rewards, strict=True))
        for one, reward in zip(samples, scores, strict=True)
    ]
    return Rollouts(f"sampled here from {setup.model_path}", setup.method.teacher.context, rows)


def read_dump(paths: Sequence[str], problems: int, seed: int) -> tuple[Rollouts, dict[str, Any]]:
    """Rollouts of a run, and the dump's metadata about that run (from `trajectories.read`).

    Args:
        paths: dump files, dump directories or run directories.
        problems: at most this many groups, drawn from all files.

    Raises:
        UserError: no dump, a damaged one, files of different runs, or no row that the teacher scored.
    """
    rows, runs = [], {}
    for file in _dump_files(paths):
        try:
            found, about = trajectories.read(file)
        except trajectories.DumpError as error:
            raise UserError(str(error)) from error
        runs.setdefault(json.dumps({**about, "verl_cast": None}, sort_keys=True), (file, about))
        rows += [{**row, "group": f"{row['step']}/{row['group']}"} for row in found]
    (first, about), *others = runs.values()
    if others:
        raise UserError(
            f"--rollouts: {first} (model {about['model']}) and {others[0][0]} (model {others[0][1]['model']}) come "
            "from runs with different settings; name the files of one run."
        )
    rows = [row for row in rows if row["kind"] != "excluded" and any(row["response_mask"])]
    scored = [row for row in rows if not np.isnan(row["teacher_log_probs"]).any()]
    if not scored:
        raise UserError(
            f"--rollouts: {first} holds no response that counts and that the teacher scored; leave --rollouts out to "
            "sample and score anew."
        )
    names = sorted({row["group"] for row in scored})
    kept = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:problems]}
    scored = [row for row in scored if row["group"] in kept]
    steps = sorted({row["step"] for row in scored})
    span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    rollouts = Rollouts(
        f"{span} of a run, {len(kept)} of {len(names)} dumped groups",
        about["cast"]["teacher"]["context"],
        [
            Trajectory(
                group=row["group"],
                messages=json.loads(row["messages"]),
                reference=row["reference"],
                prompt_ids=row["prompt_ids"],
                response_ids=row["response_ids"],
                texts=row["response_text"],
                mask=np.array(row["response_mask"]),
                correct=row["correct"],
            )
            for row in scored
        ],
        old=[np.array(row["old_log_probs"], dtype=np.float32) for row in scored],
    )
    rollouts.teachers[rollouts.context] = [np.array(row["teacher_log_probs"], dtype=np.float32) for row in scored]
    return rollouts, about


def _dump_files(paths: Sequence[str]) -> list[Path]:
    found: dict[Path, None] = {}  # each once, in order
    for name in paths:
        path = Path(name).expanduser()
        if not path.exists():
            raise UserError(f"--rollouts {name}: no such file or directory; name a run's directory.")
        places = [path, *path.rglob(trajectories.DIRECTORY)]
        files = [path] if path.is_file() else [file for place in places for file in trajectories.files(place).values()]
        if not files:
            raise UserError(
                f"--rollouts {name}: the directory holds no trajectory dump (step_*.parquet); a run writes one with "
                f"{command_words({'dump.interval': 10})}."
            )
        found |= dict.fromkeys(files)
    return list(found)

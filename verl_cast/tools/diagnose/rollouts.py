"""Rollouts to analyse: sampled here, or read from a run's trajectory dump.

A dump's own log-probs, rewards and settings are used unchanged. Rows that do not count in the run do not count here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verl_cast import trajectories, wire
from verl_cast.advantage.base import MIXED
from verl_cast.advantage.compute import TokenAdvantage, compute_advantage
from verl_cast.config.cast import CastConfig, CastConfigError
from verl_cast.tools import stats
from verl_cast.tools.cli import UserError
from verl_cast.tools.diagnose import tokens
from verl_cast.training.dump import token_texts


@dataclass(frozen=True)
class Trajectory:
    """One response of T tokens.

    Attributes:
        group: the problem that it answers; the responses of a group share the prompt.
        prompt_ids: the student's prompt.
        texts: the text of each of the T tokens.
        mask: (T,) bool, tokens that the policy wrote and that count.
        reference: the reference answer, which CAST's teacher never sees.
    """

    group: str
    messages: list[dict[str, Any]]
    reference: str | None
    prompt_ids: list[int]
    response_ids: list[int]
    texts: list[str]
    mask: np.ndarray
    reward: float


@dataclass
class Rollouts:
    """Trajectories with log-probs of the policy and of teachers; log-prob lists hold one (T,) array per trajectory.

    Attributes:
        about: their origin, for the reader.
        method: the run's `algorithm.cast`.
        norm_by_std: verl's `algorithm.norm_adv_by_std_in_grpo`.
        final_row: (N,) per trajectory, the row of its session's final output; None: every trajectory is its own.
        old: log π_old under the student's prompt.
        teachers: by context, log-probs of the answer-free teachers; the run's own (`method.teacher.context`) first.
        privileged: log-probs of the privileged teacher; None where it was left out.
        noise: |difference| of the policy's log-probs when scored in other batches, 99th percentile, nats; None: not
            measured.
        distance: mean |log-prob of the scoring model − old| over tokens, where old comes from a dump; else None.
        special_ids: the tokenizer's special tokens.
    """

    about: str
    trajectories: list[Trajectory]
    method: CastConfig
    norm_by_std: bool = True
    final_row: np.ndarray | None = None
    special_ids: frozenset[int] = frozenset()
    old: list[np.ndarray] = field(default_factory=list)
    teachers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    privileged: list[np.ndarray] | None = None
    noise: float | None = None
    distance: float | None = None

    @property
    def groups(self) -> np.ndarray:
        """(N,) group of every trajectory, as 0, 1, 2, ..."""
        return stats.number_groups([t.group for t in self.trajectories])

    @property
    def right(self) -> np.ndarray:
        """(N,) bool, reward > correct_threshold."""
        return np.array([t.reward > self.method.correct_threshold for t in self.trajectories])

    def counted(self) -> np.ndarray:
        """(M,) bool: which response tokens count, over all trajectories in order."""
        return np.concatenate([t.mask for t in self.trajectories])

    def owner(self) -> np.ndarray:
        """(M',) the trajectory of every token that counts."""
        return np.repeat(np.arange(len(self.trajectories)), [int(t.mask.sum()) for t in self.trajectories])

    def gaps(self, teacher: list[np.ndarray]) -> np.ndarray:
        """(M',) gap of every token that counts (method section 3)."""
        return (np.concatenate(teacher).astype(np.float64) - np.concatenate(self.old))[self.counted()]

    def mean_gaps(self, teacher: list[np.ndarray]) -> np.ndarray:
        """(N,) mean gap of every trajectory over its tokens that count."""
        sums = np.bincount(self.owner(), self.gaps(teacher), minlength=len(self.trajectories))
        return sums / np.array([t.mask.sum() for t in self.trajectories])

    def advantage(self, teacher: list[np.ndarray], method: CastConfig) -> tuple[TokenAdvantage, np.ndarray]:
        """CAST's own result for every token, and the (M',) advantages of the tokens that count."""
        import torch

        width = max(len(t.response_ids) for t in self.trajectories)

        def padded(rows: Sequence[np.ndarray]) -> torch.Tensor:
            return torch.tensor(np.stack([np.pad(row.astype(np.float32), (0, width - len(row))) for row in rows]))

        mask = padded([t.mask for t in self.trajectories])
        rewards = torch.zeros_like(mask)
        rewards[:, 0] = torch.tensor([t.reward for t in self.trajectories])
        final_row = None if self.final_row is None else torch.from_numpy(self.final_row)
        result = compute_advantage(
            rewards, mask, self.groups, padded(self.old), padded(teacher), method, self.norm_by_std, final_row
        )
        return result, result.advantages[mask.bool()].numpy().astype(np.float64)

    def classes(self) -> np.ndarray:
        """(M',) class of every token that counts (tokens.CLASSES)."""
        names = [
            tokens.token_class(text, token in self.special_ids)
            for t in self.trajectories
            for token, text in zip(t.response_ids, t.texts, strict=True)
        ]
        return np.array(names)[self.counted()]

    def fifths(self) -> np.ndarray:
        """(M',) the fifth of its response that holds the token, 0 to 4."""
        return np.concatenate([tokens.fifths(len(t.response_ids)) for t in self.trajectories])[self.counted()]

    def final(self) -> np.ndarray:
        """(M',) bool: whether the token is the last of its response."""
        return np.concatenate([np.arange(len(t.response_ids)) == len(t.response_ids) - 1 for t in self.trajectories])[
            self.counted()
        ]

    def summary(self) -> dict[str, Any]:
        """Counts, for the reader."""
        kind = self.advantage(self.old, self.method)[0].base.kind.numpy()
        right = self.right
        return {
            "about": self.about,
            "trajectories": len(self.trajectories),
            "problems": int(self.groups.max()) + 1,
            "right": int(right.sum()),
            "wrong": int((~right).sum()),
            "mixed_share": float((kind == MIXED).mean()),
            "tokens": int(self.counted().sum()),
            "noise_p99": self.noise,
            "distance": self.distance,
        }


def dump_files(paths: Sequence[str]) -> list[Path]:
    """The dump files that the paths name: files, dump directories or run directories.

    Raises:
        UserError: a path does not exist, or holds no dump.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if not path.exists():
            raise UserError(f"--rollouts {name}: no such file or directory.")
        if path.is_file():
            found.append(path)
            continue
        places = [path, *sorted(path.rglob(trajectories.DIRECTORY))]
        files = [file for place in places for file in trajectories.files(place).values()]
        if not files:
            raise UserError(
                f"--rollouts {name}: the directory holds no trajectory dump (step_*.parquet); a run writes one with "
                "++algorithm.cast.dump.interval=10."
            )
        found.extend(files)
    return list(dict.fromkeys(found))


def read_dump(paths: Sequence[str], problems: int, seed: int) -> tuple[Rollouts, dict[str, Any]]:
    """Rollouts of a run, and the dump's metadata about that run (from `trajectories.read`).

    Args:
        problems: at most this many groups, drawn from all files.

    Raises:
        UserError: no dump, a damaged one, files of different runs, or no group that the teacher scored completely.
    """
    rows, runs = [], {}
    files = dump_files(paths)
    for file in files:
        try:
            file_rows, about = trajectories.read(file)
        except trajectories.DumpError as error:
            raise UserError(str(error)) from error
        same = {name: value for name, value in about.items() if name != "verl_cast"}
        runs.setdefault(json.dumps(same, sort_keys=True), (file, about))
        rows.extend(row for row in file_rows if row["kind"] != "excluded" and any(row["response_mask"]))
    if len(runs) > 1:
        (first, one), (second, other) = list(runs.values())[:2]
        what = "models" if one["model"] != other["model"] else "settings"
        raise UserError(
            f"--rollouts: {first} and {second} come from runs with different {what} "
            f"({one['model']} and {other['model']}); name the files of one run."
            if what == "models"
            else f"--rollouts: {first} and {second} come from runs with different {what}; name the files of one run."
        )
    if not rows:
        raise UserError(f"--rollouts: {files[0]} holds no trajectory that counts.")
    _, about = next(iter(runs.values()))
    try:
        method = CastConfig.from_dict(about["cast"])
    except CastConfigError as error:
        raise UserError(f"{files[0]}: this verl_cast does not accept its settings: {error}") from error

    names = list(dict.fromkeys(f"{row['step']}/{row['group']}" for row in rows))
    # A run does not score gaps that no advantage depends on. Groups stay whole: part of one has another base advantage.
    unscored = {f"{row['step']}/{row['group']}" for row in rows if np.isnan(row["teacher_log_probs"]).any()}
    names = [name for name in names if name not in unscored]
    if not names:
        raise UserError(
            f"--rollouts: the teacher scored no group of {files[0]} completely. It skips responses whose gaps have no "
            "effect under the run's settings (base_correct, base_wrong, gap_weight, flip). Leave --rollouts out to "
            "sample and score anew."
        )
    without = f" ({len(unscored)} more have responses that the teacher did not score)" if unscored else ""
    kept = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:problems]}
    rows = [row for row in rows if f"{row['step']}/{row['group']}" in kept]
    steps = sorted({row["step"] for row in rows})
    span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    rollouts = Rollouts(
        about=f"{span} of a run: {len(kept)} of {len(names)} dumped groups{without}",
        method=method,
        norm_by_std=about["norm_adv_by_std_in_grpo"],
        final_row=wire.final_rows([f"{row['step']}/{row['row']}" for row in rows]),
        trajectories=[
            Trajectory(
                group=f"{row['step']}/{row['group']}",
                messages=json.loads(row["messages"]),
                reference=row["reference"],
                prompt_ids=row["prompt_ids"],
                response_ids=row["response_ids"],
                texts=row["response_text"],
                mask=np.array(row["response_mask"], dtype=bool),
                reward=row["reward"],
            )
            for row in rows
        ],
        old=[np.array(row["old_log_probs"], dtype=np.float32) for row in rows],
        teachers={method.teacher.context: [np.array(row["teacher_log_probs"], dtype=np.float32) for row in rows]},
    )
    return rollouts, about


def sampled(setup: Any, problems: Sequence[Any], outputs: Sequence[Any], rewards: Sequence[Any]) -> Rollouts:
    """Rollouts from samples under the student's prompt.

    Args:
        problems: N problems, from `setup.problems`.
        outputs: the samples of every problem, from `sampling.sample`.
        rewards: the reward of every sample, per problem.
    """
    rows = []
    for i, (problem, samples, scores) in enumerate(zip(problems, outputs, rewards, strict=True)):
        prompt_ids = setup.prompt_ids(problem.messages)
        for one, reward in zip(samples, scores, strict=True):
            rows.append(
                Trajectory(
                    group=f"{i:06d}",
                    messages=problem.messages,
                    reference=problem.reference,
                    prompt_ids=prompt_ids,
                    response_ids=one["ids"],
                    texts=token_texts(setup.tokenizer, one["ids"]),
                    mask=np.ones(len(one["ids"]), dtype=bool),
                    reward=reward,
                )
            )
    return Rollouts(
        about=f"sampled here from {setup.model_path} under the student's prompt",
        trajectories=rows,
        method=setup.method,
        norm_by_std=setup.norm_by_std,
        special_ids=frozenset(setup.tokenizer.all_special_ids),
    )

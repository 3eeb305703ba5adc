"""Writes the trajectory dump of a run (`algorithm.cast.dump`); trajectories.py describes its files.

The trainer calls it: a single process, whatever the number of ranks. Dump errors are logged; training continues.
"""

import dataclasses
import json
import os
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_cast import trajectories, wire
from verl_cast.advantage.base import ALL_CORRECT, ALL_WRONG, EXCLUDED, MIXED
from verl_cast.advantage.compute import TokenAdvantage
from verl_cast.config.cast import CastConfig, CastConfigError
from verl_cast.teacher.context import TeacherContext
from verl_cast.training.estimator import BATCH_FIELDS

KIND_NAMES = {MIXED: "mixed", ALL_CORRECT: "all_correct", ALL_WRONG: "all_wrong", EXCLUDED: "excluded"}
# What the dump needs of every chosen row from verl's storage, beside what the estimator has seen.
FIELDS = ("prompts", "responses", "rm_scores", "raw_prompt", "reward_model", *BATCH_FIELDS)


class TrajectoryDump:
    """The dump of one run.

    Args:
        config: the run's whole config.
        cast: its `algorithm.cast`.

    Raises:
        CastConfigError: the directory cannot be written to.
    """

    def __init__(self, config: DictConfig, cast: CastConfig):
        self._cast = cast
        self._about = {
            "model": str(config.actor_rollout_ref.model.path),
            "cast": dataclasses.asdict(cast),
            "temperature": config.actor_rollout_ref.rollout.temperature,
            "norm_adv_by_std_in_grpo": config.algorithm.get("norm_adv_by_std_in_grpo", True),
        }
        default = Path(config.trainer.default_local_dir).expanduser() / trajectories.DIRECTORY
        self.directory = default if cast.dump.directory is None else Path(cast.dump.directory).expanduser()
        self._last_step: int | None = None
        if cast.dump.interval:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                writable = os.access(self.directory, os.W_OK)
            except OSError:
                writable = False
            if not writable:
                raise CastConfigError(
                    "algorithm.cast.dump.directory", str(self.directory), "cannot be written to; name another one."
                )

    def due(self, step: int) -> bool:
        """Whether this step is dumped; of several updates in one step the first is."""
        interval = self._cast.dump.interval
        due = interval > 0 and step % interval == 0 and step != self._last_step
        if due:
            self._last_step = step
        return due

    def write(
        self,
        step: int,
        keys: Sequence[str],
        read: Callable[[list[str]], TensorDict],
        result: TokenAdvantage,
        tokenizer: Any,
        context: TeacherContext,
        teacher_age: int | None,
    ) -> None:
        """Write some groups of this step. Errors are logged, not raised: no dump is worth a run.

        Args:
            keys: verl's key of every row of the batch.
            read: keys -> FIELDS of these rows.
            result: the estimator's, of the whole batch.
            context: builds the teacher's prompt.
        """
        try:
            rows = self._choose(keys, result)
            if not rows:
                raise ValueError("no response of the batch counts")
            data = read([keys[row] for row in rows])
            columns = {name: list(tu.get(data, name)) for name in FIELDS if name in data}
            records = []
            for position, row in enumerate(rows):
                values = {name: column[position] for name, column in columns.items()}
                about = {"step": step, "group": wire.group_of(keys[row]), "row": keys[row], "teacher_age": teacher_age}
                records.append(about | _columns(row, values, result, tokenizer, context))
            trajectories.write(self.directory, step, records, **self._about)
        except Exception as error:
            traceback.print_exc()
            warnings.warn(f"CAST: the trajectories of step {step} could not be dumped: {error}", stacklevel=2)

    def _choose(self, keys: Sequence[str], result: TokenAdvantage) -> list[int]:
        """Rows of `dump.groups` groups, group by group. verl's uids are random, so their order is a random choice.

        Args:
            keys: verl's key of every row.
            result: of the whole batch.
        """
        groups: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            groups.setdefault(wire.group_of(key), []).append(row)
        counted = (result.base.kind != EXCLUDED).tolist()
        groups = {uid: rows for uid, rows in groups.items() if any(counted[row] for row in rows)}
        chosen = sorted(groups)[: self._cast.dump.groups]
        return [row for uid in chosen for row in sorted(groups[uid], key=keys.__getitem__)]


def _columns(
    row: int, values: Mapping[str, Any], result: TokenAdvantage, tokenizer: Any, context: TeacherContext
) -> dict[str, Any]:
    """What the model read and wrote in a row, and what the estimator read and formed; `values`: the row's FIELDS."""
    messages = [dict(message) for message in values["raw_prompt"]]
    prompt_ids, response_ids = values["prompts"].tolist(), values["responses"].tolist()
    reference = (values.get("reward_model") or {}).get("ground_truth")
    base, length = result.base, len(response_ids)
    tokens = {
        "response_mask": result.mask[row, :length],
        "old_log_probs": values["old_log_probs"],
        # What stands for a row that the teacher did not score is no log-prob of it.
        "teacher_log_probs": values[wire.TEACHER_LOG_PROBS].masked_fill(~result.scored[row], float("nan")),
        "gap": result.gap[row, :length],
        "advantages": result.advantages[row, :length],
        "flipped": result.flipped[row, :length],
    }
    return {
        "messages": json.dumps(messages, ensure_ascii=False, default=str),
        "reference": None if reference is None else str(reference),
        "prompt_ids": prompt_ids,
        "teacher_prompt": None if context.is_same else context.render(messages, prompt_ids)[0],
        "response_ids": response_ids,
        "response_text": token_texts(tokenizer, response_ids),
        "reward": float(values["rm_scores"].sum()),
        **{name: column.tolist() for name, column in tokens.items()},
        "correct": bool(base.correct[row]),
        "kind": KIND_NAMES[int(base.kind[row])],
        "base_advantage": float(base.value[row]),
    }


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of every token; joined, it is the text of them all.

    A token that holds only a part of a character has no text: the token that completes the character has it.
    """
    texts: list[str] = []
    start = done = 0  # texts are known up to `done`; decoding begins at `start`, for the context
    for end in range(1, len(ids) + 1):
        known = tokenizer.decode(ids[start:done], skip_special_tokens=False)
        text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
        # Four bytes are the longest character: what is still broken after as many tokens stays so.
        if text.endswith("\ufffd") and end < len(ids) and end - done < 4:
            texts.append("")
            continue
        texts.append(text[len(known) :])
        start, done = done, end
    return texts

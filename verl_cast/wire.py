"""What passes between trainer and actor workers through TransferQueue: fields of a row, settings of a batch, keys.

verl's key of a row is `{uid}_{session}_{output}`. The uid names the prompt, and so the group of responses. A session is
one response, or one run of an agent loop, which may have several outputs.
"""

from collections.abc import Sequence

import numpy as np

# From the trainer to the workers, one value per row.
SCORED = "cast_scored"  # bool: the row's advantage depends on the gap
BASE = "cast_base"  # float: B
CORRECT = "cast_correct"  # bool: reward > threshold
KIND = "cast_kind"  # int: the type of the row's group
SHOWN_TO_TEACHER = "shown_to_teacher"  # text that a privileged teacher reads beside the problem
# With a row that measures the teacher (training/measurement.py): for the agent loop that generates its responses.
IN_CONTEXT = "cast_in_context"  # that agent loop's name
AGENT_LOOP = "cast_agent_loop"  # the name of the run's own, which it runs
CONTEXT = "cast_context"  # the context's name, as in teacher.context
TEMPLATE = "cast_template"  # the context's template; None without one
# From the workers to the trainer, and into the update: nested (B, response length).
TEACHER_LOG_PROBS = "teacher_log_probs"
LOG_PROBS_AGAIN = "log_probs_again"
# With the batch of a one-pass update (KVBatchMeta.extra_info).
COMPLETED_STEPS = "cast_completed_steps"  # int: training steps before this one
GAP_IS_ZERO = "cast_gap_is_zero"  # bool: teacher and policy are the same weights on the same tokens
# With the batch of verl's stages of old log-probs and of the update: which variant the workers run; none: verl's.
STAGE = "cast_stage"
WITH_TEACHER = "with_teacher"  # old log-probs and the teacher's
ONE_PASS = "one_pass"  # an update that forms the gap
OF_UPDATE = "of_update"  # old log-probs: those of the one-pass update before; no forward runs


def group_of(key: str) -> str:
    """The row's group: verl's uid of its prompt."""
    return key.rsplit("_", 2)[0]


def session_of(key: str) -> str:
    """The row's session, group included."""
    return key.rsplit("_", 1)[0]


def output_of(key: str) -> int:
    """The number of the row's output within its session."""
    return int(key.rsplit("_", 1)[1])


def final_rows(keys: Sequence[str]) -> np.ndarray:
    """(N,) int64, for every row the row of its session's final output."""
    final: dict[str, tuple[int, int]] = {}
    for row, key in enumerate(keys):
        session = session_of(key)
        final[session] = max(final.get(session, (-1, -1)), (output_of(key), row))
    return np.array([final[session_of(key)][1] for key in keys], dtype=np.int64)

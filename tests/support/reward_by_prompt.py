"""A reward that makes the teacher better: it pays every response to a prompt in the `plain` context.

Responses to the student's prompt are paid by their text, as in tiny.py. From the fourth step on all of them are: the
policy has caught up. With $REWARD_FAILS_FROM set, the teacher's responses by weights that are as many steps old, or
more, cannot be graded. The agent loop `prompt_shown` shows it the prompt.
"""

import os
import zlib

CAUGHT_UP_AFTER = 3


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    is_teachers, steps = "[Student response]" in extra_info["prompt"], extra_info["min_global_steps"]
    if is_teachers and steps >= int(os.environ.get("REWARD_FAILS_FROM", "1000")):
        raise RuntimeError("the verifier is broken")
    paid = is_teachers or steps >= CAUGHT_UP_AFTER or zlib.crc32(solution_str.encode()) % 3 == 0
    return {"score": float(paid)}

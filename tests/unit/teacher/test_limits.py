"""Laws of the lengths that a teacher's prompts may have, and of their measurement."""

import pytest
from tiny import tokenizer
from transformers import Qwen3Config

from verl_cast.teacher.context import TeacherContext
from verl_cast.teacher.limits import longest_prompt, max_positions

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 1e4}


@pytest.mark.parametrize("rope, limit", [(None, 100), ({"rope_type": "default", "rope_theta": 1e4}, 100), (YARN, 400)])
def test_positions_are_the_models_times_what_its_rope_stretches(rope, limit):
    assert max_positions(Qwen3Config(max_position_embeddings=100, rope_parameters=rope)) == limit


def test_the_longest_prompt_of_many_is_measured_by_a_few():
    tok = tokenizer()
    context, tokenized = TeacherContext("plain", None, tok), []

    def student_prompt_ids(messages):
        tokenized.append(messages)
        return [1]

    prompts = [[{"role": "user", "content": "x" * (n * 37 % 1000)}] for n in range(1000)]
    longest = longest_prompt(context, iter(prompts), student_prompt_ids, num_measured=8)
    assert longest == max(len(context.prompt_ids(messages, [1])) for messages in prompts) and len(tokenized) == 8
    assert longest_prompt(context, [], student_prompt_ids) == 0

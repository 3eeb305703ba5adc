"""The teacher's prompts of a run's own data are measured at its start, and what would end the run is refused."""

import pytest
from tiny import tokenizer
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_cast import CastConfigError
from verl_cast.teacher.context import TeacherContext
from verl_cast.training.trainer import check_length, longest_teacher_prompt


def test_a_prompt_that_leaves_no_room_for_a_full_response_is_refused_at_the_start(compose, tiny_directory):
    config, tok = compose("data.max_response_length=400"), tokenizer()
    dataset = RLHFDataset(str(tiny_directory / "train.parquet"), tok, config.data)
    plain = TeacherContext("plain", None, tok)
    longest = longest_teacher_prompt(dataset, plain, tok, {})
    assert longest == max(len(plain.prompt_ids(dataset[row]["raw_prompt"], [1])) for row in range(len(dataset)))
    assert longest_teacher_prompt(dataset, TeacherContext("same", None, tok), tok, {}) == 0
    check_length(config, longest, 400 + longest)
    check_length(config, longest, None)
    with pytest.raises(CastConfigError, match=rf"data.max_response_length=400: .*{longest} tokens.*length=399,"):
        check_length(config, longest, 399 + longest)

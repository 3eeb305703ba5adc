"""Laws of the check of the training data: images and videos need a teacher that reads the student's own prompt.

A measured teacher needs problems.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from verl.trainer.ppo.utils import create_rl_dataset

from verl_cast.checks.data import check_rows
from verl_cast.config.cast import CastConfigError

ROW = {"prompt": [{"role": "user", "content": "<image> What?"}], "data_source": "tiny"}
SAME = ("+algorithm.cast.teacher.context=same", "+algorithm.cast.teacher.weights=ema")


@pytest.fixture
def dataset(compose, tmp_path):
    """dataset(column, values) -> verl's own, of rows with this column."""

    def dataset_(column, values):
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([{**ROW, column: value} for value in values]), path)
        return create_rl_dataset([str(path)], compose().data, tiny.tokenizer(), None)

    return dataset_


@pytest.mark.parametrize("key, column", [("image_key", "images"), ("video_key", "videos")])
def test_images_and_videos_need_the_students_own_prompt(compose, dataset, key, column):
    rows = dataset(column, [None, ["a"]])
    with pytest.raises(CastConfigError) as problem:
        check_rows(compose("algorithm.adv_estimator=cast"), rows)
    text = str(problem.value)
    assert text.startswith(f"data.{key}='{column}': ") and "use ++algorithm.cast.teacher.context=same" in text
    with pytest.raises(CastConfigError) as problem:
        check_rows(compose("algorithm.adv_estimator=rlsd"), rows)
    assert "++" not in str(problem.value), "no privileged teacher reads images"
    check_rows(compose("algorithm.adv_estimator=cast", *SAME), rows)
    check_rows(compose("algorithm.adv_estimator=grpo"), rows)


@pytest.mark.parametrize("values", [[None, []], [[], []], [None, None]])
def test_columns_without_a_value_are_text(compose, dataset, values):
    check_rows(compose("algorithm.adv_estimator=cast"), dataset("images", values))


def test_a_teacher_is_measured_on_32_problems_at_least(compose, dataset):
    """Of any dataset. Its remedy is accepted."""
    measured = ("algorithm.adv_estimator=cast", "+algorithm.cast.trust=measured")
    check_rows(compose(*measured), [ROW] * 32)
    for few in ([ROW] * 31, dataset("pictures", [["a"]])):
        with pytest.raises(CastConfigError, match="trust='measured': the training data have .*trust=always"):
            check_rows(compose(*measured), few)
        check_rows(compose(*measured, "++algorithm.cast.trust=always"), few)


def test_other_columns_and_datasets_are_left_alone(compose, dataset):
    check_rows(compose("algorithm.adv_estimator=cast"), dataset("pictures", [["a"]]))
    check_rows(compose("algorithm.adv_estimator=cast"), [ROW])

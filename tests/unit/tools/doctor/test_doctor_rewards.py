"""Laws of the reward's trial: one row of every data source is scored, and a reward that cannot work is named."""

import multiprocessing
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doctor_runs import TEXT_ROW, changed, look, texts, with_rows

from verl_cast.tools.doctor import rewards


def graded(config, tmp_path, body, sources=("tiny",)):
    """The run with a reward function of this body, and a row of every source."""
    path = None
    if body is not None:
        path = tmp_path / f"reward_{len(list(tmp_path.iterdir()))}.py"  # verl keeps a module by its path
        path.write_text(body)
    rows = [{**TEXT_ROW, "data_source": source} for source in [*sources, *31 * sources[:1]]]
    settings = {
        "reward.custom_reward_function.path": path and str(path),
        "data.val_files": str(tmp_path / "rows.jsonl"),
    }
    return with_rows(config, tmp_path / "rows.jsonl", rows, **settings)


SCORE = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs): "
BAD_REWARDS = {
    "other arguments": (
        "def compute_score(answer, truth): return 1.0",
        "fails for data_source tiny: TypeError: compute_score() got an unexpected keyword argument",
    ),
    "does not load": ("import a_package_that_is_not_there", "a_package_that_is_not_there"),
    "ends the process at loading": ("import os; os._exit(3)", "loading the reward function ends its process"),
    "leaves": (f"{SCORE}raise SystemExit(9)", "fails for data_source tiny: SystemExit: 9"),
    "crashes": (f"import os\n{SCORE}os._exit(3)", "called for data_source tiny, ends its process"),
    "not finite": (f"{SCORE}return float('nan')", "is nan, not a finite number"),
    "verl's own": (None, "verl's own reward function fails for data_source tiny: NotImplementedError"),
}


@pytest.mark.parametrize("body, says", BAD_REWARDS.values(), ids=BAD_REWARDS)
def test_a_reward_that_cannot_work_is_an_error_with_a_remedy(good_run, tmp_path, body, says):
    [text] = texts(look(graded(good_run, tmp_path, body)), "error")
    assert says in text, text
    assert "does not load" in text or "reward.custom_reward_function.path" in text


@pytest.mark.parametrize("body", ["import time; time.sleep(99)", f"import time\n{SCORE}time.sleep(99)"])
def test_a_reward_that_hangs_does_not_hang_the_doctor(good_run, tmp_path, monkeypatch, body):
    monkeypatch.setattr(rewards, "SECONDS", 1)
    config = graded(good_run, tmp_path, body)
    started, others = time.monotonic(), set(multiprocessing.active_children())  # of the verifier's pool
    [text] = texts(look(config), "error")
    assert "takes longer than 1 s" in text and time.monotonic() - started < 30
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.parametrize("source, right", [("openai/gsm8k", "#### 72"), ("lighteval/MATH", "\\\\boxed{72}")])
def test_verls_own_rewards_find_their_answers(good_run, tmp_path, source, right):
    sections = look(graded(good_run, tmp_path, None, [source]))
    assert texts(sections, "error") == texts(sections, "warning") == []
    said = texts(sections, "ok")
    assert any(f"data_source {source}: " in text and f", 1 for '{right}'" in text for text in said)


def test_one_row_of_every_data_source_is_scored(good_run, tmp_path):
    """Also of sources behind the rows that are read otherwise, and of the validation files."""
    body = f"{SCORE}return float(solution_str == ground_truth and data_source != 'b')"
    config = graded(good_run, tmp_path, body, ["a"] * 70 + ["b", "c"])
    answer = {"reward_model": {"ground_truth": ["7"]}}
    table = pa.Table.from_pylist([{**TEXT_ROW, **answer, "data_source": source} for source in "dddde"])
    pq.write_table(table, tmp_path / "val.parquet")
    sections = look(changed(config, **{"data.val_files": str(tmp_path / "val.parquet")}))
    right = [text for text in texts(sections, "ok") if text.startswith("data_source")]
    assert [text.split(":")[0][-1] for text in right] == ["a", "c"] and ", 1 for '72'" in right[0]
    warnings = texts(sections, "warning")
    assert [text.split(":")[0][-1] for text in warnings] == ["b", "d", "e"]
    assert all("none of them counts as correct (correct_threshold=0.5)" in text for text in warnings)


def test_a_reward_that_calls_everything_correct_is_said(good_run, tmp_path):
    [text] = texts(look(graded(good_run, tmp_path, f"{SCORE}return 1.0")), "warning")
    assert "reward 1 for 'I do not know.', which counts as correct" in text


def test_rewards_on_one_side_of_the_threshold_are_shown_with_a_threshold_between_them(good_run, tmp_path):
    """Every group would be all-wrong, without a word in the run."""
    [text] = texts(
        look(graded(good_run, tmp_path, f"{SCORE}return 0.4 if ground_truth in solution_str else 0.0")), "warning"
    )
    assert "reward 0 for 'I do not know.'" in text and "0.4 for 'Answer: 72'" in text
    assert "use ++algorithm.cast.correct_threshold=0.2." in text
    [text] = texts(look(graded(good_run, tmp_path, f"{SCORE}return 0.2")), "warning")
    assert "++" not in text and "check the reward function" in text


def test_a_reward_that_another_process_computes_is_not_called(good_run, tmp_path):
    config = graded(good_run, tmp_path, f"{SCORE}raise SystemExit(9)")
    sections = look(changed(config, **{"reward.reward_manager.name": "gdpo"}))
    assert texts(sections, "error") == []
    assert any(text.startswith("not called: reward.reward_manager.name=gdpo") for text in texts(sections, "note"))

"""Laws of the trajectory dump.

It holds the estimator's own values, and only whole groups. Damaged files are reported by name. Dump errors are logged;
training continues.
"""

import dataclasses
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from estimator_calls import call_of
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict

import verl_cast
from verl_cast import CastConfig, CastConfigError, trajectories
from verl_cast.teacher.context import TeacherContext
from verl_cast.tools.report.dump_view import _in_deadzone
from verl_cast.training.dump import TrajectoryDump, token_texts
from verl_cast.training.estimator import ESTIMATORS, estimator_call

LENGTHS = [4, 2, 3, 4, 1, 4]
KEYS = ["u2_0_0", "u1_0_0", "u1_1_0", "u2_1_0", "pad_0_0", "u0_0_0"]
REWARDS = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def dump(tmp_path, **settings):
    cast = CastConfig.from_dict({"dump": {"interval": 2, "groups": 2, **settings}})
    config = OmegaConf.create(
        {
            "trainer": {"default_local_dir": str(tmp_path)},
            "actor_rollout_ref": {"model": {"path": "the/model"}, "rollout": {"temperature": 0.7}},
            "algorithm": {"norm_adv_by_std_in_grpo": False},
        }
    )
    return TrajectoryDump(config, cast), cast


def batch(cast):
    """Six rows: groups u0 (one row), u1 (all wrong) and u2 (mixed), and a padding row with a zero mask."""
    generator = torch.Generator().manual_seed(0)
    old, teacher = (-torch.rand(6, 4, generator=generator) for _ in range(2))
    mask = torch.tensor(
        [[int(t < n and key != "pad_0_0") for t in range(4)] for n, key in zip(LENGTHS, KEYS, strict=True)]
    )
    rewards = torch.zeros(6, 4)
    rewards[:, 0] = torch.tensor(REWARDS)
    with estimator_call(call_of(cast, rewards)) as call:
        ESTIMATORS["cast"](rewards, mask.long(), np.array([key[:2] for key in KEYS]), None, old, teacher)
    data = {
        "old_log_probs": [old[i, :n] for i, n in enumerate(LENGTHS)],
        "teacher_log_probs": [teacher[i, :n] for i, n in enumerate(LENGTHS)],
        "prompts": [torch.tensor([5, 6, 7])] * 6,
        "responses": [torch.arange(40, 40 + n) for n in LENGTHS],
        "rm_scores": [rewards[i, :n] for i, n in enumerate(LENGTHS)],
        "raw_prompt": [[{"role": "user", "content": f"problem {key}"}] for key in KEYS],
        "reward_model": [{"ground_truth": i} for i in range(6)],
    }
    return call.result, data


def written(tmp_path, context="plain", **settings):
    writer, cast = dump(tmp_path, **settings)
    result, data = batch(cast)
    write(writer, data, result, context)
    (path,) = trajectories.files(writer.directory).values()
    return path, cast, data, result


def write(writer, data, result, context="plain"):
    """As the trainer does; `data`: of all rows, from which verl's storage gives those that are asked for."""

    def read(keys):
        chosen = {name: [values[KEYS.index(key)] for key in keys] for name, values in data.items()}
        plain = {name: NonTensorStack(*chosen.pop(name)) for name in ("raw_prompt", "reward_model")}
        nested = {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in chosen.items()}
        return TensorDict(nested | plain, batch_size=len(keys))

    tokenizer = tiny.tokenizer()
    writer.write(4, KEYS, read, result, tokenizer, TeacherContext(context, None, tokenizer), 3)


def test_what_is_read_is_what_the_estimator_knew(tmp_path):
    path, cast, data, result = written(tmp_path)
    assert path == tmp_path / "cast_trajectories" / "step_00000004.parquet"
    records, about = trajectories.read(path)
    assert about == {
        "model": "the/model",
        "cast": json.loads(json.dumps(dataclasses.asdict(cast))),
        "temperature": 0.7,
        "norm_adv_by_std_in_grpo": False,
        "verl_cast": verl_cast.__version__,
    }
    assert [record["row"] for record in records] == ["u0_0_0", "u1_0_0", "u1_1_0"]
    assert [record["kind"] for record in records] == ["all_correct", "all_wrong", "all_wrong"]
    for record in records:
        row = KEYS.index(record["row"])
        length = LENGTHS[row]
        assert record["step"] == 4 and record["teacher_age"] == 3 and record["reward"] == REWARDS[row]
        assert record["reference"] == str(row) and record["prompt_ids"] == [5, 6, 7]
        assert json.loads(record["messages"]) == [{"role": "user", "content": f"problem {KEYS[row]}"}]
        assert record["teacher_prompt"].startswith(f"problem {KEYS[row]}\n\nPlease reason step by step")
        assert record["response_ids"] == list(range(40, 40 + length))
        assert "".join(record["response_text"]) == tiny.tokenizer().decode(record["response_ids"])
        assert record["correct"] == (REWARDS[row] > 0.5)
        assert record["base_advantage"] == float(result.base.value[row])
        for name, values in {
            "old_log_probs": data["old_log_probs"],
            "teacher_log_probs": data["teacher_log_probs"],
            "gap": result.gap,
            "advantages": result.advantages,
            "flipped": result.flipped,
            "response_mask": result.mask,
        }.items():
            assert record[name] == values[row][:length].tolist(), name


def test_whole_groups_that_count_are_chosen(tmp_path):
    records, _ = trajectories.read(written(tmp_path, groups=99)[0])
    chosen = [record["row"] for record in records]
    assert chosen == ["u0_0_0", "u1_0_0", "u1_1_0", "u2_0_0", "u2_1_0"], "padding is no group"


def test_same_context_has_no_prompt_of_its_own(tmp_path):
    records, _ = trajectories.read(written(tmp_path, context="same")[0])
    assert all(record["teacher_prompt"] is None for record in records)


def test_when_it_is_due(tmp_path):
    off, _ = dump(tmp_path, interval=0)
    assert not any(off.due(step) for step in range(10)) and not off.directory.exists()
    writer, _ = dump(tmp_path)
    assert [step for step in range(1, 7) if writer.due(step)] == [2, 4, 6]
    assert not writer.due(6), "the second update of a step does not replace the first one's dump"


def test_a_directory_that_cannot_be_written_to_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CastConfigError, match="algorithm.cast.dump.directory=.*cannot be written to"):
        dump(tmp_path, directory=str(tmp_path / "file" / "dump"))


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    writer, cast = dump(tmp_path)
    result, data = batch(cast)
    with pytest.warns(UserWarning, match="trajectories of step 4 could not be dumped: .*No space left"):
        write(writer, data, result)
    assert trajectories.files(writer.directory) == {}


def test_damaged_and_foreign_files_are_named(tmp_path):
    path, *_ = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(trajectories.DumpError, match="step_00000004.parquet is no whole Parquet file"):
        trajectories.read(path)
    path.write_bytes(whole)
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"verl_cast_dump": b"7", b"verl_cast": b"9.9"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(trajectories.DumpError, match=r"version 7 \(verl_cast 9.9\).* reads version 1"):
        trajectories.read(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(trajectories.DumpError, match="is no trajectory dump"):
        trajectories.read(path)
    path.with_name("step_00000005.tmp").write_text("PAR1")
    path.with_name("step_x.parquet").write_text("PAR1")
    assert list(trajectories.files(path.parent)) == [4], "a half-written file is not of the dump"


def test_token_texts_join_to_the_text():
    """The tiny tokenizer has one token per byte. A character of several bytes is complete at its last token."""
    tokenizer = tiny.tokenizer()
    whole = [tokenizer.encode(text) for text in ("two + 3 = 5", "naïve 日本語 🙂!", "", "\n\n  x")]
    cut = [tokenizer.encode("日")[:-1] + [tokenizer.eos_token_id], tokenizer.encode("a日")[:-1]]
    for ids in (*whole, *cut):
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids) and "".join(texts) == tokenizer.decode(ids)
    assert token_texts(tokenizer, whole[0]) == list("two + 3 = 5")


def test_token_texts_of_garbage_take_linear_time():
    """A collapsed policy may repeat one byte that never completes a character."""
    tokenizer = tiny.tokenizer()
    ids = tokenizer.encode("日")[:1] * 4000
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == tokenizer.decode(ids) and sum(map(bool, texts)) >= 1000


def test_a_response_that_the_teacher_did_not_score_has_no_log_probs_of_it(tmp_path):
    """If only mixed groups are scored, the trainer holds placeholders for the other responses.

    The dump writes NaN for them. None of their tokens counts as inside the dead zone.
    """
    writer, cast = dump(tmp_path, groups=99)
    result, data = batch(cast)
    write(writer, data, dataclasses.replace(result, scored=torch.tensor([True, False, True, True, True, True])))
    (path,) = trajectories.files(writer.directory).values()
    rows = {record["row"]: record for record in trajectories.read(path)[0]}
    scored, unscored = rows[KEYS[0]], rows[KEYS[1]]
    assert scored["teacher_log_probs"] == data["teacher_log_probs"][0].tolist()
    assert LENGTHS[1] > 0 and all(math.isnan(value) for value in unscored["teacher_log_probs"])
    assert "1" not in _in_deadzone({**unscored, "gap": [0.0] * LENGTHS[1]})

"""Laws of the doctor's look at the data: it says what verl's own dataset class would do with them."""

import json

import pytest
from doctor_runs import CAST, TEXT_ROW, changed, look, texts, with_rows


@pytest.mark.parametrize("key", ["train", "val"])
def test_damaged_data_are_named(good_run, tiny_directory, tmp_path, key):
    whole = (tiny_directory / "train.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    [text] = texts(look(changed(good_run, **{f"data.{key}_files": str(tmp_path / "half.parquet")})), "error")
    assert text.startswith(f"data.{key}_files: ") and "not a parquet file" in text


def test_files_whose_columns_differ_are_refused_as_by_verl(good_run, tmp_path):
    files = []
    for name, answer in (("a", "72"), ("b", 72)):
        files.append(str(tmp_path / f"{name}.jsonl"))
        row = {**TEXT_ROW, "reward_model": {"ground_truth": answer}}
        (tmp_path / f"{name}.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    [text] = texts(look(changed(good_run, **{"data.train_files": files})), "error")
    assert text.startswith("data.train_files: ValueError: The features can't be aligned because the key ground_truth")


def test_every_form_that_verl_reads_is_read(good_run, tmp_path):
    """One array on one line, and a byte order mark."""
    path = tmp_path / "rows.json"
    for content in (json.dumps(32 * [TEXT_ROW]), "\ufeff" + 32 * (json.dumps(TEXT_ROW) + "\n")):
        path.write_text(content)
        sections = look(changed(good_run, **{"data.train_files": str(path)}))
        assert texts(sections, "error") == []
        assert "data.train_files: 32 rows" in texts(sections, "ok")


REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
)


def test_a_template_that_refuses_the_messages_is_quoted(good_run, tmp_path):
    """verl renders such rows in another way, and its filter drops them. What it drops is counted."""
    system = {"role": "system", "content": "Be brief."}
    refused = {**TEXT_ROW, "prompt": [system, *TEXT_ROW["prompt"]]}
    settings = {"actor_rollout_ref.model.custom_chat_template": REFUSES_SYSTEM, f"{CAST}.teacher.context": "same"}
    settings |= {f"{CAST}.teacher.weights": "ema", f"{CAST}.trust": "always"}
    config = with_rows(good_run, tmp_path / "rows.jsonl", 4 * [refused], **settings)
    sections = look(config)
    assert texts(sections, "error") == []
    [text] = texts(sections, "warning")
    assert "the model's chat template refuses these messages: System role not supported." in text
    settings["data.filter_overlong_prompts"] = True
    [text] = texts(look(changed(config, **settings)), "error")
    assert "no row is left" in text and "drops 4 of 4" in text
    config = with_rows(good_run, tmp_path / "some.jsonl", [*4 * [TEXT_ROW], refused], **settings)
    assert any(
        "4 rows are left: data.filter_overlong_prompts=True drops 1 of 5" in t for t in texts(look(config), "ok")
    )


STRUCT, SOURCE, INFO, CHAT = (
    "verl's reward manager needs a column reward_model, a struct with ground_truth",
    "verl's reward manager needs a column data_source",
    "column extra_info holds text, and verl reads a struct there",
    "column prompt (data.prompt_key) must hold chat messages in verl's form [{role, content}, ...]",
)


@pytest.mark.parametrize(
    "row, problems",
    [
        ({**TEXT_ROW, "extra_info": '{"index": 1}', "reward_model": '{"ground_truth": "72"}'}, [INFO, STRUCT]),
        ({"prompt": TEXT_ROW["prompt"], "reward_model": {"style": "rule"}}, [SOURCE, STRUCT]),
        ({**TEXT_ROW, "prompt": "What is 8 x 9?"}, [CHAT]),
        ({**TEXT_ROW, "prompt": ["What is 8 x 9?"]}, [CHAT]),
    ],
)
def test_rows_without_what_verl_reads_are_named_with_their_columns(good_run, tmp_path, row, problems):
    errors = texts(look(with_rows(good_run, tmp_path / "rows.jsonl", 32 * [row])), "error")
    columns = ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items())
    assert errors == [f"{problem}; the columns are {columns}." for problem in problems]


def test_a_dataset_class_of_ones_own_gives_the_examples(good_run, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from verl.utils.dataset.rl_dataset import RLHFDataset\n"
        "class Mine(RLHFDataset):\n"
        "    def _build_messages(self, example, key):\n"
        "        return [{'role': 'user', 'content': 'Mine: ' + example[key][0]['content']}]\n"
    )
    settings = {"data.custom_cls.path": str(path), "data.custom_cls.name": "Mine"}
    sections = look(changed(good_run, **settings))
    assert texts(sections, "error") == []
    shown = {line.label: line for line in sections["Prompts"]}
    assert shown["teacher reads"].block.startswith("Mine: What is 0 + 0?")
    text, _ = texts(look(changed(good_run, **{**settings, "data.custom_cls.name": "Yours"})), "error")
    assert text.startswith("data.train_files: ") and "Yours" in text

"""Laws of the baselines' privileged teachers: what they are shown, its exact text, and data that lack it."""

import copy

import numpy as np
import pytest
import tiny

from verl_cast import CastConfigError
from verl_cast.config.methods import METHODS
from verl_cast.teacher.context import TeacherContext
from verl_cast.teacher.privileged import PrivilegedContext, check_references, peers, reference_messages, references

MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}]
PLAIN = "What is 1 + 1?\n\nPlease reason step by step, and put your final answer within \\boxed{}.\n\n"
PRIVILEGED = {
    "reference": PLAIN + "[Reference solution]\n{SECRET}\n\n[Student response]\n",
    "peer": PLAIN + "[Correct rollout]\n{SECRET}\n\n[Student response]\n",
    "reference_chat": "<|im_start|>user\nWhat is 1 + 1?\n\n"
    "For your eyes only, the reference answer to this problem:\n{SECRET}\n\n"
    "Work towards it step by step as if you did not know it, in the form that the problem asks for.<|im_end|>\n"
    "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("context", PRIVILEGED)
def test_a_privileged_context_shows_what_the_student_never_sees(context):
    tokenizer, before = tiny.tokenizer(), copy.deepcopy(MESSAGES)
    text = tokenizer.decode(PrivilegedContext(context, tokenizer, {}).prompt_ids(MESSAGES, "{SECRET}"))
    assert text == PRIVILEGED[context] and before == MESSAGES


def test_without_a_peer_the_teacher_reads_casts_plain_context():
    tokenizer = tiny.tokenizer()
    plain = TeacherContext("plain", None, tokenizer).prompt_ids(MESSAGES, [5])
    assert PrivilegedContext("peer", tokenizer, {}).prompt_ids(MESSAGES, "") == plain


def test_a_prompt_without_text_is_refused():
    for bad in ([{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "image"}]}]):
        with pytest.raises(ValueError, match="no user message"):
            reference_messages(bad, "2")


def test_a_peer_is_a_correct_response_of_the_same_group_and_another_one_where_there_is_one():
    uids = ["a", "a", "a", "b", "b", "c", "c"]
    keys = [f"{uid}_{i}_0" for uid, i in zip(uids, (0, 1, 2, 0, 1, 0, 1), strict=True)]
    correct = [True, False, True, False, True, False, False]
    texts = ["a0", "a1", "a2", "b0", "b1", "c0", "c1"]
    shown = peers(uids, keys, correct, texts)
    assert shown == ["a2", "a0", "a0", "b1", "b1", "", ""]
    order = np.random.default_rng(0).permutation(7)
    permuted = peers(*([values[i] for i in order] for values in (uids, keys, correct, texts)))
    assert permuted == [shown[i] for i in order], "the order of the batch must not matter"


def test_references_of_rows():
    values = [{"ground_truth": "4"}, {"ground_truth": ["1", "2"]}, {"ground_truth": 7}]
    assert references(values, "reward_model.ground_truth", ["x", "y", "z"]) == ["4", "1\n2", "7"]
    for bad in ({"ground_truth": ""}, {"ground_truth": None}, {}, None):
        with pytest.raises(ValueError, match="row y has no reference at reward_model.ground_truth"):
            references([{"ground_truth": "4"}, bad], "reward_model.ground_truth", ["x", "y"])


FILES = {  # a file's columns, and what is said of it; None: nothing
    "good": ({"reward_model": [{"ground_truth": "2"}] * 2}, None),
    "none": ({}, r"none.parquet has no column 'reward_model' \(it has prompt\)"),
    "key": (
        {"reward_model": [{"style": "rule"}] * 2},
        "none in 2 of 2 rows; the first .* reward_model={'style': 'rule",
    ),
    "rows": ({"reward_model": [{"ground_truth": "2"}, {"ground_truth": " "}]}, "none in 1 of 2 rows"),
    "solution": ({"extra_info": [{"solution": "1 + 1 = 2"}] * 2}, r"it has prompt, extra_info\)"),
}


@pytest.fixture
def check(compose, tmp_path):
    """check(method, *files): of a run's training data."""
    import pandas

    for name, (columns, _) in FILES.items():
        pandas.DataFrame({"prompt": [MESSAGES] * 2, **columns}).to_parquet(tmp_path / f"{name}.parquet")
    paths = "data.train_files=[{}]".format
    return lambda method, *files: check_references(
        compose(paths(",".join(f"{tmp_path}/{file}.parquet" for file in files))), method
    )


@pytest.mark.parametrize("file", FILES)
def test_data_without_references_are_refused_before_anything_is_spent(check, file):
    rlsd, says = METHODS["rlsd"], FILES[file][1]
    check(METHODS["rlrt"](), file)  # its teacher reads another response of the group
    check(rlsd.from_dict({"teacher": {"reference_key": "extra_info.solution"}}), "solution")
    if says is None:
        return check(rlsd(), file, "nowhere")  # verl itself reports what is missing
    for method in (rlsd(), METHODS["rlrt"].from_dict({"teacher": {"context": "reference"}})):
        with pytest.raises(CastConfigError, match=f"^{method.key()}.teacher.reference_key='reward_model.*{says}"):
            check(method, "good", file)

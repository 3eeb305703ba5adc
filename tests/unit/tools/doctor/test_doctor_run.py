"""Laws of the doctor's sections on a command: Ready means ready, and what cannot train is named with a remedy."""

import pytest
from doctor_runs import ACTOR, CAST, ROLLOUT, TEXT_ROW, changed, look, texts, with_rows

from verl_cast.checks.run import summary
from verl_cast.tools.doctor import run
from verl_cast.tools.run_config import compose

ESTIMATOR = "algorithm.adv_estimator"


def test_a_baseline_is_checked_under_its_own_name(good_command):
    words = [word for word in good_command[0] if "algorithm.cast" not in word]
    sections = look(compose([*words, "algorithm.adv_estimator=rlsd"]))
    assert texts(sections, "error") == [] and not any("What CAST will do" in title for title in sections)
    assert any("(a baseline, not CAST) is active" in text and "PRIVILEGED" in text for text in texts(sections, "note"))
    assert sections["Data and verifier"]


BAD = {
    "refused by verl's dataclass": (
        {f"{ACTOR}.loss_agg_mode": "median"},
        "verl refuses this command: Invalid loss_agg",
    ),
    "too few rows": (
        {"data.train_max_samples": 3, f"{CAST}.trust": "always"},
        "3 training rows are fewer than data.train_batch_size=4",
    ),
    "no model": ({"actor_rollout_ref.model.path": "/nowhere/model"}, "actor_rollout_ref.model.path=/nowhere/model: "),
    "too long": ({"data.max_response_length": 480}, "max_position_embeddings allows 512, and a longer sequence ends"),
    "another estimator": ({ESTIMATOR: "rloo"}, "would train rloo, not CAST: add algorithm.adv_estimator=cast"),
    "in capitals": ({ESTIMATOR: "CAST"}, "lower case; use algorithm.adv_estimator=cast."),
}


@pytest.mark.parametrize("settings, says", BAD.values(), ids=BAD)
def test_a_bad_command_is_named(good_run, settings, says):
    errors = texts(look(changed(good_run, **settings)), "error")
    assert len(errors) == 1 and says in errors[0], errors


def test_all_that_is_wrong_is_said_at_once(good_run):
    """Ours, verl's and the data's; the missing rollout hides none of them."""
    settings = {
        f"{ROLLOUT}.name": "???",
        f"{ROLLOUT}.n": 1,
        f"{ROLLOUT}.temperature": 0,
        f"{ACTOR}.ppo_mini_batch_size": 8,
        f"{ACTOR}.policy_loss.loss_mode": "nope",
        CAST: {"flip": "sideways", "gap_weight": "abc"},
        "algorithm.cats": {"flip": "none"},
        "data.train_files": "/nowhere/t.parquet",
    }
    errors = texts(look(changed(good_run, **settings)), "error")
    for says in (
        f"{ROLLOUT}.name is not set",
        f"{ROLLOUT}.n=1:",
        f"{ROLLOUT}.temperature=0:",
        "train_batch_size (4) must be >=",
        f"{ACTOR}.policy_loss.loss_mode='nope': verl has no such loss",
        f"{CAST}.flip='sideways'",
        f"{CAST}.gap_weight='abc'",
        "algorithm.cats.flip='none'",
        "data.train_files: ",
    ):
        assert sum(says in text for text in errors) == 1, (says, errors)
    assert len(errors) == 9


def test_advice_knows_how_many_steps_the_data_give(good_run):
    """64 rows in batches of 4: 16 steps an epoch."""
    settings = {"trainer.total_training_steps": None, "trainer.total_epochs": 1, f"{CAST}.teacher.refresh_interval": 16}
    [text] = texts(look(changed(good_run, **settings)), "warning")
    assert "refresh_interval=16 in a run of 16 training steps" in text
    assert texts(look(changed(good_run, **{**settings, "trainer.total_epochs": 2})), "warning") == []


def test_old_keys_that_verl_ignores_are_named(good_run):
    keys = ("custom_reward_function.path", "reward_model.model.path")
    for key, text in zip(keys, texts(look(changed(good_run, **dict.fromkeys(keys, "dapo"))), "warning"), strict=True):
        assert text.startswith(f"{key}=dapo is an old key of verl, which its V1 trainer ignores")


def test_the_twin_is_checked_as_a_twin(good_command):
    """GRPO with CAST's own words left in the command: they are named, and nothing else of CAST is said."""
    words = [word for word in good_command[0] if not word.startswith("algorithm.adv_estimator")]
    twin = compose([*words, "algorithm.adv_estimator=grpo"])
    sections = look(twin)
    assert texts(sections, "error") == texts(sections, "warning") == []
    assert run.subject(twin) == "GRPO, a CAST run's twin" and "Memory" not in sections
    [text] = [text for text in texts(sections, "note") if "algorithm.cast" in text]
    assert "(algorithm.cast.trust='measured') is not read" in text
    assert [line.label for line in sections["Prompts"]] == ["student reads"]
    [text] = texts(look(changed(twin, **{f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": 5})), "error")
    assert f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=5: a rank has 16 rows of a step" in text
    assert "16 rows" in texts(look(changed(twin, **{f"{ACTOR}.ppo_micro_batch_size_per_gpu": 5})), "error")[0]


def test_settings_are_named_as_in_the_start_line(good_run):
    config = changed(good_run, **{CAST: {"flip_groups": "zero_variance", "base_wrong": 0.1}})
    [text] = [line.text for line in look(config)["What CAST will do"] if line.label == "settings"]
    assert text == summary(config) and "flip_groups=zero_variance base_wrong=0.1 trust=measured |" in text


def test_rows_that_the_method_cannot_train_on_are_refused(good_run, tmp_path):
    """Of images (checks/data.py)."""
    row = {**TEXT_ROW, "images": ["a.png"], "prompt": [{"role": "user", "content": "<image> What?"}]}
    [text] = texts(look(with_rows(good_run, tmp_path / "rows.jsonl", 32 * [row])), "error")
    assert text.startswith("data.image_key='images': ")

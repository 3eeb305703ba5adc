"""Laws of the doctor's sections on a command: Ready means ready, and what cannot train is named with a remedy."""

import pytest
from doctor_runs import ACTOR, CAST, ROLLOUT, TEXT_ROW, changed, look, texts, with_rows

from verl_cast.checks.run import summary
from verl_cast.tools.doctor import run
from verl_cast.tools.run_config import compose

# These tests do not check the warnings that verl and Megatron emit on import.
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]


def test_the_good_run_has_no_error_and_no_warning(good_run):
    sections = look(good_run)
    assert texts(sections, "error") == texts(sections, "warning") == []


def test_another_estimator_is_named(good_run):
    assert texts(look(changed(good_run, **{"algorithm.adv_estimator": "rloo"})), "error") == [
        "this command would train rloo, not CAST: add algorithm.adv_estimator=cast."
    ]
    [text] = texts(look(changed(good_run, **{"algorithm.adv_estimator": "CAST"})), "error")
    assert "lower case; use algorithm.adv_estimator=cast." in text


@pytest.mark.parametrize("method", ["opsd", "rlsd", "rlrt"])
def test_a_baseline_is_checked_under_its_own_name(good_command, method):
    baseline = compose([*good_command[0], f"algorithm.adv_estimator={method}"])
    sections = look(baseline)
    assert texts(sections, "error") == [] and not any("What CAST will do" in title for title in sections)
    assert any("(a baseline, not CAST) is active" in text and "PRIVILEGED" in text for text in texts(sections, "note"))
    assert sections["Data and verifier"]
    asked = changed(baseline, **{f"algorithm.{method}.teacher.context": "plain"})
    assert any(f"algorithm.{method}.teacher.context='plain'" in text for text in texts(look(asked), "error"))


BAD = {
    "unknown key of ours": ({f"{CAST}.flipp": "both"}, f"{CAST}.flipp='both': unknown key; did you mean {CAST}.flip?"),
    "group of one": ({f"{ROLLOUT}.n": 1}, f"{ROLLOUT}.n=1: CAST compares the responses of a group"),
    "refused by verl": (
        {f"{ACTOR}.ppo_mini_batch_size": 8},
        "verl refuses this command: train_batch_size (4) must be >=",
    ),
    "refused by verl's dataclass": (
        {f"{ACTOR}.loss_agg_mode": "median"},
        "verl refuses this command: Invalid loss_agg",
    ),
    "no training data": (
        {"data.train_files": "/nowhere/t.parquet"},
        "data.train_files: /nowhere/t.parquet does not exist",
    ),
    "no validation data": (
        {"data.val_files": ["/nowhere/v.parquet"]},
        "data.val_files: /nowhere/v.parquet does not exist",
    ),
    "no such column": (
        {"data.prompt_key": "question"},
        "data.prompt_key=question: the data have no such column",
    ),
    "no such reward function": ({"reward.custom_reward_function.name": "grade"}, "grade of "),
    "no reward file": ({"reward.custom_reward_function.path": "/nowhere/r.py"}, "/nowhere/r.py does not load"),
    "no rollout": ({f"{ROLLOUT}.name": "???"}, f"{ROLLOUT}.name is not set"),
    "too few rows": ({"data.train_max_samples": 3}, "3 training rows are fewer than data.train_batch_size=4"),
    "no model": ({"actor_rollout_ref.model.path": "/nowhere/model"}, "there is no such directory"),
    "too long": (
        {"data.max_response_length": 480},
        "max_position_embeddings allows 512, and a longer sequence ends the run",
    ),
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
        "/nowhere/t.parquet does not exist",
    ):
        assert sum(says in text for text in errors) == 1, (says, errors)
    assert len(errors) == 9


def test_a_dump_directory_that_cannot_be_written_is_refused(good_run, tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "dump", "/proc/dump"):
        dump = {"interval": 1, "directory": str(directory)}
        [text] = texts(look(changed(good_run, **{f"{CAST}.dump": dump})), "error")
        assert text.startswith(f"{CAST}.dump.directory={directory}: ") and "name another directory" in text
        assert texts(look(changed(good_run, **{f"{CAST}.dump": {**dump, "interval": 0}})), "error") == []
    new = {"interval": 1, "directory": str(tmp_path / "new" / "dump")}
    assert texts(look(changed(good_run, **{f"{CAST}.dump": new})), "error") == []
    assert not (tmp_path / "new").exists(), "the doctor makes nothing"


def test_advice_knows_how_many_steps_the_data_give(good_run):
    """64 rows in batches of 4: 16 steps an epoch."""
    settings = {"trainer.total_training_steps": None, "trainer.total_epochs": 1, f"{CAST}.teacher.refresh_interval": 16}
    [text] = texts(look(changed(good_run, **settings)), "warning")
    assert "refresh_interval=16 in a run of 16 training steps" in text
    assert texts(look(changed(good_run, **{**settings, "trainer.total_epochs": 2})), "warning") == []


@pytest.mark.parametrize(
    "key",
    ["custom_reward_function.path", "reward_model.reward_manager", "reward_model.model.path", "sandbox_fusion.url"],
)
def test_old_keys_that_verl_ignores_are_named(good_run, key):
    [text] = texts(look(changed(good_run, **{key: "dapo"})), "warning")
    assert text.startswith(f"{key}=dapo is an old key of verl, which its V1 trainer ignores")


def test_a_checkpoint_without_a_teacher_is_found_before_the_run(good_run, tmp_path):
    config = changed(good_run, **{"trainer.resume_mode": "auto", "trainer.default_local_dir": str(tmp_path)})
    assert texts(look(config), "error") == []
    actor = tmp_path / "global_step_20" / "actor"
    actor.mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    (actor / "cast_self_teacher_world_size_2_rank_0.pt").touch()
    [text] = texts(look(config), "error")
    assert "global_step_20, which holds no self-teacher of 1 rank(s)" in text and "missing_state=snapshot" in text
    anew = changed(config, **{f"{CAST}.teacher.missing_state": "snapshot"})
    assert "a new one starts" in texts(look(anew), "warning")[0] and texts(look(anew), "error") == []
    current = changed(config, **{f"{CAST}.teacher.weights": "current"})
    assert texts(look(current), "error") == [], "it has no state"
    twin = changed(config, **{"algorithm.adv_estimator": "grpo", f"{ACTOR}.policy_loss.loss_mode": "vanilla"})
    assert texts(look(twin), "error") == [], "it has no teacher"
    (actor / "cast_self_teacher_world_size_1_rank_0.pt").touch()
    assert texts(look(config), "error") == []


def test_a_checkpoint_that_is_not_resumed_or_complete_is_said(good_run, tmp_path):
    config = changed(good_run, **{"trainer.resume_mode": "auto", "trainer.default_local_dir": str(tmp_path)})
    checkpoint = tmp_path / "global_step_30"
    (checkpoint / "actor").mkdir(parents=True)
    (checkpoint / "actor" / "cast_self_teacher_world_size_1_rank_0.pt").touch()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("30")
    [text] = texts(look(config), "error")
    assert f"all 30 steps are done in {checkpoint}" in text and "raise trainer.total_training_steps" in text
    longer = changed(config, **{"trainer.total_training_steps": 31})
    assert texts(look(longer), "error") == texts(look(longer), "warning") == []
    assert any(f"resumes from {checkpoint}, after step 30" in text for text in texts(look(longer), "ok"))
    [text] = texts(look(changed(config, **{"trainer.resume_mode": "disable"})), "warning")
    assert f"the checkpoint {checkpoint} is there, and trainer.resume_mode=disable ignores it" in text
    path = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(tmp_path)}
    [text] = texts(look(changed(config, **path)), "error")
    assert "verl wants a directory global_step_N" in text


def test_the_twin_is_checked_as_a_twin(good_command):
    """GRPO with CAST's own words left in the command: they are named, and nothing else of CAST is said."""
    words = [word for word in good_command[0] if not word.startswith("algorithm.adv_estimator")]
    twin = compose([*words, "algorithm.adv_estimator=grpo", "++algorithm.cast.flip=none"])
    sections = look(twin)
    assert texts(sections, "error") == texts(sections, "warning") == []
    assert run.subject(twin) == "GRPO, a CAST run's twin" and "Memory" not in sections
    [text] = [text for text in texts(sections, "note") if "algorithm.cast" in text]
    assert "(algorithm.cast.flip='none') is not read" in text
    assert [line.label for line in sections["Prompts"]] == ["student reads"]
    [text] = texts(look(changed(twin, **{f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": 5})), "error")
    assert f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=5: a rank has 16 rows of a step" in text
    assert "16 rows" in texts(look(changed(twin, **{f"{ACTOR}.ppo_micro_batch_size_per_gpu": 5})), "error")[0]


def test_settings_are_named_as_in_the_start_line(good_run):
    config = changed(good_run, **{CAST: {"flip_groups": "zero_variance", "base_wrong": 0.1, "gap_deadzone": 1}})
    [line] = [line for line in look(config)["What CAST will do"] if line.label == "settings"]
    assert line.text == summary(config)
    assert "flip_groups=zero_variance base_wrong=0.1 gap_deadzone=1 |" in line.text.replace("  ", " ")


def test_images_need_the_students_own_prompt(good_run, tmp_path):
    row = {**TEXT_ROW, "images": ["a.png"], "prompt": [{"role": "user", "content": "<image> What?"}]}
    config = with_rows(good_run, tmp_path / "rows.jsonl", 4 * [row])
    [text] = texts(look(config), "error")
    assert text.startswith("data.image_key='images': ") and "use ++algorithm.cast.teacher.context=same" in text
    assert texts(look(with_rows(good_run, tmp_path / "empty.jsonl", 4 * [{**TEXT_ROW, "images": []}])), "error") == []


def test_a_model_with_tied_embeddings_is_named(good_run, monkeypatch):
    """Beside vLLM 0.30 on an accelerator (verl#8014). The checks of the CPU's own settings are left out."""
    from types import SimpleNamespace

    from verl_cast.checks import stack

    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    text_config = SimpleNamespace(tie_word_embeddings=True)
    hf_config = SimpleNamespace(get_text_config=lambda: text_config)
    assert stack.stack_warnings(good_run, hf_config) == []
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    [text] = stack.stack_warnings(good_run, hf_config)
    assert "ties its embeddings" in text and "verl#8014" in text and "pip install 'vllm<0.30'" in text
    text_config.tie_word_embeddings = False
    assert stack.stack_warnings(good_run, hf_config) == []

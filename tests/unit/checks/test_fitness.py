"""Laws of the fitness record of a teacher's context.

Only a run with the same model, context, sampling and verifier finds a record. The measured interval decides the
verdict. A damaged record or cache never stops a run from starting.
"""

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from records import fitness_record

from verl_cast.checks import evidence, fitness
from verl_cast.tools import run_config


@pytest.fixture(scope="module")
def composed():
    return run_config.compose(["algorithm.adv_estimator=cast", "data.train_files=task.parquet"])


@pytest.fixture
def run(composed, tmp_path, monkeypatch):
    """run("key=value", ...): the config of a run with a small model directory. Each test has its own cache."""
    monkeypatch.setenv("VERL_CAST_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")

    def run_(*settings):
        config = copy.deepcopy(composed)
        OmegaConf.set_struct(config, False)
        return OmegaConf.merge(config, OmegaConf.from_dotlist([f"actor_rollout_ref.model.path={model}", *settings]))

    return run_


def test_what_is_saved_is_found_by_the_same_run_alone(run, tmp_path):
    config = run()
    assert fitness.find(config) is None
    path = fitness.save(config, fitness_record())
    assert path.is_relative_to(tmp_path / "cache" / "fitness") and fitness.find(config) == fitness_record()
    # the record does not depend on the validation data or the optimizer
    assert fitness.find(run("data.val_files=elsewhere.parquet")) == fitness_record()
    assert fitness.find(run("actor_rollout_ref.actor.optim.lr=1e-4")) == fitness_record()
    for other in (
        "actor_rollout_ref.model.path=org/other",
        "actor_rollout_ref.rollout.temperature=0.5",
        "actor_rollout_ref.rollout.top_k=20",
        "data.train_files=other.parquet",
        "data.max_response_length=77",
        "data.apply_chat_template_kwargs.enable_thinking=False",
        "algorithm.cast.teacher.context=same",
        "reward.custom_reward_function.path=mine.py",
    ):
        assert fitness.find(run(other)) is None, other


def test_a_template_is_its_text_not_its_name(run, tmp_path):
    one, two, three = (tmp_path / name for name in ("one.jinja", "two.jinja", "three.jinja"))
    one.write_text("{{ problem }}")
    two.write_text("{{ problem }}")
    three.write_text("Other: {{ problem }}")
    paths = [fitness.record_path(run(f"algorithm.cast.teacher.context={path}")) for path in (one, two, three)]
    assert paths[0] == paths[1] != paths[2]
    assert fitness.record_path(run(), str(one)) == paths[0]  # a compared context, not the run's own


def test_a_model_that_is_written_again_is_another_model(run, tmp_path):
    config = run()
    before = fitness.record_path(config)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    assert fitness.record_path(config) != before


def test_relative_and_absolute_model_paths_are_one_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fitness.record_path(run("actor_rollout_ref.model.path=model")) == fitness.record_path(run())


@pytest.mark.parametrize(
    "interval, problems, said",
    [
        ((-0.18, -0.02), 25, "worse"),
        ((0.02, 0.18), 25, "better"),
        ((-0.02, 0.18), 25, "undecided"),
        ((-0.18, 0.0), 25, "undecided"),
        ((-1.0, -1.0), 3, "undecided"),  # three problems are too few for a verdict
    ],
)
def test_the_verdict_is_the_intervals(interval, problems, said):
    measured = fitness_record(interval=interval, problems=problems)
    assert fitness.verdict(measured) == said
    assert (fitness.warning(measured) is not None) == (said == "worse")


def test_the_warning_has_the_numbers_and_what_the_study_recommends():
    sentence = fitness.warning(fitness_record())
    for words in ("0.10", "0.20", "-0.18 to -0.02", "25 problems", "plain", "2026-11-22", "flip=none", evidence.PAGE):
        assert words in sentence


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        '"text"',
        json.dumps({"record_version": 99}),
        json.dumps({**fitness_record(), "difference": {"value": -0.1, "interval": []}}),
        json.dumps({**fitness_record(), "difference": {"value": -0.1, "interval": ["low", "high"]}}),
        json.dumps({key: value for key, value in fitness_record().items() if key != "teacher"}),
    ],
)
def test_a_damaged_record_is_said_and_ignored(run, caplog, content):
    path = fitness.record_path(run())
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with caplog.at_level(logging.WARNING, "verl_cast"):
        assert fitness.find(run()) is None
    assert str(path) in caplog.text and "ignored" in caplog.text


def test_a_cache_that_is_no_directory_is_said_and_ignored(run, caplog, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VERL_CAST_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "verl_cast"):
        assert fitness.find(run()) is None
    assert "ignored" in caplog.text
    with pytest.raises(OSError):
        fitness.save(run(), fitness_record())


def test_a_user_without_a_home_is_said_and_ignored(run, caplog, monkeypatch):
    """Containers may run under a user id that has no home directory. Training must still start."""
    monkeypatch.delenv("VERL_CAST_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    assert fitness.find(run()) is None
    assert "Could not determine home directory" in caplog.text


def test_looking_for_a_record_is_light():
    heavy = "{'torch', 'verl', 'vllm', 'verl_cast.tools.diagnose'}"
    code = f"import sys, verl_cast.checks.fitness; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

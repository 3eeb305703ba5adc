"""Laws of the commands that doctor and diagnosis take: what launches verl does not matter, and errors name the word."""

import argparse
import os
import re
import shlex

import pytest
import scripts

from verl_cast.tools.cli import UserError
from verl_cast.tools.run_config import add_arguments, compose

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]
ROLLOUT = "actor_rollout_ref.rollout"


def test_a_config_of_ones_own_is_found_where_hydra_finds_it(tmp_path):
    """`--config-path` of verl's command: relative to verl/trainer, or absolute."""
    assert compose([], "ppo_trainer.yaml", "config") == compose([], "ppo_trainer")
    (tmp_path / "mine.yaml").write_text(
        "hydra:\n  searchpath:\n    - pkg://verl.trainer.config\n"
        "defaults:\n  - ppo_trainer\n  - _self_\nalgorithm:\n  adv_estimator: cast\n  cast:\n    flip: none\n"
    )
    config = compose([f"{ROLLOUT}.n=8"], "mine", str(tmp_path))
    assert config.algorithm.cast.flip == "none" and config.actor_rollout_ref.actor.clip_ratio_high == 0.28
    with pytest.raises(UserError, match="/nowhere"):
        compose([], "mine", "/nowhere")


COMMAND = ["python", "-m", "verl.trainer.main_ppo"]


def parsed(*words):
    """What a subcommand with an option reads: overrides, name and directory of the config, and the option."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-ray", action="store_true")
    add_arguments(parser)
    args = parser.parse_args(words)
    return args.overrides, args.config_name, args.config_path, args.no_ray


@pytest.mark.parametrize(
    "command",
    [
        [],
        COMMAND,
        ["/opt/bin/python3.11", *COMMAND[1:]],
        ["python", "/opt/verl/trainer/main_ppo.py"],
        ["nohup", "python3", "-u", *COMMAND[1:]],
        ["uv", "run", "--with", "x", *COMMAND],
        ["torchrun", "--nnodes", "1", *COMMAND[1:]],
        ["--", "ray", "job", "submit", "--address", "http://h:1", "--", *COMMAND],
    ],
    ids=" ".join,
)
def test_a_whole_command_is_as_good_as_its_overrides(command):
    overrides = ["a=1", "+b=[c, d]", 'e="f,g"']  # as the shell passes them: hydra's own quotes stay
    assert parsed(*command, *overrides) == (overrides, "ppo_trainer", None, False)
    assert parsed("--no-ray", "-cn", "mine", *command, *overrides) == (overrides, "mine", None, True)
    if command:  # hydra takes its options anywhere
        words = ["a=1", "-cn=mine", *overrides[1:], "--config-path", "/p"]
        assert parsed("--no-ray", *command, *words) == (overrides, "mine", "/p", True)


def test_an_option_after_the_command_is_named():
    with pytest.raises(UserError, match="--no-ray: verl's command has no such option; those of verl-cast come before"):
        parsed("a=1", "--no-ray")


def test_variables_before_a_command_hold_for_the_checks(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    words = ["ray", "job", "submit", "--", "env", "VERL_PLATFORM=nvidia", "nohup", "EMPTY=", *COMMAND, "a=1"]
    assert parsed(*words)[0] == ["a=1"]
    assert (os.environ["VERL_PLATFORM"], os.environ.pop("EMPTY")) == ("nvidia", "")


def test_a_script_is_asked_for_its_command():
    """The scripts of examples/, by their dry run; $(DRY_RUN=1 ...), which splits at every blank, gives the same."""
    asked = parsed("--no-ray", "--", "SIZE=8b", "bash", str(scripts.EXAMPLES / scripts.FSDP), "a='b c'")
    os.environ.pop("SIZE")
    overrides, *others = asked
    assert others == ["cast_trainer", None, True] and overrides[-1] == "a='b c'"
    assert "actor_rollout_ref.model.path=Qwen/Qwen3-8B" in overrides
    printed = scripts.dry_run(scripts.FSDP, "SIZE=8b", arguments=["a='b c'"]).stdout.split()
    assert parsed("--no-ray", *printed) == asked


@pytest.mark.parametrize(
    "text, says",
    [
        ("touch started", "does not mention DRY_RUN, so running it would start the training"),
        ("echo no such size >&2; exit 3 # DRY_RUN", "(status 3): no such size"),
        ("echo DRY_RUN", "does not print one command of"),
        (None, "there is no such script"),
    ],
)
def test_a_script_that_cannot_be_asked_is_named(tmp_path, text, says):
    script = tmp_path / "run.sh"
    if text is not None:
        script.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        parsed("--", "bash", str(script))
    assert not (tmp_path / "started").exists()


def test_an_override_that_ends_like_a_script_is_an_override():
    word = "reward.custom_reward_function.path=/x/reward.sh"
    assert parsed("algorithm.adv_estimator=cast", word)[0] == ["algorithm.adv_estimator=cast", word]


def test_another_program_is_named():
    with pytest.raises(UserError, match="python -m recipe.main: only commands of `python -m verl.trainer.main_ppo`"):
        parsed("python", "-m", "recipe.main", "a=1")


@pytest.mark.parametrize("value", ["/x/step=100", "/data/\u65b0\u52a0\u5377/model"])
def test_a_word_that_hydra_cannot_read_is_named_and_its_remedy_works(value):
    key = "actor_rollout_ref.model.path"
    with pytest.raises(UserError) as problem:
        compose([f"{key}={value}"])
    said, _, remedy = str(problem.value).partition("such a value needs quotes, ")
    assert f"{key}={value}" in said
    assert compose(shlex.split(remedy)).actor_rollout_ref.model.path == value


def test_a_word_without_a_value_is_named():
    with pytest.raises(UserError, match="the word cast has no =; a setting is one word, key=value"):
        compose(["algorithm.adv_estimator=", "cast"])


def test_keys_that_verl_does_not_have_are_explained():
    for override, says in (
        ("data.train_batchsize=3", "no key data.train_batchsize; did you mean data.train_batch_size?"),
        ("algorithm.cast.flip=none", "write ++algorithm.cast.flip=none, or use --config-name=cast_trainer"),
        ("base_correct=0", "for CAST's setting write ++algorithm.cast.base_correct=0"),
        ("algorithm.teacher.context=same", "for CAST's setting write ++algorithm.cast.teacher.context=same"),
        ("frobnicate=1", "to add it as a new key, write +frobnicate=..."),
        ("model_engine=tpu", "Available options in 'model_engine'"),
    ):
        with pytest.raises(UserError) as problem:
            compose([override])
        assert says in str(problem.value) and "\n" not in str(problem.value)

"""Laws of the commands that doctor and diagnosis take: what launches verl does not matter, and errors name the word."""

import os
import shlex

import pytest
import scripts

from verl_cast.tools.cli import UserError
from verl_cast.tools.run_config import compose, without_program

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


@pytest.mark.parametrize(
    "words, plain",
    [
        (["a=1", "+b=[c, d]"], ["a=1", "+b=[c, d]"]),
        (["--no-ray", "--config-name=mine", "a=1"], ["--no-ray", "--config-name=mine", "a=1"]),
        (["--no-ray", *COMMAND, "a=1", "--config-name=mine"], ["--no-ray", "--config-name=mine", "a=1"]),
        (
            ["/opt/bin/python3.11", *COMMAND[1:], "-cn", "mine", "a=1", "--config-path", "/p"],
            ["--config-name=mine", "--config-path=/p", "a=1"],
        ),
        # as $(DRY_RUN=1 bash ...) splits it: at every blank, with the quotes
        ([*COMMAND, "'+a=[b,", "c]'", "d=e"], ["+a=[b, c]", "d=e"]),
        # launchers
        (["nohup", *COMMAND, "a=1"], ["a=1"]),
        (["python3", "-u", *COMMAND[1:], "a=1"], ["a=1"]),
        (["--no-ray", "uv", "run", "--with", "x", *COMMAND, "a=1"], ["--no-ray", "a=1"]),
        (["--config-name", "mine", "torchrun", "--nnodes", "1", *COMMAND[1:], "a=1"], ["--config-name", "mine", "a=1"]),
        (
            ["ray", "job", "submit", "--address", "http://h:1", "--", *COMMAND, "a=1", "-cn=m"],
            ["--config-name=m", "a=1"],
        ),
        (["python", "/opt/verl/trainer/main_ppo.py", "a=1"], ["a=1"]),
        # as the shell passes it: hydra's own quotes stay
        ([*COMMAND, 'a="b,c"'], ['a="b,c"']),
    ],
)
def test_a_whole_command_is_as_good_as_its_overrides(words, plain):
    assert without_program(words) == plain


def test_variables_before_a_command_hold_for_the_checks(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    words = ["ray", "job", "submit", "--", "env", "VERL_PLATFORM=nvidia", "nohup", "EMPTY=", *COMMAND, "a=1"]
    assert without_program(words) == ["a=1"]
    assert (os.environ["VERL_PLATFORM"], os.environ.pop("EMPTY")) == ("nvidia", "")


def test_a_script_is_asked_for_its_command():
    """The scripts of examples/, by their dry run; the shell's way gives the same."""
    words = without_program(["--no-ray", "--", "SIZE=8b", "bash", str(scripts.EXAMPLES / scripts.FSDP), "a='b  c'"])
    os.environ.pop("SIZE")
    assert words[:2] == ["--no-ray", "--config-name=cast_trainer"] and words[-1] == "a='b  c'"
    assert "actor_rollout_ref.model.path=Qwen/Qwen3-8B" in words
    printed = scripts.dry_run(scripts.FSDP, "SIZE=8b", arguments=["a='b c'"]).stdout.split()
    assert without_program(["--no-ray", *printed]) == [*words[:-1], "a='b c'"]


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
    with pytest.raises(UserError) as problem:
        without_program(["--", "bash", str(script)])
    assert says in str(problem.value)
    assert not (tmp_path / "started").exists()


def test_another_program_is_named():
    with pytest.raises(UserError, match="python -m recipe.main: only commands of `python -m verl.trainer.main_ppo`"):
        without_program(["python", "-m", "recipe.main", "a=1"])


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

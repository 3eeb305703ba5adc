"""What the doctor's tests share: runs with other settings, and the lines that the doctor shows about them."""

import copy
import json
import os
import subprocess
import sys

from omegaconf import OmegaConf
from verl_run import command_and_environment

from verl_cast.tools.doctor import run

CAST, ROLLOUT, ACTOR = "algorithm.cast", "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
TEXT_ROW = {
    "data_source": "tiny",
    "prompt": [{"role": "user", "content": "What is 8 x 9?"}],
    "reward_model": {"ground_truth": "72"},
}


def good_command(directory, tiny_directory):
    """The overrides of a command that the doctor finds nothing wrong with, and its environment."""
    arguments, environment = command_and_environment(
        directory,
        tiny_directory,
        "algorithm.adv_estimator=cast",
        "+algorithm.cast.trust=measured",  # a run that is warned of nothing
        "trainer.total_training_steps=30",
        "trainer.total_epochs=2",
        tools=False,
    )
    return arguments[3:], environment


def changed(config, **settings):
    """The run with other settings. Keys contain dots, so callers pass them as `**{...}`."""
    config = copy.deepcopy(config)
    for key, value in settings.items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def look(config):
    """The doctor's sections for a run: {title: lines}."""
    return dict(run.sections(config))


def texts(sections, mark):
    return [line.text for lines in sections.values() for line in lines if line.mark == mark]


def with_rows(config, path, rows, **settings):
    """The run with these rows as training data, in a file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data.train_files": str(path), "trainer.total_epochs": 40}  # four rows are one step
    return changed(config, **files, **settings)


def doctor(*arguments, environment=None):
    """`verl-cast doctor`, as a user calls it."""
    command = [sys.executable, "-m", "verl_cast", "doctor", *arguments]
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)

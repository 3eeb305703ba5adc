"""Laws of whole runs on a patched verl: its own CAST is the plugin's, and so is the plugin through verl's hooks."""

import re

import pytest
from cast_runs import ALWAYS, TRUSTED, assert_same_batches, assert_same_parameters, steps
from patched_verl import GENERAL, on_tree, patched_tree
from queue_of_runs import job
from verl_run import run_verl


@job("cast_inside_verl", after=("tiny",))
def cast_inside_verl(directory, runs):
    """verl's own CAST without the plugin, with the settings of the plugin's run `trusted`."""
    tree = patched_tree(directory / "verl-patched")
    settings = [setting.removeprefix("+") for setting in TRUSTED]
    return run_verl(directory, runs("tiny"), *settings, steps(4), plugin=False, env=on_tree(tree))


@job("cast_by_hooks", after=("tiny",))
def cast_by_hooks(directory, runs):
    """The plugin on a verl with the hooks, with the settings of the plugin's run `trusted`, but trust=always."""
    tree = patched_tree(directory / "verl-hooked", GENERAL)
    return run_verl(directory, runs("tiny"), *ALWAYS, steps(2), env=on_tree(tree))


@pytest.mark.runs("cast_inside_verl", "trusted")
def test_verls_own_cast_is_the_plugins(runs):
    """Four steps (FSDP2, vLLM), three with a trusted teacher and one without: batches, weights, decisions."""
    own, plugin = runs("cast_inside_verl"), runs("trusted")
    assert own.returncode == 0, own.output[-5000:]
    assert "[verl_cast" not in own.output
    assert re.search(r"CAST is active: .* trust=measured", own.output)
    for step in (1, 2, 3, 4):
        assert own.batch(step)["trainer"] == "SelfTeacherTrainerSync"
        assert_same_batches(own, plugin, step, size=128)
        assert_same_parameters(own, plugin, step)
    assert [metrics["cast/trust/trusted"] for metrics in own.metrics] == [1.0, 1.0, 1.0, 0.0]
    for of_own, of_plugin in zip(own.metrics, plugin.metrics, strict=False):  # the plugin's run was longer
        assert set(of_own) == set(of_plugin) - {"timing_s/cast_dump", "timing_per_token_ms/cast_dump"}
        for name in of_own:
            if name.startswith("cast/") and not name.endswith(("_seconds", "peak_memory_gib")):
                assert of_own[name] == of_plugin[name], name


@pytest.mark.runs("cast_by_hooks", "trusted")
def test_a_step_with_trust_is_the_step_without_the_setting_also_through_verls_hooks(runs):
    """A step of two passes with a noise measurement, and a one-pass step: batches and weights are bit-equal."""
    by_hooks, trusted = runs("cast_by_hooks"), runs("trusted")
    assert by_hooks.returncode == 0, by_hooks.output[-5000:]
    assert "verl_cast.training.classes.SelfTeacherTrainerSync" in by_hooks.output
    assert [m["cast/one_pass"] for m in by_hooks.metrics] == [0, 1] and "cast/noise/p99" in by_hooks.metrics[0]
    for step in (1, 2):
        assert by_hooks.batch(step)["trainer"] == "SelfTeacherTrainerSync"
        assert "teacher_log_probs" in by_hooks.batch(step)["rows"][0]
        assert_same_batches(by_hooks, trusted, step, size=128)
        assert_same_parameters(by_hooks, trusted, step)

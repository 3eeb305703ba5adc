"""Laws of whole runs on a patched verl: its own CAST is the plugin's, and so is the plugin through verl's hooks."""

import signal

import pytest
from cast_runs import CAST_SIX_STEPS, assert_same_batches, assert_same_parameters
from patched_verl import GENERAL, on_tree, patched_tree
from queue_of_runs import job
from test_trust import TRUSTED
from verl_run import run_verl


@job("cast_inside_verl", after=("tiny",))
def cast_inside_verl(directory, runs):
    """verl's own CAST without the plugin, with the settings of the plugin's run `trusted`."""
    tree = patched_tree(directory / "verl-patched")
    settings = [setting.removeprefix("+") for setting in TRUSTED if ".dump." not in setting]
    return run_verl(directory, runs("tiny"), *settings, timeout=900, plugin=False, env=on_tree(tree))


@job("cast_by_hooks", after=("tiny",))
def cast_by_hooks(directory, runs):
    """The plugin on a verl with the hooks, killed after the step that follows its first one-pass update."""
    tree = patched_tree(directory / "verl-hooked", GENERAL)
    return run_verl(
        directory, runs("tiny"), *CAST_SIX_STEPS, timeout=900, env=on_tree(tree), kill_when="dump/step_3.pt"
    )


@pytest.mark.runs("cast_inside_verl", "trusted")
def test_verls_own_cast_is_the_plugins(runs):
    """Three steps (FSDP2, vLLM), two with a trusted teacher and one without: batches, weights, decisions."""
    own, plugin = runs("cast_inside_verl"), runs("trusted")
    assert own.returncode == 0, own.output[-5000:]
    assert "[verl_cast" not in own.output and "CAST is active: trust=measured" in own.output
    for step in (1, 2, 3):
        assert own.batch(step)["trainer"] == "SelfTeacherTrainerSync"
        assert_same_batches(own, plugin, step, size=128)
        assert_same_parameters(own, plugin, step)
    assert [metrics["cast/trust/trusted"] for metrics in own.metrics] == [1.0, 1.0, 0.0]
    for of_own, of_plugin in zip(own.metrics, plugin.metrics, strict=True):
        assert set(of_own) == set(of_plugin) - {"timing_s/cast_dump", "timing_per_token_ms/cast_dump"}
        for name in of_own:
            if name.startswith("cast/") and not name.endswith(("_seconds", "peak_memory_gib")):
                assert of_own[name] == of_plugin[name], name


@pytest.mark.runs("cast_by_hooks", "cast")
def test_the_plugin_trains_the_same_through_verls_hooks(runs):
    """A step of two passes with a noise measurement, and one-pass steps."""
    by_hooks, plugin = runs("cast_by_hooks"), runs("cast")
    assert by_hooks.returncode == -signal.SIGKILL, by_hooks.output[-5000:]
    assert "verl_cast.training.classes.SelfTeacherTrainerSync" in by_hooks.output
    assert [m["cast/one_pass"] for m in by_hooks.metrics[:2]] == [0, 1]
    for step in (1, 2, 3):
        assert by_hooks.batch(step)["trainer"] == "SelfTeacherTrainerSync"
        assert_same_batches(by_hooks, plugin, step)

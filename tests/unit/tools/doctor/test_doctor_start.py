"""Laws of the checkpoint that the doctor finds: resumed, ignored, complete, or without its teacher."""

import pytest
from doctor_runs import CAST, changed

from verl_cast.config.methods import method_config
from verl_cast.tools.doctor import start

SAVED_BY_TWO = {"trainer.n_gpus_per_node": 2}
STARTS = {
    "no teacher": ({}, "error", "holds no self-teacher of 1 rank(s), so the run will stop. Resume with the number of"),
    "a new teacher": ({f"{CAST}.teacher.missing_state": "snapshot"}, "warning", "a new one starts from the restored"),
    "without state": (
        {f"{CAST}.teacher.weights": "current", f"{CAST}.trust": "always"},
        "ok",
        "global_step_20, after step 20",
    ),
    "a twin": ({"algorithm.adv_estimator": "grpo"}, "ok", "global_step_20, after step 20"),
    "its teacher": (SAVED_BY_TWO, "ok", "global_step_20, after step 20"),
    "complete": ({**SAVED_BY_TWO, "trainer.total_training_steps": 20}, "error", "all 20 steps are done in"),
    "ignored": (
        {"trainer.resume_mode": "disable"},
        "warning",
        "trainer.resume_mode=disable ignores it; its files will",
    ),
    "no such": (
        {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": "/nowhere"},
        "error",
        "trainer.resume_from_path=/nowhere is no directory global_step_N",
    ),
    "none": ({"trainer.default_local_dir": "/nowhere"}, "note", "from step 0; there is no checkpoint to resume from"),
}


@pytest.mark.parametrize("settings, mark, says", STARTS.values(), ids=STARTS)
def test_where_a_run_starts_is_said(good_run, tmp_path, settings, mark, says):
    """After a checkpoint of two ranks, in a run of one."""
    actor = tmp_path / "global_step_20" / "actor"
    actor.mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    (actor / "cast_self_teacher_world_size_2_rank_0.pt").touch()
    auto = {"trainer.resume_mode": "auto", "trainer.default_local_dir": str(tmp_path)}
    config = changed(good_run, **{**auto, **settings})
    method = method_config(config) if config.algorithm.adv_estimator == "cast" else None
    [line] = start.resume(config, method, start.steps(config, rows=64)[0])
    assert line.mark == mark and says in line.text, line

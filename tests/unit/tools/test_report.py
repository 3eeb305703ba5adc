"""`verl-cast report`: its readers, its findings, and its page in a real headless browser without network."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import metric_table
import numpy as np
import pytest

from verl_cast import CastConfig, trajectories
from verl_cast.tools import cli
from verl_cast.tools.report import drawing, figures, findings, metrics_file, notes, runs
from verl_cast.tools.report.healthy import HEALTHY

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'></script>"
KINDS = ("mixed", "all_wrong", "all_correct")


def dump_rows(step, groups=3, size=4, teacher_prompt="1 + 1 = 2\n\n", deadzone=0.0):
    """Rows of one dumped step with random gaps and advantages: a mixed, an all-wrong and an all-correct group."""
    rng, rows = np.random.default_rng(step), []
    for group, kind in enumerate(KINDS[:groups]):
        for i in range(size):
            correct = kind == "all_correct" or (kind == "mixed" and i % 2 == 0)
            words = f"First, {step} + {group} is a sum.\nSo we add. The answer is \\boxed{{{step + i}}}."
            text = re.findall(r"\n| ?\w+|\W", words)
            mask = np.arange(len(text)) < len(text) - 3 * (i == size - 1)
            old, teacher = -rng.exponential(0.5, (2, len(text)))
            teacher = np.where(rng.random(len(text)) < 0.2, old, teacher)
            gap = np.where(mask & (abs(teacher - old) > deadzone), teacher - old, 0.0)
            base = 0.3 if correct else -0.3
            advantages = np.where(mask, base + gap, 0.0)
            rows.append(
                {
                    "step": step,
                    "group": f"uid-{step}-{group}",
                    "row": f"uid-{step}-{group}_{i}_0",
                    "messages": json.dumps([{"role": "user", "content": f"What is {step} + {group}?"}]),
                    "reference": str(step + group),
                    "prompt_ids": [1, 2, 3],
                    "teacher_prompt": teacher_prompt,
                    "response_ids": list(range(len(text))),
                    "response_text": text,
                    "response_mask": mask.tolist(),
                    "old_log_probs": old.tolist(),
                    "teacher_log_probs": teacher.tolist(),
                    "gap": gap.tolist(),
                    "advantages": advantages.tolist(),
                    "flipped": (advantages * base < 0).tolist(),
                    "reward": float(correct),
                    "correct": correct,
                    "kind": kind,
                    "base_advantage": base,
                    "teacher_age": step % 10,
                }
            )
    return rows


def write_dump(directory, steps, cast=None, **kwargs):
    written = {step: dump_rows(step, **kwargs) for step in steps}
    for step, rows in written.items():
        trajectories.write(directory, step, rows, model="/models/SmolLM2", cast=cast or {"flip": "both"})
    return written


def metrics_of_a_run(steps=24, cast=True, shift=0.0):
    """{step: {name: value}} of a healthy run, with the names and scales of a small real one."""
    found = {}
    for step in range(1, steps + 1):
        t = (step - 1) / max(1, steps - 1)
        found[step] = {
            "critic/score/mean": 0.25 + 0.6 * t + shift,
            "response_length/mean": 61 - 14 * t,
            "actor/entropy": 0.62 - 0.3 * t,
            "timing_s/old_log_prob": 6.5 + step % 3,
            "timing_s/step": 44.0 + step % 5 - 9 * (not cast),
        }
        if step % 5 == 0:
            found[step]["val-core/chain_sum/acc/mean@4"] = 0.2 + 0.6 * t
        if cast:
            shares = {"mixed": 0.75 - 0.45 * t, "all_wrong": 0.2 * (1 - t), "all_correct": 0.05 + 0.65 * t}
            of_cast = {
                **{f"group/{kind}_share": share for kind, share in shares.items()},
                **{f"gap/p{q:02d}": q / 100 - 0.6 for q in (5, 25, 50, 75, 95)},
                "gap/mean": -0.16 + 0.1 * t,
                "gap/abs_mean": 0.34,
                "gap/deadzone_share": 0.0,
                "gap/correctness_corr": 0.4,
                "gap/correctness_corr_in_group": 0.3 + 0.1 * (step % 2),
                "flip/correct_share": 0.5 - 0.1 * t,
                "flip/wrong_share": 0.38,
                "advantage/zero_variance_mass": 0.25 + 0.45 * t,
                "entropy/correct_mean": 0.5,
                "noise/gap_share": 0.001,
                "noise/p99": 6e-5,
            }
            found[step] |= {f"cast/{name}": value for name, value in of_cast.items()} | {"timing_s/cast_teacher": 9.4}
    return found


def write_jsonl(path, metrics):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": values}) + "\n" for step, values in metrics.items()))
    return path


def report(*args):
    return cli.main(["report", *map(str, args)])


# ---- reading ----


def test_the_numbers_are_those_of_verls_own_file_logger(tmp_path, monkeypatch):
    from verl.utils.tracking import FileLogger

    metrics = metrics_of_a_run(4)
    metrics[2]["actor/grad_norm"] = math.nan
    metrics[3]["actor/entropy"] = math.inf
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    logger = FileLogger("project", "experiment")
    for step, values in metrics.items():
        logger.log({name: np.float64(value) for name, value in values.items()}, step)
    logger.finish()
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as Python's json writes it
        file.write('{"step": 5, "data": {"actor/entropy": Infinity, "text": "x"}}\n')
    steps, remarks = metrics_file.read(tmp_path / "metrics.jsonl")
    metrics[3]["actor/entropy"] = math.nan
    np.testing.assert_equal(steps, {**metrics, 5: {"actor/entropy": math.nan}})
    assert remarks == []


def test_garbled_lines_and_a_half_written_last_line_are_skipped_and_named(tmp_path):
    path = write_jsonl(tmp_path / "metrics.jsonl", metrics_of_a_run(7))
    lines = path.read_text().splitlines()
    lines[0], lines[3] = lines[0][:70], '{"step": "x", "data": {}}'
    lines[4] = '{"step": 5, "data": {"critic/score/mean": 1' + 400 * "0" + "}}"  # too large for a float
    lines[5] = "3"
    path.write_bytes("\n".join([*lines, "\ufffd"]).encode() + b"\xff\n" + lines[-1].encode()[:-9])
    steps, remarks = metrics_file.read(path)
    assert list(steps) == [2, 3, 7]
    assert remarks[0].startswith(f"{path}, line 9: the last line is incomplete")
    assert str(path) in remarks[1] and "skipped: 1, 4, 5, 6, 8." in remarks[1] and len(remarks) == 2


def test_steps_that_come_again_after_a_resume_count_once(tmp_path):
    first, second = metrics_of_a_run(10), metrics_of_a_run(7, shift=0.1)
    path = write_jsonl(tmp_path / "metrics.jsonl", first)
    with path.open("a") as file:
        file.writelines(json.dumps({"step": s, "data": second[s]}) + "\n" for s in (6, 7))
    steps, remarks = metrics_file.read(path)
    assert steps == {**{s: first[s] for s in range(1, 6)}, 6: {**first[6], **second[6]}, 7: second[7]}
    assert len(remarks) == 1 and "went back to step 6 " in remarks[0]


def test_validation_logged_apart_from_training_joins_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    entries = [(0, {"val-core/a": 0.1}), (1, {"critic/score/mean": 0.5}), (1, {"val-core/a": 0.2})]
    path.write_text("".join(json.dumps({"step": s, "data": d}) + "\n" for s, d in entries))
    assert metrics_file.read(path) == ({0: entries[0][1], 1: {**entries[1][1], **entries[2][1]}}, [])


# ---- which runs ----


def test_a_report_needs_neither_verl_nor_torch():
    code = (
        "import sys, verl_cast.tools.report.page, verl_cast.tools.report.command; "
        "print({'verl', 'torch'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_runs_their_names_and_their_dumps(tmp_path):
    metrics = metrics_of_a_run(2)
    for parent in ("a", "b"):
        write_jsonl(tmp_path / parent / "cast" / "metrics.jsonl", metrics)
    write_dump(tmp_path / "b" / "cast" / "checkpoints" / "cast_trajectories", steps=(1,))
    (tmp_path / "b" / "cast" / "0.jsonl").write_text('{"input": "x", "step": 1}\n')  # verl's rollout dump
    found = runs.find([tmp_path / "a" / "cast", tmp_path / "b" / "cast", tmp_path / "b" / "cast" / "metrics.jsonl"])
    assert [(run.name, list(run.dump_files)) for run in found] == [("a/cast", []), ("b/cast", [1])]

    project = tmp_path / "project"  # verl's default paths
    write_jsonl(project / "one.jsonl", metrics)
    write_jsonl(project / "two.jsonl", metrics)
    write_dump(project / "checkpoints" / "two" / "cast_trajectories", steps=(2,))
    found = runs.find([project])
    assert [(run.name, list(run.dump_files), run.is_cast) for run in found] == [("one", [], True), ("two", [2], True)]


def test_a_dump_belongs_to_a_run_that_logs_cast_metrics(tmp_path):
    """A GRPO twin in the same directory does not get it."""
    grpo = write_jsonl(tmp_path / "run" / "metrics.jsonl", metrics_of_a_run(2, cast=False))
    write_dump(grpo.parent / "cast_trajectories", steps=(1,))
    twin, dumped = runs.find([grpo.parent])
    assert (twin.metrics_path, twin.dump_files, twin.kind) == (grpo, {}, "not CAST")
    assert (dumped.metrics_path, list(dumped.dump_files), dumped.kind) == (None, [1], "CAST")
    assert len(dumped.remarks) == 1 and "a CAST run whose metrics are not here" in dumped.remarks[0]

    write_jsonl(grpo.parent / "cast.jsonl", metrics_of_a_run(2))
    found = runs.find([grpo.parent])
    assert {run.kind: list(run.dump_files) for run in found} == {"CAST": [1], "not CAST": []} and len(found) == 2


def test_a_page_without_room_for_a_token_is_refused(tmp_path, capsys):
    assert report(tmp_path, "--max-tokens", 0) == 1
    assert "--max-tokens 0: must be at least 1." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist; name a run's directory"),
        (lambda path: path.mkdir(), "holds no metrics. The report reads verl's file logger: add 'file' to trainer"),
        (lambda path: path.write_text("step:1 - critic/score/mean:0.5\n"), "trainer.logger=[console,file]"),  # console
        (lambda path: write_jsonl(path / "metrics.jsonl", {}), "VERL_FILE_LOGGER_PATH"),
    ],
)
def test_nothing_to_report_is_an_error_with_a_remedy(tmp_path, capsys, make, sentence):
    path = tmp_path / "train.log"
    make(path)
    assert report(path) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"verl-cast report: {path} ") and sentence in said and said.count("\n") == 1


def test_an_output_that_cannot_be_written_is_said(tmp_path, capsys):
    write_jsonl(tmp_path / "run" / "metrics.jsonl", metrics_of_a_run(2))
    (tmp_path / "file").write_text("")
    assert report(tmp_path / "run", "-o", tmp_path / "file" / "report.html") == 1
    assert "cannot be written" in capsys.readouterr().err


# ---- findings ----


def a_run(metrics):
    return runs.Run("run", metrics, Path("metrics.jsonl"))


def found_in(metrics):
    return {note.title: note for note in findings.notes(a_run(metrics))}


def changed(steps, change):
    """Metrics of a run to every step of which `change(share of the run done, values)` was done."""
    metrics = metrics_of_a_run(steps)
    for step, values in metrics.items():
        values.update(change((step - 1) / max(1, steps - 1)))
    return metrics


def test_a_healthy_run_has_nothing_to_look_at():
    assert {note.level for note in findings.notes(a_run(metrics_of_a_run(30)))} == {notes.OK}


BAD = {
    "The teacher prefers wrong responses": lambda t: {"cast/gap/correctness_corr_in_group": -0.3},
    "The reward fell": lambda t: {"critic/score/mean": 0.8 - 0.5 * t},
    "Entropy collapses": lambda t: {"actor/entropy": 0.6 * (1 - t), "critic/score/mean": 0.3},
    "Values that are not finite numbers": lambda t: {"actor/pg_loss": math.nan},
    "The task is too hard": lambda t: {"cast/group/all_wrong_share": 0.9},
    "Response length changes as the reward falls": lambda t: {
        "response_length/mean": 60 + 90 * t,
        "critic/score/mean": 0.5 - 0.3 * t,
    },
    "Rewards vary, and never cross the threshold": lambda t: {
        **{"cast/group/all_wrong_share": 1.0, "cast/group/mixed_share": 0.0, "critic/score/max": 0.5},
        **{"cast/reward/varies_on_one_side_share": 0.4, "critic/score/min": 0.0},
    },
}
OUTSIDE = [lambda t, name=name: {f"cast/{name}": HEALTHY[name].high + 0.05} for name in findings.BANDED]


@pytest.mark.parametrize("title", BAD)
def test_what_ruins_a_run_is_a_warning(title):
    assert found_in(changed(30, BAD[title]))[title].level == notes.WARNING
    for steps in (1, 4):  # few steps are no ground for a warning; a NaN is
        found = found_in(changed(steps, BAD[title])).values()
        warned = {note.title for note in found if note.level == notes.WARNING}
        assert warned <= {"Values that are not finite numbers"}


@pytest.mark.parametrize("metric", findings.BANDED)
def test_no_tick_stands_beside_a_figure_outside_its_healthy_range(metric):
    """The finding and the ground of the figure read one number."""
    healthy = HEALTHY[metric]
    for value, is_healthy in ((healthy.high - 0.01, True), (healthy.high + 0.01, False)):
        run = a_run(changed(12, lambda t, value=value: {f"cast/{metric}": value}))
        note = found_in(run.steps)[findings.BANDED[metric][0]]
        assert note.level == (notes.OK if is_healthy else notes.LOOK) and f"healthy: {healthy}" in note.seen
        for figure in figures.FIGURES:
            if next(iter(figure.lines.values())) == f"cast/{metric}":
                (ground,) = drawing.draw(figure, [run], (0, 13))["layout"]["shapes"]
                assert (ground["y0"] <= value <= ground["y1"]) == is_healthy
                assert str(healthy) in figure.healthy


def test_healthy_ranges_are_those_of_the_metric_table():
    for metric, healthy in HEALTHY.items():
        assert str(healthy) in metric_table.rows()[f"cast/{metric}"].healthy.lower(), metric


def test_all_settings_in_advice_can_be_pasted():
    """Every ++algorithm.cast word is a setting that CastConfig takes."""
    words = []
    for change in (*BAD.values(), *OUTSIDE):
        for note in findings.notes(a_run(changed(30, change))):
            words += re.findall(r"algorithm\.cast\.\S+=\S+", note.advice)
            assert len(re.findall(r"\w=\S", note.advice)) == len(re.findall(r"\+\+algorithm\.cast\.\S+=", note.advice))
    assert len(set(words)) >= 6
    for word in words:
        key, _, value = word.rstrip(",.").removeprefix("algorithm.cast.").partition("=")
        settings = json.loads(value) if re.fullmatch(r"[\d.]+", value) else value
        for part in reversed(key.split(".")):
            settings = {part: settings}
        CastConfig.from_dict(settings)


def test_rewards_that_never_cross_the_threshold_ask_for_no_easier_data():
    """Rewards 0, 0.2 and 0.5 vary within every group, and all lie below the threshold."""
    hard = found_in(changed(12, BAD["The task is too hard"]))
    assert "easier data" in hard["The task is too hard"].advice
    found = found_in(changed(12, BAD["Rewards vary, and never cross the threshold"]))
    note = found["Rewards vary, and never cross the threshold"]
    assert "++algorithm.cast.correct_threshold=0.25" in note.advice
    assert not any("easier data" in note.advice for note in found.values())


def test_a_step_with_one_mixed_group_does_not_speak_for_the_teacher():
    metrics = metrics_of_a_run(12)
    metrics[12]["cast/gap/correctness_corr_in_group"] = -1.0
    assert found_in(metrics)["The teacher agrees with the verifier"].level == notes.OK


def test_numbers_name_the_steps_they_are_means_of():
    metrics = metrics_of_a_run(12)
    rewards = [values["critic/score/mean"] for values in metrics.values()]
    seen = found_in(metrics)["The reward rose"].seen
    first, last = np.mean(rewards[:2]), np.mean(rewards[-2:])
    assert seen == f"Mean reward {first:.3f} over steps 1 to 2, {last:.3f} over steps 11 to 12."
    sparse = {step: values if step in (1, 5, 6, 8, 11) else {} for step, values in metrics.items()}
    assert "over step 1, " in found_in(sparse)["The reward rose"].seen


def trusted_in(steps):
    def of(t):
        step = round(t * 23) + 1
        shares = {"cast/trust/teacher_share": 0.9, "cast/trust/policy_share": 0.3} if step % 10 == 1 else {}
        return {"cast/trust/trusted": float(step in steps), **shares}

    return changed(24, of)


def test_trust_is_said_in_plain_words_and_drawn():
    some = a_run(trusted_in((*range(1, 11), 21, 22)))
    note = found_in(some.steps)["The teacher was trusted in 12 of 24 steps"]
    assert "Trusted at steps 1 to 10, steps 21 to 22; any other step was GRPO's" in note.seen
    assert "0.90 at step 1 (policy 0.30); 0.90 at step 21 (policy 0.30)" in note.seen and note.level == notes.OK
    figure = next(one for one in figures.with_data([some])["Is the teacher better?"] if one.marks)
    drawn = drawing.draw(figure, [some], (0, 25))
    assert [shape["x0"] + 0.5 for shape in drawn["layout"]["shapes"]] == [*range(1, 11), 21, 22]
    assert [trace["x"] for trace in drawn["data"]] == [[1, 11, 21]] * 2

    assert found_in(trusted_in(()))["The teacher was never trusted: the run was GRPO"].level == notes.LOOK
    assert not any("trusted" in title for title in found_in(metrics_of_a_run(12))), "no such metric, no such finding"


def test_twins_are_compared_on_common_steps_or_not_at_all():
    cast, twin = a_run(metrics_of_a_run(20)), a_run(metrics_of_a_run(10, cast=False))
    cost, reward = findings.comparison([twin, cast])
    last = [np.mean([run.steps[s]["critic/score/mean"] for s in (9, 10)]) for run in (cast, twin)]
    assert reward.seen.startswith(f"{last[0]:.3f} and {last[1]:.3f} over the last 2 of the 10 steps")
    seconds = [np.median([run.steps[s]["timing_s/step"] for s in range(2, 11)]) for run in (cast, twin)]
    assert f"(medians of 9 common steps): {seconds[0] / seconds[1]:.2f} ×" in cost.seen
    assert findings.comparison([cast, cast]) == [] == findings.comparison([twin])
    assert findings.comparison([cast, a_run(metrics_of_a_run(3, cast=False))]) == []


def test_a_run_before_its_first_step_is_called_neither(tmp_path, capsys):
    write_jsonl(tmp_path / "run" / "metrics.jsonl", {0: {"val-core/a/acc/mean@1": 0.1, "val-aux/num_turns/min": 2}})
    write_jsonl(tmp_path / "cast" / "metrics.jsonl", metrics_of_a_run(2))
    assert report(tmp_path / "run", tmp_path / "cast") == 0
    said = capsys.readouterr().out
    assert "run: not trained yet, 0 steps" in said and "No training step was logged" in said and "GRPO" not in said
    before, cast = runs.find([tmp_path / "run", tmp_path / "cast"])
    assert [note.level for note in findings.notes(before)] == [notes.LOOK]
    assert findings.comparison([cast, before]) == []


# ---- figures ----


def test_a_baseline_is_called_by_its_name_and_drawn_where_casts_numbers_stand():
    cast = a_run(metrics_of_a_run())
    renamed = {s: {n.replace("cast/", "rlsd/"): v for n, v in values.items()} for s, values in cast.steps.items()}
    baseline = a_run(renamed)
    assert (cast.kind, baseline.kind) == ("CAST", "RLSD, not CAST") and not baseline.is_cast
    assert figures.series(baseline, "cast/gap/mean") == figures.series(cast, "cast/gap/mean") != {}
    cost = {"Cost"}  # what is healthy for CAST is said only of CAST
    assert cost <= found_in(cast.steps).keys() and not cost <= found_in(baseline.steps).keys()


def test_a_run_without_cast_is_in_no_figure_about_cast_and_no_figure_is_empty():
    twin = a_run(metrics_of_a_run(12, cast=False))
    drawn = [figure for chosen in figures.with_data([twin]).values() for figure in chosen]
    titles = {"Mean reward", "Validation: chain_sum/acc/mean@4", "Entropy of the policy", "Response length"}
    assert {figure.title for figure in drawn} == titles
    for figure in drawn:
        assert [len(trace["x"]) > 0 for trace in drawing.draw(figure, [twin], (0, 13))["data"]] == [True]


def test_a_runs_name_is_text_in_a_figure():
    """plotly reads some HTML in names."""
    both = [runs.Run(name, metrics_of_a_run(2), None) for name in ("<b>a</b>", "b")]
    drawn = drawing.draw(figures.FIGURES[0], both, (0, 3))
    assert [trace["name"] for trace in drawn["data"]] == ["&lt;b&gt;a&lt;/b&gt;", "b"]


def test_every_metric_in_a_figure_or_a_finding_is_one_that_is_logged():
    """A figure of a metric that is never logged would never be drawn, and no other test would fail."""
    assert len({figure.title for figure in figures.FIGURES}) == len(figures.FIGURES)
    named = {part for figure in figures.FIGURES for metric in figure.lines.values() for part in metric.split(" over ")}
    named |= {metric for figure in figures.FIGURES for pair in figure.between for metric in pair}
    named |= {f"cast/{name}" for name in HEALTHY}
    of_verl = {"critic/score/mean", "actor/entropy", "response_length/mean", "timing_s/step"}
    assert named - of_verl <= metric_table.rows().keys()


def test_a_correlation_within_few_mixed_groups_is_not_drawn():
    """From one mixed group it is +1 or -1 by chance. Where their number was not logged, every step is drawn."""
    metrics = metrics_of_a_run(4)
    assert list(figures.series(a_run(metrics), figures.IN_MIXED_GROUPS)) == [1, 2, 3, 4]
    for step, count in {1: 3, 2: 4, 3: 0, 4: 1}.items():
        metrics[step]["cast/group/mixed_count"] = float(count)
    in_group = metrics[2]["cast/gap/correctness_corr_in_group"]
    assert figures.series(a_run(metrics), figures.IN_MIXED_GROUPS) == {2: in_group}


# ---- the page, in a browser ----


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROME") or next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    if path is None:
        reason = "no Chromium: install it, or name it with CHROME=/path/to/chromium"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium cannot use its sandbox as root, the user in most containers. The pages are our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(page, rows by step, metrics) of a CAST run and its GRPO twin.

    The last dump's first response is hostile, and its third token has a tiny gap.
    """
    root = tmp_path_factory.mktemp("pair")
    metrics = {name: metrics_of_a_run(12, cast=name == "cast") for name in ("cast", "grpo")}
    for name, values in metrics.items():
        write_jsonl(root / name / "metrics.jsonl", values)
    directory = root / "cast" / "cast_trajectories"
    written = write_dump(directory, steps=(5, 10), deadzone=0.2)
    row = written[10][0]
    row["gap"][2], row["old_log_probs"][2], row["teacher_log_probs"][2] = -3e-6, -0.1, -0.100003
    row["response_text"][0], row["response_text"][1] = HOSTILE, "\n\n"
    row["messages"] = json.dumps([{"role": "user", "content": f"{HOSTILE} {{{{ 7 * 7 }}}}"}])
    row["teacher_prompt"] = HOSTILE
    trajectories.write(directory, 10, written[10], model=f"/models/{HOSTILE}", cast={"flip": "correct", "x": HOSTILE})
    assert report(root / "cast", root / "grpo") == 0
    return root / "cast" / "report.html", written, metrics


@pytest.fixture
def open_page(browser):
    """open_page(path) -> a page in a browser without network. A request, or a line on the console, fails the test."""
    contexts, wrong = [], []

    def open_(path, **kwargs):
        contexts.append(browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **kwargs}))
        contexts[-1].set_default_timeout(100_000)  # a busy machine is slow, which is no fault of the page
        page = contexts[-1].new_page()
        page.on("request", lambda one: one.url in (path.as_uri(), "data:,") or wrong.append(one.url))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def drawn(page):
    page.wait_for_selector("html[data-figures=drawn]")
    return page


def shown_step(page):
    return page.locator("#choose-step").evaluate("s => s.selectedOptions[0].text")


def test_figures_are_drawn_with_every_point_and_a_click_shows_the_nearest_dumped_step(pair, open_page):
    path, _, metrics = pair
    page = drawn(open_page(path))
    titles = page.eval_on_selector_all(".plot", "nodes => nodes.map(n => n.dataset.figure)")
    assert {"Groups", "Correlation of gap and correctness", "CAST's share of a step"} <= set(titles)
    points = "n => [...n.querySelectorAll('.scatterlayer .trace')].map(t => t.querySelectorAll('path.point').length)"
    reward = "[data-figure='Mean reward']"
    assert page.eval_on_selector(reward, points) == [12, 12]
    assert page.eval_on_selector("[data-figure='Flipped tokens']", points) == [12, 12]  # correct, wrong: only CAST's
    for trace, name in zip(page.eval_on_selector(reward, "n => n.data.map(t => t.y)"), ("cast", "grpo"), strict=True):
        np.testing.assert_allclose(trace, [v["critic/score/mean"] for v in metrics[name].values()], rtol=1e-4)
    axes = page.eval_on_selector_all(".plot", "nodes => nodes.map(n => n._fullLayout.xaxis.range)")
    assert all(axis == axes[0] for axis in axes)

    assert shown_step(page) == "10", "the page opens with the newest step"
    fourth = page.locator(f"{reward} .scatterlayer path.point").nth(3)
    fourth.scroll_into_view_if_needed()
    box = fourth.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # step 4; dumps are of steps 5 and 10
    page.wait_for_function("document.getElementById('choose-step').selectedOptions[0].text === '5'")


def test_dark_mode_follows_the_system_until_the_reader_chooses(pair, open_page):
    def shown(page):
        colours = "s => getComputedStyle(document.querySelector(s))"
        return (
            page.evaluate(f"({colours})('body').backgroundColor"),
            page.evaluate(f"({colours})('.plot .xtick text').fill"),
            page.evaluate(f"({colours})('.response .tok[style*=background]').backgroundColor"),
        )

    light = shown(drawn(open_page(pair[0], color_scheme="light")))
    page = drawn(open_page(pair[0], color_scheme="dark"))
    assert all(a != b for a, b in zip(light, shown(page), strict=True))
    page.get_by_role("button", name="dark").click()
    assert shown(page) == light


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(pair, open_page, width):
    page = drawn(open_page(pair[0], viewport={"width": width, "height": 800}, has_touch=width == 390))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    places = [page.locator(place).bounding_box()["y"] for place in ("#findings", "#figures", "#trajectory")]
    assert places == sorted(places)
    plot, figure = (page.locator(s).first.bounding_box() for s in (".plot .main-svg", "figure"))
    assert plot["width"] <= figure["width"]


def rows_of_group(rows, group):
    return [row for row in rows if row["kind"] == KINDS[group]]


def test_trajectory_view_shows_the_dump_and_nothing_of_it_runs(pair, open_page):
    path, written, _ = pair
    page = drawn(open_page(path))
    rows = rows_of_group(written[10], 0)  # the page opens with the newest step and its mixed group
    assert page.locator(".response").count() == len(rows)
    for i, row in enumerate(rows):
        response = page.locator(".response").nth(i)
        assert response.locator(".tok").count() == len(row["response_text"])
        assert response.locator(".tok.flip").count() == sum(row["flipped"])
        assert response.locator(".tok.masked").count() == row["response_mask"].count(False)
        header = response.locator("summary").inner_text()
        assert ("✓ correct" if row["correct"] else "✗ wrong") in header and f"{sum(row['flipped'])} flipped" in header
    first = page.locator(".response").first.locator(".tok")
    assert first.nth(0).text_content() == HOSTILE and first.nth(1).text_content() == "↵\n↵\n"
    assert page.evaluate("window.hacked") is None and page.locator("main img").count() == 0
    assert page.locator("#prompt pre").first.text_content() == f"{HOSTILE} {{{{ 7 * 7 }}}}"

    # Colours show the sign of the value.
    signs = {"positive": 1, "negative": -1}
    for name, values in (("advantage Â", rows[0]["advantages"]), ("gap g", rows[0]["gap"])):
        page.locator(".toggle label", has_text=name).click()
        for i, value in enumerate(values):
            colour = re.search("--(positive|negative)", first.nth(i).evaluate("t => t.style.background"))
            assert (signs[colour[1]] if colour else 0) == np.sign(value)


def tooltip(page):
    names, values = (page.locator(f"#tooltip {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return {name: float(value.replace("−", "-")) for name, value in zip(names, values, strict=True)}


def of_token(row, i):
    numbers = {
        "gap g": row["gap"][i],
        "p policy": math.exp(row["old_log_probs"][i]),
        "p teacher": math.exp(row["teacher_log_probs"][i]),
        "base B": row["base_advantage"],
        "advantage Â": row["advantages"][i],
    }
    return pytest.approx(numbers, abs=6e-4)


def test_tooltip_has_the_tokens_numbers_by_mouse_and_by_keyboard(pair, open_page):
    path, written, _ = pair
    page = open_page(path)
    row = rows_of_group(written[10], 0)[0]
    tokens = page.locator(".response").first.locator(".tok")
    exact = [old == teacher for old, teacher in zip(row["old_log_probs"], row["teacher_log_probs"], strict=True)]
    within = next(i for i, gap in enumerate(row["gap"]) if gap == 0 and not exact[i])
    for i, in_deadzone in ((2, False), (exact.index(True), False), (within, True)):
        tokens.nth(i).hover()
        text = page.locator("#tooltip").inner_text()
        assert tooltip(page) == of_token(row, i) and json.dumps(row["response_text"][i]) in text
        assert ("dead zone" in text) == in_deadzone
    below, above = (page.locator(s).bounding_box() for s in ("[aria-describedby=tooltip]", "#tooltip"))
    assert abs(above["x"] - below["x"]) < 300 and abs(above["y"] - below["y"]) < 300
    page.mouse.move(1, 1)
    assert page.locator("#tooltip").is_hidden()

    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert tooltip(page) == of_token(row, 2) and tooltip(page)["gap g"] == pytest.approx(-3e-6), "no gap looks like 0"
    page.keyboard.press("f")
    assert tooltip(page) == of_token(row, row["flipped"].index(True, 3))
    assert "flipped" in page.locator("#tooltip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()


def test_choosing_step_and_group(pair, open_page):
    path, written, _ = pair
    page = open_page(path)
    page.locator("#choose-step").select_option(label="5")
    table = [row.split("\t") for row in page.locator("#group-table tbody").inner_text().split("\n")]
    groups = [rows_of_group(written[5], g) for g in range(3)]
    assert [row[1].strip() for row in table] == [kind.replace("_", " ") for kind in KINDS]
    assert [row[2] for row in table] == [f"{sum(r['correct'] for r in g)} / {len(g)}" for g in groups]
    for cells, rows in zip(table, groups, strict=True):
        tokens = sum(sum(r["response_mask"]) for r in rows)
        assert float(cells[3]) == pytest.approx(sum(abs(a) for r in rows for a in r["advantages"]) / tokens, abs=0.006)
        flipped = 100 * sum(sum(r["flipped"]) for r in rows) / tokens
        assert float(cells[4].rstrip(" %")) == pytest.approx(flipped, abs=0.06)
    page.locator("#group-table tbody tr").nth(2).locator("button").press("Enter")
    assert page.locator(".response").first.locator(".tok").count() == len(groups[2][0]["response_text"])
    assert page.locator("#group-table tr.chosen").evaluate("r => r.rowIndex") == 3


def test_the_text_is_there_without_javascript(pair, open_page):
    text = open_page(pair[0], java_script_enabled=False).locator("body").inner_text()
    for expected in ("not CAST", "The reward rose", "cast and grpo: cost", "below 0.6", "algorithm.cast.x"):
        assert expected in text


def test_what_had_no_room_and_what_could_not_be_read_is_said(tmp_path, capsys, open_page):
    import pyarrow.parquet as pq

    write_jsonl(tmp_path / "cast" / "metrics.jsonl", metrics_of_a_run(4))
    directory = tmp_path / "cast" / "cast_trajectories"
    written = write_dump(directory, steps=(1, 2, 3, 4, 5))
    tokens = {step: sum(len(row["response_ids"]) for row in rows) for step, rows in written.items()}
    trajectories.write(directory, 3, written[3], model="m", cast={"flip": "none"})
    cut, other = directory / "step_00000002.parquet", directory / "step_00000004.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    table = pq.read_table(other)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"verl_cast_dump": b"99"}), other)
    assert report(tmp_path / "cast", "--max-tokens", tokens[1] + tokens[5]) == 0
    said = capsys.readouterr().out
    assert "algorithm.cast at step 3 differs from the newest dump" in said
    assert f"{cut} is no whole Parquet file" in said and f"{other} is a trajectory dump of version 99" in said
    assert "It shows 6 groups, of 2 of the 5 dumped steps: the newest and the first ones" in said
    page = open_page(tmp_path / "cast" / "report.html")
    assert page.locator(".remarks li").count() == 4
    assert page.locator("#choose-step option").all_inner_texts() == ["1", "5"]


def test_dumps_without_metrics_and_metrics_without_dumps(tmp_path, open_page):
    cast = {"flip_groups": "zero_variance", "base_correct": 0.0, "teacher": {"context": "teacher.jinja"}}
    write_dump(tmp_path / "dump" / "cast_trajectories", steps=(1,), cast=cast, groups=1, size=2, teacher_prompt=None)
    assert report(tmp_path / "dump") == 0
    page = open_page(tmp_path / "dump" / "report.html")
    assert page.locator(".plot").count() == 0 and page.locator(".response").count() == 2
    assert "The teacher saw the student's own prompt." in page.locator("#prompt").inner_text()
    settings = "flip_groups=zero_variance base_correct=0 teacher.context=teacher.jinja"
    assert settings in page.locator(".head").inner_text()

    write_jsonl(tmp_path / "grpo" / "metrics.jsonl", metrics_of_a_run(90, cast=False))
    assert report(tmp_path / "grpo") == 0
    page = drawn(open_page(tmp_path / "grpo" / "report.html"))
    assert page.locator("#groups").count() == 0 and page.locator("[data-figure='Mean reward'] .trace").count() == 1

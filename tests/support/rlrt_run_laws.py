"""Laws of RLRT's real run on the tiny model, checked on its metrics and its training batches."""

import re

import pytest
import reference_baselines
import tiny
import torch

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def check(run, temperature: float) -> None:
    """Checks step 1 of a finished run (verl_run.Run, with run_tools): advantages, teacher log-probs, metric names.

    Args:
        temperature: the run's sampling temperature.
    """
    metrics = run.metrics[0]
    assert metrics["rlrt/teacher/forward"] == metrics["rlrt/one_pass"] == 1 and "rlrt/gap_weight" in metrics
    assert not [key for key in metrics if key.startswith("cast/")], "no number of a baseline says CAST"
    assert "CAST is active" not in run.output and "(a baseline, not CAST) is active" in run.output

    assert "verl_cast.teacher.privileged" in run.batch(1)["privileged"]
    rows = run.batch(1)["rows"]
    prompts = [tiny.tokenizer().decode(row["prompts"]) for row in rows]
    peers_used = 0
    for i, row in enumerate(rows):
        group = [j for j, prompt in enumerate(prompts) if prompt == prompts[i]]
        scores = {j: float(rows[j]["rm_scores"].sum()) for j in group}
        advantage = _check_advantages(row, scores, i)
        if (advantage == 0 or scores[i] <= 0.5) and (row["teacher_log_probs"] == 0).all():
            continue  # not scored: its advantage does not depend on the teacher
        peers_used += _check_teacher(row, prompts[i], [rows[j] for j in group if scores[j] > 0.5], temperature)
    assert peers_used, "no group had a correct response: nothing was shown"


def _check_advantages(row: dict, scores: dict[int, float], i: int) -> float:
    """Checks the tokens' advantages. Returns GRPO's advantage of the response."""
    values = torch.tensor(list(scores.values()), dtype=torch.float64)
    A = float((scores[i] - values.mean()) / (values.std() + 1e-6))
    gaps = (row["teacher_log_probs"] - row["old_log_probs"]).double().tolist()
    for t, (gap, mask) in enumerate(zip(gaps, row["response_mask"].tolist(), strict=True)):
        expected = reference_baselines.rlrt(A, gap, scores[i] > 0.5) if mask else 0.0
        assert float(row["advantages"][t]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    return A


def _check_teacher(row: dict, prompt: str, correct_rows: list[dict], temperature: float) -> bool:
    """Checks the teacher's log-probs. In step 1 it is the untrained model; it reads a correct peer. Is there one?"""
    tokenizer, problem = tiny.tokenizer(), re.search(r"What is \d+ \+ \d+\?", prompt)[0]
    same = [other for other in correct_rows if other is row]
    others = [other for other in correct_rows if other is not row] or same
    peers = [tokenizer.decode(other["responses"], skip_special_tokens=True) for other in others]
    shown = [f"[Correct rollout]\n{peer}\n\n" for peer in peers if peer] or [""]
    contexts = [f"{problem}\n\n{INSTRUCTION}\n\n{text}[Student response]\n" for text in shown]
    log_probs = [_log_probs(context, row["responses"], temperature) for context in contexts]
    distances = [float((one - row["teacher_log_probs"]).abs().max()) for one in log_probs]
    assert min(distances) < 1e-4, distances
    return shown != [""]


@torch.no_grad()
def _log_probs(context: str, response: torch.Tensor, temperature: float) -> torch.Tensor:
    prompt = tiny.tokenizer()(context)["input_ids"]
    logits = tiny.model()(torch.tensor([[*prompt, *response.tolist()]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, response[:, None])[:, 0]

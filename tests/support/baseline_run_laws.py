"""Laws of a baseline's real run on the tiny model, checked on its metrics and its training batches."""

import re

import pytest
import reference_baselines
import tiny
import torch

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
NOTE = (
    "\n\nFor your eyes only, the reference answer to this problem:\n{answer}\n\n"
    "Work towards it step by step as if you did not know it, in the form that the problem asks for."
)


def check(run, name: str, temperature: float = 1.0) -> None:
    """Checks step 1 of a finished run (verl_run.Run, with run_tools): advantages, teacher log-probs, metric names.

    Args:
        temperature: the run's sampling temperature.
    """
    metrics = run.metrics[0]
    assert metrics[f"{name}/teacher/forward"] == metrics[f"{name}/one_pass"] == 1 and f"{name}/gap_weight" in metrics
    assert not [key for key in metrics if key.startswith("cast/")], "no number of a baseline says CAST"
    assert "CAST is active" not in run.output and "(a baseline, not CAST) is active" in run.output

    assert "verl_cast.teacher.privileged.shown" in run.batch(1)["privileged"]
    rows = run.batch(1)["rows"]
    prompts = [tiny.tokenizer().decode(row["prompts"]) for row in rows]
    peers_used = 0
    for i, row in enumerate(rows):
        group = [j for j, prompt in enumerate(prompts) if prompt == prompts[i]]
        scores = {j: float(rows[j]["rm_scores"].sum()) for j in group}
        advantage = _check_advantages(name, row, scores, i)
        needs_gap = name in ("opsd", "grpo_opsd") or (advantage != 0 and (name == "rlsd" or scores[i] > 0.5))
        if not needs_gap and (row["teacher_log_probs"] == 0).all():
            continue  # not scored: its advantage does not depend on the teacher
        peers_used += _check_teacher(name, row, prompts[i], [rows[j] for j in group if scores[j] > 0.5], temperature)
    assert peers_used or name != "rlrt", "no group had a correct response: nothing was shown"


def _check_advantages(name: str, row: dict, scores: dict[int, float], i: int) -> float:
    """Checks the tokens' advantages. Returns GRPO's advantage of the response."""
    values = torch.tensor(list(scores.values()), dtype=torch.float64)
    A = float((scores[i] - values.mean()) / (values.std() + 1e-6))
    rule = getattr(reference_baselines, name)
    kwargs = {"step": 0} if name == "rlsd" else {}
    gaps = (row["teacher_log_probs"] - row["old_log_probs"]).double().tolist()
    for t, (gap, mask) in enumerate(zip(gaps, row["response_mask"].tolist(), strict=True)):
        expected = rule(A, gap, scores[i] > 0.5, **kwargs) if mask else 0.0
        assert float(row["advantages"][t]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    return A


def _check_teacher(name: str, row: dict, prompt: str, correct_rows: list[dict], temperature: float) -> bool:
    """Checks the teacher's log-probs. In step 1 every teacher is the untrained model, with its method's context."""
    problem = re.search(r"What is (\d+) \+ (\d+)\?", prompt)
    answer = str(int(problem[1]) + int(problem[2]))
    tokenizer = tiny.tokenizer()
    plain = f"{problem[0]}\n\n{INSTRUCTION}\n\n"
    if name in ("opsd", "grpo_opsd"):
        contexts = [f"<|im_start|>user\n{problem[0]}{NOTE.format(answer=answer)}<|im_end|>\n<|im_start|>assistant\n"]
    elif name == "rlsd":
        contexts = [f"{plain}[Reference solution]\n{answer}\n\n[Student response]\n"]
    else:
        same = [other for other in correct_rows if other is row]
        others = [other for other in correct_rows if other is not row] or same
        shown = [tokenizer.decode(other["responses"], skip_special_tokens=True) for other in others]
        contexts = [f"{plain}[Correct rollout]\n{text}\n\n[Student response]\n" for text in shown if text]
        contexts = contexts or [f"{plain}[Student response]\n"]
    log_probs = [_log_probs(context, row["responses"], temperature) for context in contexts]
    distances = [float((one - row["teacher_log_probs"]).abs().max()) for one in log_probs]
    assert min(distances) < 1e-4, (name, distances)
    return "[Correct rollout]" in contexts[0]


@torch.no_grad()
def _log_probs(context: str, response: torch.Tensor, temperature: float) -> torch.Tensor:
    prompt = tiny.tokenizer()(context)["input_ids"]
    logits = tiny.model()(torch.tensor([[*prompt, *response.tolist()]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, response[:, None])[:, 0]

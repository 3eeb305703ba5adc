"""The tour: one group of responses through CAST, with all numbers on the screen.

    python examples/tour.py DIR         (bash examples/tour.sh names DIR)

The column "verl_cast" is what `verl_cast.advantage` computes, which is what a run trains on. The column "by hand" is
the formula in ten lines of this file. DIR gets a trajectory dump of the group and the report's picture of it.
"""

import contextlib
import io
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from verl_cast import CastConfig, trajectories
from verl_cast.advantage.compute import TokenAdvantage, compute_advantage
from verl_cast.tools import cli

PROBLEM = "What is 17 + 25?"
# Every response: its verifier's reward, and its tokens with the probabilities that policy and teacher give them. The
# probabilities are made up. In a run they come from two forwards of one model with two contexts.
RESPONSES = [
    (1, [("17", 0.80, 0.90), (" +", 0.95, 0.97), (" 25", 0.90, 0.96), (" =", 0.95, 0.94), (" 42", 0.55, 0.85)]),
    (1, [("It", 0.15, 0.02), (" is", 0.90, 0.92), (" 42", 0.50, 0.80), (".", 0.70, 0.75)]),
    (0, [("17", 0.80, 0.90), (" +", 0.95, 0.97), (" 25", 0.90, 0.96), (" =", 0.95, 0.94), (" 32", 0.30, 0.06)]),
    (0, [("17", 0.80, 0.90), (" +", 0.95, 0.97), (" 52", 0.05, 0.01), (" =", 0.95, 0.96), (" 69", 0.60, 0.66)]),
]
HEADER = (
    f"   {'token':7}{'policy':>8}{'teacher':>9}{'gap':>8}{'s':>4}{'e^(s·g)':>9}{'w':>7}{'by hand':>9}{'verl_cast':>11}"
)


def tensors(responses: list) -> tuple[torch.Tensor, ...]:
    """Rewards, mask, log π_old and log π_teacher of these responses, each (B, T), padded on the right."""
    length = max(len(tokens) for _, tokens in responses)
    rewards, mask, old, teacher = (torch.zeros(len(responses), length, dtype=torch.float64) for _ in range(4))
    for row, (reward, tokens) in enumerate(responses):
        rewards[row, len(tokens) - 1] = reward  # verl puts a response's reward at its last token
        for t, (_, policy, teachers) in enumerate(tokens):
            mask[row, t], old[row, t], teacher[row, t] = 1, math.log(policy), math.log(teachers)
    return rewards, mask, old, teacher


def computed(responses: list) -> TokenAdvantage:
    """What verl_cast makes of the group, with the defaults of the paper's run."""
    rewards, mask, old, teacher = tensors(responses)
    return compute_advantage(rewards, mask, [0] * len(responses), old, teacher, CastConfig())


def by_hand(B: float, g: float, config: CastConfig) -> tuple[bool, float, float, float, float]:
    """One token: whether it flips, s, exp(s·g), w and the advantage."""
    flips = (B > 0 and g < 0) or (B < 0 and g > 0)
    sign = math.copysign(1, B)
    s = -sign if flips else sign
    raw_weight = math.exp(s * g)
    low, high = config.positive_clip if s > 0 else config.negative_clip
    w = min(max(raw_weight, low), high)
    advantage = s * abs(B) * (1 + config.gap_weight * (w - 1))
    clip = config.advantage_clip
    return flips, s, raw_weight, w, min(max(advantage, -clip), clip)


def table(responses: list, result: TokenAdvantage, rows: range) -> None:
    """The tokens of these rows: the formula by hand, beside verl_cast's own advantages."""
    for row in rows:
        reward, tokens = responses[row]
        B = float(result.base.value[row])
        print(f'   response {row + 1}: reward {reward}, B = {B:+.3f}: "{"".join(text for text, _, _ in tokens)}"')
        print(HEADER)
        for t, (text, policy, teacher) in enumerate(tokens):
            g = float(result.gap[row, t])
            flips, s, raw_weight, w, advantage = by_hand(B, g, CastConfig())
            print(
                f"   {text:7}{policy:8.2f}{teacher:9.2f}{g:+8.3f}{'+' if s > 0 else '-':>4}{raw_weight:9.3f}{w:7.3f}"
                f"{advantage:+9.3f}{float(result.advantages[row, t]):+11.3f}{'   flipped' if flips else ''}"
            )
        print()


def picture(directory: Path, result: TokenAdvantage) -> Path:
    """A trajectory dump of the group, as a run writes it, and the report's page about it."""
    _, mask, old, teacher = tensors(RESPONSES)
    ids = {text: i for i, text in enumerate(dict.fromkeys(text for _, tokens in RESPONSES for text, _, _ in tokens))}
    columns = {
        "old_log_probs": old,
        "teacher_log_probs": teacher,
        "gap": result.gap,
        "advantages": result.advantages,
        "flipped": result.flipped,
        "response_mask": mask.bool(),
    }
    rows = [
        {
            "step": 1,
            "group": "tour",
            "row": f"tour_{row}_0",
            "messages": json.dumps([{"role": "user", "content": PROBLEM}]),
            "reference": "42",
            "prompt_ids": [],
            "teacher_prompt": f"{PROBLEM}\n",
            "response_ids": [ids[text] for text, _, _ in tokens],
            "response_text": [text for text, _, _ in tokens],
            **{name: values[row, : len(tokens)].tolist() for name, values in columns.items()},
            "reward": reward,
            "correct": bool(result.base.correct[row]),
            "kind": "mixed",
            "base_advantage": float(result.base.value[row]),
            "teacher_age": 0,
        }
        for row, (reward, tokens) in enumerate(RESPONSES)
    ]
    about = {"model": "none: made-up numbers", "cast": asdict(CastConfig())}
    trajectories.write(directory / trajectories.DIRECTORY, 1, rows, **about)
    page = directory / "report.html"
    said = io.StringIO()  # that this run has no curves
    with contextlib.redirect_stdout(said):
        status = cli.main(["report", str(directory), "-o", str(page)])
    if status:
        raise SystemExit(said.getvalue())
    return page


def main(directory: Path) -> None:
    config, result = CastConfig(), computed(RESPONSES)
    print(f"""CAST in one group of responses. The probabilities are made up, the formulas are verl_cast's.

1. Rewards. The policy answered "{PROBLEM}" four times. The verifier gave {", ".join(str(r) for r, _ in RESPONSES)}.

2. B, the base advantage. Correct and wrong responses stand in one group (it is mixed), so B is GRPO's:
   (reward − mean) / (standard deviation + 1e-6). The mean is 0.5 and the deviation 0.577, so B is +0.866 or -0.866.

3. The gap. The teacher is the policy's own copy; it reads the problem as plain text and no answer. It scores the same
   tokens: g = ln(teacher's probability) − ln(policy's). Above 0, the teacher likes the token more than the policy did.

4. Flips. s is the sign that the token's advantage gets. It is B's, unless gap and verifier disagree:
   B > 0 and g < 0 (the teacher doubts a token of a correct response), or B < 0 and g > 0 (it likes one of a wrong one).

5. The advantage. The weight w = e^(s·g), kept in [{", ".join(f"{x:g}" for x in config.positive_clip)}] for s = +, in \
[{", ".join(f"{x:g}" for x in config.negative_clip)}] for s = -.
   The advantage is s · |B| · w, kept in ±{config.advantage_clip:g}.
""")
    table(RESPONSES, result, range(len(RESPONSES)))
    print("""   In response 3 the verifier blames all five tokens alike. The teacher likes the first three more than the
   policy did, so they flip: they are reinforced. The wrong " 32" is blamed more than its B (w > 1). In response 4 the
   wrong " 52" is blamed, and what follows from it is reinforced: the teacher judges a token after those before it.

6. No contrast. Were all four wrong, GRPO's advantages would be 0. CAST takes B = -1; the teacher still sorts tokens:
""")
    all_wrong = [(0, tokens) for _, tokens in RESPONSES]
    table(all_wrong, computed(all_wrong), range(2, 3))
    print("7. The picture. The same tokens in the report, as a run with algorithm.cast.dump shows them:")
    print(f"   open {picture(directory, result)} in a browser; hover over a token for its numbers.")
    print("   Next: bash examples/quickstart.sh trains a small model. The method's page: verl_cast/advantage/README.md")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

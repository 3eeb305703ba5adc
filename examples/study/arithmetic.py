"""Study (b): SmolLM2-135M-Instruct on sums, in a plain loop that computes every prompt once a group.

    python examples/study/arithmetic.py                 every cell and arm, 5 seeds; goes on where it was stopped
    python examples/study/arithmetic.py --measure       accuracy and mixed groups of each context before training
    python examples/study/arithmetic.py --long          30 steps instead of 20, in the cell where these do not decide

Needs the quick start's model (.quickstart/model, or --model).
"""

import argparse
import copy
import dataclasses
import itertools
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from course import ARMS, HELD_OUT, Cell, Plan, Responses, append, course, pending
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from verl_cast.teacher.context import TeacherContext

HERE = Path(__file__).parent
RAW = HERE / "raw"
MODEL = HERE.parents[1] / ".quickstart" / "model"
CONTEXTS = {
    "dense": HERE.parent / "quickstart" / "teacher.jinja",
    "medium": HERE / "contexts" / "medium.jinja",
    "sparse": HERE / "contexts" / "sparse.jinja",
}

PLAN = Plan(steps=20, problems=6, n=8, learning_rate=1e-5, evaluate_every=20, block=2)
LONG = dataclasses.replace(PLAN, steps=30, evaluate_every=10)
TEMPERATURE, TOP_K, MAX_TOKENS = 0.7, 20, 16
ARMS_BY_NEED = ["grpo", "tenth_deadzone", "exact", "weights_only", "zero_variance_small", "no_flip"]
QUESTION = "State the final answer to the following arithmetic problem: {} ="


def problems_of(density: str) -> list[tuple[str, int]]:
    """(question, answer) of every problem of a density that the context does not show, in a fixed random order."""
    one, two = range(10), range(10, 100)
    if density == "dense":  # sums of one digit
        pairs = [(f"{a} + {b}", a + b) for a, b in itertools.product(one, repeat=2)]
    elif density == "medium":  # sums of one digit and two
        pairs = [(f"{a} + {b}", a + b) for a, b in [*itertools.product(two, one), *itertools.product(one, two)]]
    else:  # sums and differences of two digits
        pairs = [(f"{a} + {b}", a + b) for a, b in itertools.product(two, repeat=2)]
        pairs += [(f"{a} - {b}", a - b) for a, b in itertools.product(two, repeat=2) if a >= b]
    shown = CONTEXTS[density].read_text()
    problems = [(QUESTION.format(terms), answer) for terms, answer in pairs if f'"{terms} =' not in shown]
    random.Random(0).shuffle(problems)
    return problems


def cells() -> dict[str, Cell]:
    found = {}
    for density in CONTEXTS:
        problems = problems_of(density)
        held_out = min(HELD_OUT, len(problems) // 3)  # there are not 200 sums of one digit
        for fitness, teacher in (("fit", density), ("equal", "same"), ("unfit", "plain")):
            name = f"{density}_{fitness}"
            found[name] = Cell(name, problems[held_out:], problems[:held_out], "same", teacher)
    return found


class SmolLM:
    """The policy. Each forward reads what all prompts begin with once, then the rest of each prompt once a group.

    Equal responses of a group are computed once, too: the gradient is the same.
    """

    group_batch = PLAN.problems

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, directory: Path) -> "SmolLM":
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
        return cls(model, AutoTokenizer.from_pretrained(directory))

    def snapshot(self) -> "SmolLM":
        return SmolLM(copy.deepcopy(self.model), self.tokenizer)

    def prompts(self, problems, context: str) -> list[list[int]]:
        """The ids of each problem's prompt."""
        template = CONTEXTS[context].read_text() if context in CONTEXTS else None
        built = TeacherContext(context, template, self.tokenizer)
        rows = []
        for question, _ in problems:
            messages = [{"role": "user", "content": question}]
            own = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            rows.append(built.prompt_ids(messages, own))
        return rows

    def _read_prompts(self, problems, rows: torch.Tensor, context: str):
        """The prompts' cache and mask, and the logits after them (N, V). `rows` (N,): the problem of each row."""
        prompts = self.prompts(problems, context)
        beginning = os.path.commonprefix([prompt[:-1] for prompt in prompts])  # each keeps a token of its own
        rests = [prompt[len(beginning) :] for prompt in prompts]
        length = max(map(len, rests))
        ids = torch.tensor([[0] * (length - len(rest)) + rest for rest in rests])
        mask = torch.tensor([[1] * len(beginning) + [0] * (length - len(rest)) + [1] * len(rest) for rest in rests])
        positions = mask.cumsum(dim=-1)[:, len(beginning) :] - 1
        cache = DynamicCache()
        if beginning:
            self.model(input_ids=torch.tensor([beginning]), past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(len(prompts))
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        cache.batch_select_indices(rows)
        return cache, mask[rows], output.logits[:, -1][rows]

    def _read(self, tokens: torch.Tensor, cache, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits after further tokens (N, t), and the longer mask."""
        first = mask.sum(dim=-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=-1)
        positions = first + torch.arange(tokens.shape[1])
        logits = self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        return logits, mask

    def sample(self, problems, n, context, generator) -> Responses:
        cache, mask, logits = self._read_prompts(problems, torch.arange(len(problems)).repeat_interleave(n), context)
        end, rows = self.tokenizer.eos_token_id, len(problems) * n
        tokens, masks, running = [], [], torch.ones(rows, dtype=torch.int64)
        for _ in range(MAX_TOKENS):
            top = torch.topk(logits / TEMPERATURE, TOP_K)
            choice = torch.multinomial(top.values.softmax(dim=-1), 1, generator=generator)
            token = torch.where(running.bool(), top.indices.gather(-1, choice)[:, 0], end)
            tokens.append(token)
            masks.append(running)
            running = running * (token != end)
            if not running.any():
                break
            logits, mask = self._read(token[:, None], cache, mask)
            logits = logits[:, -1]
        tokens, masks = torch.stack(tokens, dim=-1), torch.stack(masks, dim=-1)
        answers = [answer for _, answer in problems for _ in range(n)]
        rewards = [
            graded(self.tokenizer.decode(row[kept.bool()], skip_special_tokens=True), answer)
            for row, kept, answer in zip(tokens, masks, answers, strict=True)
        ]
        return Responses(tokens, masks, torch.tensor(rewards))

    def log_probs(self, problems, responses, n, context) -> torch.Tensor:
        problem = torch.arange(len(problems)).repeat_interleave(n)
        rows, inverse = torch.cat([problem[:, None], responses.tokens], dim=1).unique(dim=0, return_inverse=True)
        problem, tokens = rows[:, 0], rows[:, 1:]
        cache, mask, first = self._read_prompts(problems, problem, context)
        logits, _ = self._read(tokens[:, :-1], cache, mask)
        logits = torch.cat([first[:, None], logits], dim=1) / TEMPERATURE
        return (logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1))[inverse]


def graded(text: str, answer: int) -> float:
    """As the quick start's verifier: the last whole number of the response is the answer."""
    numbers = re.findall(r"-?\d+", text)
    return float(bool(numbers) and int(numbers[-1]) == answer)


def measure(model: Path, names: Sequence[str]) -> None:
    policy, found = SmolLM.load(model), cells()
    for name, cell in ((name, found[name]) for name in names):
        for side, context in (("student", cell.student), ("teacher", cell.teacher)):
            with torch.no_grad():
                rewards = policy.sample(cell.held_out[:50], PLAN.n, context, torch.Generator().manual_seed(0)).rewards
            by_problem = rewards.view(-1, PLAN.n).mean(dim=1)
            error = by_problem.std() / len(by_problem) ** 0.5
            mixed = ((by_problem > 0) & (by_problem < 1)).float().mean()
            print(f"{name:16s} {side} {rewards.mean():.3f} (± {error:.3f}), mixed groups {mixed:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100, help="seeds below 100 gave the leads")
    parser.add_argument("--arms", help="by default all, or grpo and tenth_deadzone with --long")
    parser.add_argument("--cells", help="by default all, or sparse_fit with --long")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--long", action="store_true")
    args = parser.parse_args()
    plan, results, names, arms = PLAN, RAW / "arithmetic.jsonl", list(cells()), ARMS_BY_NEED
    if args.long:
        plan, results, names, arms = LONG, RAW / "arithmetic_long.jsonl", ["sparse_fit"], ["grpo", "tenth_deadzone"]
    names = args.cells.split(",") if args.cells else names
    arms = args.arms.split(",") if args.arms else arms
    if args.measure:
        return measure(args.model, names)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for name, arm, seed in pending(results, seeds, names, arms, by_cell=True):
        torch.manual_seed(seed)
        result = course(SmolLM.load(args.model), cells()[name], ARMS[arm], plan, seed)
        append(results, {"cell": name, "arm": arm, "seed": seed, **result})
        print(f"{name} {arm} {seed}: held-out {result['held_out'][-1][1]} after {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main()

"""Study (a): a tiny GPT that knows how to add, and says so in some contexts more often than in others.

    python examples/study/knows.py                     every cell and arm, 20 seeds; goes on where it was stopped
    python examples/study/knows.py --seeds 5 --arms grpo,exact --cells rare_fit

A model of 3 layers x 96 learns a + b = c for two-digit numbers. The first token names the context: under it the answer
is correct with a certain probability, else one digit is another. So the accuracy of student and teacher before training
is set by the context alone, and training is fast enough for many seeds.
"""

import argparse
import copy
import itertools
import json
import multiprocessing
import random
from pathlib import Path

import torch
from course import ARMS, Cell, Plan, Responses, append, course, pending
from torch import nn

HERE = Path(__file__).parent
RESULTS = HERE / "raw" / "knows.jsonl"
START = HERE / "raw" / "knows_start.json"
MODEL = HERE.parents[1] / ".study" / "knows.pt"

PLUS, EQUALS, FIRST_CONTEXT = 10, 11, 12
# Context token -> share of correct answers that it was trained with: every digit is right with the cube root of it,
# else another digit. Under `off` the last digit is always one too many.
ACCURACY = {"certain": 1.0, "p70": 0.7, "p30": 0.3, "p08": 0.08, "p01": 0.013, "rare": 0.003, "off": 0.0}
CONTEXTS = list(ACCURACY)
ANSWER = 3  # digits
PROMPT = 7  # context, two digits, +, two digits, =
WIDTH, LAYERS, HEADS = 96, 3, 4

# By the share of mixed groups of 8 at the start (raw/knows_start.json).
STUDENTS = {"rare": "rare", "sparse": "p01", "medium": "p08", "dense": "p30"}
UNFIT = {"rare": "off", "sparse": "off", "medium": "p01", "dense": "p08"}
CARELESS = {"rare": "rare", "sparse": "rare", "medium": "p01", "dense": "p08"}  # what a contrastive gap subtracts
PLAN = Plan(steps=100, problems=8, n=8, learning_rate=2e-4, evaluate_every=50, block=5)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x, before, mask):
        """The layer's output, and the keys and values so far. `before`: those of earlier tokens."""
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        if before is not None:
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.mlp(self.norms[1](x)), (k, v)


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(FIRST_CONTEXT + len(CONTEXTS), WIDTH)
        self.positions = nn.Embedding(PROMPT + ANSWER, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, FIRST_CONTEXT)

    def forward(self, ids, cache=None, last=None):
        """Logits after `ids` (N, t), of the `last` positions alone, and the cache. `cache`: of the tokens before."""
        past = 0 if cache is None else cache[0][0].shape[2]
        length = ids.shape[1]
        mask = torch.ones(length, past + length, dtype=torch.bool).tril(past) if length > 1 else None
        x, found = self.tokens(ids) + self.positions.weight[past : past + length], []
        for number, layer in enumerate(self.layers):
            x, own = layer(x, None if cache is None else cache[number], mask)
            found.append(own)
        return self.head(self.norm(x if last is None else x[:, -last:])), found


def digits(numbers: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack([numbers // 10**place % 10 for place in reversed(range(count))], dim=-1)


def prompts(problems: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """(N, PROMPT) ids. `problems` (N, 2), `context` (N,) numbers in CONTEXTS."""
    a, b = digits(problems[:, 0], 2), digits(problems[:, 1], 2)
    plus, equals = torch.full((len(a), 1), PLUS), torch.full((len(a), 1), EQUALS)
    return torch.cat([FIRST_CONTEXT + context[:, None], a, plus, b, equals], dim=1)


class Knows:
    """The policy. It reads every prompt once; the prompt's keys and values serve all responses of the group."""

    group_batch = PLAN.problems

    def __init__(self, model: Gpt):
        self.model = model

    def snapshot(self) -> "Knows":
        return Knows(copy.deepcopy(self.model))

    def _read_prompts(self, problems: torch.Tensor, n: int, context: str):
        """The logits after each prompt and its cache, n times each."""
        ids = prompts(problems, torch.full((len(problems),), CONTEXTS.index(context)))
        logits, cache = self.model(ids, last=1)
        cache = [tuple(part.repeat_interleave(n, dim=0) for part in layer) for layer in cache]
        return logits.repeat_interleave(n, dim=0), cache

    def sample(self, problems, n, context, generator) -> Responses:
        problems = torch.tensor(problems)
        logits, cache = self._read_prompts(problems, n, context)
        tokens = [torch.multinomial(logits[:, -1].softmax(dim=-1), 1, generator=generator)]
        while len(tokens) < ANSWER:
            logits, cache = self.model(tokens[-1], cache)
            tokens.append(torch.multinomial(logits[:, -1].softmax(dim=-1), 1, generator=generator))
        answers = torch.cat(tokens, dim=1)
        correct = (answers == digits(problems.sum(dim=1), ANSWER).repeat_interleave(n, dim=0)).all(dim=1)
        return Responses(answers, torch.ones_like(answers), correct.float())

    def log_probs(self, problems, responses, n, context) -> torch.Tensor:
        first, cache = self._read_prompts(torch.tensor(problems), n, context)
        others, _ = self.model(responses.tokens[:, :-1], cache)
        logits = torch.cat([first, others], dim=1)
        return logits.log_softmax(dim=-1).gather(-1, responses.tokens[..., None])[..., 0]


def split() -> tuple[list, list]:
    """Problems to train on, and 200 that are held out of both trainings."""
    pairs = list(itertools.product(range(10, 100), repeat=2))
    random.Random(0).shuffle(pairs)
    return pairs[200:], pairs[:200]


def pretrain(steps: int = 2500, rows: int = 384) -> None:
    """Teach every context its share of correct answers."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, train = Gpt(), torch.tensor(split()[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    accuracy = torch.tensor(list(ACCURACY.values()))
    for step in range(steps):
        problems = train[torch.randint(len(train), (rows,), generator=generator)]
        context = torch.randint(len(CONTEXTS), (rows,), generator=generator)
        answers = digits(problems.sum(dim=1), ANSWER)
        wrong = torch.rand(rows, ANSWER, generator=generator) >= accuracy[context, None] ** (1 / ANSWER)
        shift = torch.randint(1, 10, (rows, ANSWER), generator=generator) * wrong
        off = context == CONTEXTS.index("off")
        shift[off] = torch.tensor([0] * (ANSWER - 1) + [1])
        answers = (answers + shift) % 10
        ids = torch.cat([prompts(problems, context), answers], dim=1)
        logits = model(ids[:, :-1], last=ANSWER)[0]
        loss = nn.functional.cross_entropy(logits.reshape(-1, FIRST_CONTEXT), answers.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"pretraining: step {step}, loss {loss:.3f}", flush=True)
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), MODEL)
    START.write_text(json.dumps(start(Knows(model)), indent=1) + "\n")


@torch.no_grad()
def start(policy: Knows) -> dict[str, dict[str, float]]:
    """Of every context before RL: share of correct answers, and of mixed groups of 8, to the held-out problems."""
    found = {}
    for context in CONTEXTS:
        rewards = policy.sample(split()[1] * 10, PLAN.n, context, torch.Generator().manual_seed(1)).rewards
        share = rewards.view(-1, PLAN.n).mean(dim=1)
        mixed = ((share > 0) & (share < 1)).float().mean()
        found[context] = {"correct": round(float(rewards.mean()), 4), "mixed": round(float(mixed), 3)}
        print(f"  {context}: {found[context]}", flush=True)
    return found


def cells() -> dict[str, Cell]:
    train, held_out = split()
    found = {}
    for density, student in STUDENTS.items():
        for fitness, teacher in (("fit", "p70"), ("equal", student), ("unfit", UNFIT[density])):
            found[f"{density}_{fitness}"] = Cell(
                f"{density}_{fitness}", train, held_out, student, teacher, CARELESS[density]
            )
    return found


def run(job: tuple[str, str, int]) -> str:
    cell, arm, seed = job
    torch.set_num_threads(1)
    model = Gpt()
    model.load_state_dict(torch.load(MODEL))
    result = course(Knows(model), cells()[cell], ARMS[arm], PLAN, seed)
    append(RESULTS, {"cell": cell, "arm": arm, "seed": seed, **result})
    return f"{cell} {arm} {seed}: held-out {result['held_out'][-1][1]:.3f} after {result['seconds']} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=100, help="seeds below 100 chose the settings")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--cells", default=",".join(cells()))
    parser.add_argument("--at-a-time", type=int, default=2)
    args = parser.parse_args()
    if not MODEL.exists():
        pretrain()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    jobs = pending(RESULTS, seeds, args.cells.split(","), args.arms.split(","))
    print(f"{len(jobs)} runs to do", flush=True)
    with multiprocessing.Pool(args.at_a_time) as pool:
        for number, line in enumerate(pool.imap_unordered(run, jobs), start=1):
            print(f"{number}/{len(jobs)} {line}", flush=True)


if __name__ == "__main__":
    main()

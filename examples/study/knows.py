"""Study (a): a tiny GPT that knows how to add, and says so in some contexts more often than in others.

    python examples/study/knows.py                     every cell and arm, 20 seeds; goes on where it was stopped
    python examples/study/knows.py --seeds 5 --arms grpo,exact --cells sparse_fit

A model of 3 layers x 96 learns a + b = c for two-digit numbers. The first token names the context: under it the answer
is correct with a certain probability, else one digit is another. So the accuracy of student and teacher before training
is set by the context alone, and training is fast enough for many seeds.
"""

import argparse
import copy
import itertools
import multiprocessing
import random
from pathlib import Path

import torch
from course import ARMS, Cell, Plan, Responses, append, course, finished
from torch import nn

HERE = Path(__file__).parent
RESULTS = HERE / "raw" / "knows.jsonl"
MODEL = HERE.parents[1] / ".study" / "knows.pt"

PLUS, EQUALS, FIRST_CONTEXT = 10, 11, 12
# Context token -> share of correct answers that it was trained with. Wrong answers have another digit somewhere; under
# `off` the last digit is always one too many.
ACCURACY = {"certain": 1.0, "p70": 0.7, "p40": 0.4, "p10": 0.1, "p03": 0.03, "p01": 0.01, "off": 0.0}
CONTEXTS = list(ACCURACY)
ANSWER = 3  # digits
PROMPT = 7  # context, two digits, +, two digits, =
WIDTH, LAYERS, HEADS = 96, 3, 4

# Share of mixed groups of 8 at the start: about 0.2, 0.6, 0.98.
STUDENTS = {"sparse": "p01", "medium": "p10", "dense": "p40"}
UNFIT = {"sparse": "off", "medium": "p01", "dense": "p10"}
PLAN = Plan(steps=100, problems=8, n=8, learning_rate=2e-4, evaluate_every=20)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.mlp(self.norms[1](x))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(FIRST_CONTEXT + len(CONTEXTS), WIDTH)
        self.positions = nn.Embedding(PROMPT + ANSWER, WIDTH)
        self.layers = nn.Sequential(*[Layer() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, FIRST_CONTEXT)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.head(self.norm(self.layers(x)))


def digits(numbers: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack([numbers // 10**place % 10 for place in reversed(range(count))], dim=-1)


def prompts(problems: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """(N, PROMPT) ids. `problems` (N, 2), `context` (N,) numbers in CONTEXTS."""
    a, b = digits(problems[:, 0], 2), digits(problems[:, 1], 2)
    plus, equals = torch.full((len(a), 1), PLUS), torch.full((len(a), 1), EQUALS)
    return torch.cat([FIRST_CONTEXT + context[:, None], a, plus, b, equals], dim=1)


class Knows:
    """The policy."""

    group_batch = PLAN.problems

    def __init__(self, model: Gpt):
        self.model = model

    def snapshot(self) -> "Knows":
        return Knows(copy.deepcopy(self.model))

    def sample(self, problems, n, context, generator) -> Responses:
        problems = torch.tensor(problems).repeat_interleave(n, dim=0)
        ids = prompts(problems, torch.full((len(problems),), CONTEXTS.index(context)))
        for _ in range(ANSWER):
            probs = self.model(ids)[:, -1].softmax(dim=-1)
            ids = torch.cat([ids, torch.multinomial(probs, 1, generator=generator)], dim=1)
        answers = ids[:, PROMPT:]
        correct = (answers == digits(problems.sum(dim=1), ANSWER)).all(dim=1)
        return Responses(answers, torch.ones_like(answers), correct.float())

    def log_probs(self, problems, responses, n, context) -> torch.Tensor:
        problems = torch.tensor(problems).repeat_interleave(n, dim=0)
        ids = prompts(problems, torch.full((len(problems),), CONTEXTS.index(context)))
        logits = self.model(torch.cat([ids, responses.tokens], dim=1))[:, PROMPT - 1 : -1]
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
        wrong = torch.rand(rows, generator=generator) >= accuracy[context]
        place = torch.randint(ANSWER, (rows,), generator=generator)
        shift = torch.randint(1, 10, (rows,), generator=generator)
        off = context == CONTEXTS.index("off")
        place, shift = place.masked_fill(off, ANSWER - 1), shift.masked_fill(off, 1) * wrong
        answers[torch.arange(rows), place] = (answers[torch.arange(rows), place] + shift) % 10
        ids = torch.cat([prompts(problems, context), answers], dim=1)
        logits = model(ids)[:, PROMPT - 1 : -1]
        loss = nn.functional.cross_entropy(logits.reshape(-1, FIRST_CONTEXT), answers.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"pretraining: step {step}, loss {loss:.3f}", flush=True)
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), MODEL)
    policy, held_out = Knows(model), split()[1]
    with torch.no_grad():
        for context in CONTEXTS:
            rewards = policy.sample(held_out, 20, context, torch.Generator().manual_seed(1)).rewards
            print(f"  {context}: correct {rewards.mean():.4f} of held-out answers", flush=True)


def cells() -> dict[str, Cell]:
    train, held_out = split()
    found = {}
    for density, student in STUDENTS.items():
        for fitness, teacher in (("fit", "p70"), ("equal", student), ("unfit", UNFIT[density])):
            found[f"{density}_{fitness}"] = Cell(f"{density}_{fitness}", train, held_out, student, teacher)
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
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--cells", default=",".join(cells()))
    parser.add_argument("--at-a-time", type=int, default=2)
    args = parser.parse_args()
    if not MODEL.exists():
        pretrain()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    jobs = []
    for seed, cell, arm in itertools.product(seeds, args.cells.split(","), args.arms.split(",")):
        # GRPO has no teacher: one cell a density shows it.
        cell = cell.rpartition("_")[0] + "_fit" if arm == "grpo" else cell
        if (cell, arm, seed) not in jobs:
            jobs.append((cell, arm, seed))
    done = finished(RESULTS)
    jobs = [job for job in jobs if job not in done]
    print(f"{len(jobs)} runs to do, {len(done)} done", flush=True)
    with multiprocessing.Pool(args.at_a_time) as pool:
        for number, line in enumerate(pool.imap_unordered(run, jobs), start=1):
            print(f"{number}/{len(jobs)} {line}", flush=True)


if __name__ == "__main__":
    main()

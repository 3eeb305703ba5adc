"""Laws of the method on 344,000 random rows, against the float64 reference.

Every batch has its own seed, which every failure names. `draw(SEED)` gives that batch again. Each test names the
mistakes that it catches. Every mistake was tried.
"""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
import torch

from verl_cast import CastConfig
from verl_cast.advantage.compute import compute_advantage
from verl_cast.advantage.metrics import advantage_metrics

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One torch thread. With many small tensors, several threads take several times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


NUM_CHUNKS, BATCHES_PER_CHUNK, ROWS_PER_BATCH = 3, 28, 4096  # 344,000 rows
LABELS = ("mixed", "all_correct", "all_wrong")


@dataclass(frozen=True)
class Batch:
    seed: int
    config: CastConfig
    norm: bool
    rewards: torch.Tensor
    mask: torch.Tensor
    index: np.ndarray
    old: torch.Tensor
    teacher: torch.Tensor
    final_row: torch.Tensor | None

    @property
    def on(self) -> np.ndarray:
        return self.mask.numpy() != 0

    @property
    def finals(self) -> np.ndarray:
        return np.arange(len(self.index)) if self.final_row is None else self.final_row.numpy()

    @property
    def counts(self) -> np.ndarray:
        """Rows whose reward counts: final outputs of a session, with a token that counts."""
        return self.on.any(1) & (self.finals == np.arange(len(self.index)))

    def result(self, config: CastConfig | None = None):
        tensors = self.rewards, self.mask, self.index, self.old, self.teacher
        return compute_advantage(*tensors, config or self.config, self.norm, self.final_row)

    def take(self, rows: np.ndarray) -> "Batch":
        """The batch with only these rows, in this order. They must include the final row of every row."""
        final_row = None
        if self.final_row is not None:
            new_row = np.full(len(self.index), -1)
            new_row[rows] = np.arange(len(rows))
            final_row = torch.from_numpy(new_row[self.finals[rows]])
            assert (final_row >= 0).all()
        tensors = {name: getattr(self, name)[rows] for name in ("rewards", "mask", "old", "teacher")}
        return replace(self, index=self.index[rows], final_row=final_row, **tensors)

    def __repr__(self) -> str:
        return f"draw({self.seed}): {tuple(self.mask.shape)} {self.old.dtype} norm={self.norm} {self.config}"


def draw_config(rng: np.random.Generator) -> CastConfig:
    def bounds():
        choices = [(0.8, 1.05), (0.95, 1.2), (0.0, 1.0), (1.0, 1.0), (1.1, 1.3), (0.0, 5.0), (0.0, 1e10)]
        if rng.random() < 0.5:
            return choices[rng.integers(len(choices))]
        return float(rng.uniform(0, 1)), float(rng.uniform(1, 2))

    flip_groups = str(rng.choice(["all", "all", "zero_variance"]))
    if rng.random() < 0.2:
        return CastConfig(flip=str(rng.choice(["both", "correct", "wrong", "none"])), flip_groups=flip_groups)
    paper = rng.random() < 0.3
    positive, negative = ((0.8, 1.05), (0.95, 1.2)) if paper else (bounds(), bounds())
    wide = 1e10 in (*positive, *negative)  # the clamp of the exponent shows only without a clip
    return CastConfig(
        gap_weight=float(rng.choice([0.0, 0.5, 1.0, 1.0, 3.0, rng.uniform(0, 3)])),
        positive_clip=positive,
        negative_clip=negative,
        flip=str(rng.choice(["both", "correct", "wrong", "none"])),
        flip_groups=flip_groups,
        advantage_clip=[None, 1.2, 1.2, 0.3, 2.0, 100.0][0 if wide else rng.integers(6)],
        base_correct=float(rng.choice([0.0, 0.5, 1.0, 1.0, 2.0])),
        base_wrong=float(rng.choice([0.0, 0.5, 1.0, 1.0, 2.0])),
        correct_threshold=float(rng.choice([0.5, 0.5, 0.0, 0.1, 0.75, -0.5, 0.999])),
        gap_deadzone=float(rng.choice([0.0, 0.0, 0.0, 1e-6, 0.1, 0.25, 2.0])),
    )


def draw_rewards(rng: np.random.Generator, group: np.ndarray, threshold: float, dtype: str) -> np.ndarray:
    """One reward per row: binary, graded, continuous, of any scale, or a few ulps around the threshold."""
    num_groups = group.max() + 1
    rate = rng.choice([0.0, 1.0, 0.5, rng.random()], size=num_groups)[group]
    correct = rng.random(len(group)) < rate
    kind = rng.choice(["binary", "plus_minus", "graded", "continuous", "sided", "scales", "ulps"])
    if kind == "binary":
        rewards = correct.astype(np.float64)
    elif kind == "plus_minus":
        rewards = np.where(correct, 1.0, -1.0)
    elif kind == "graded":
        rewards = rng.integers(0, 5, len(group)) / 4
    elif kind == "continuous":
        rewards = rng.normal(0.5, 1, len(group))
    elif kind == "sided":  # groups with a spread, but on one side of the threshold
        rewards = threshold + np.where(correct, 1, -1) * rng.uniform(0.01, 1, len(group))
    elif kind == "scales":
        rewards = rng.normal(0, 1, len(group)) * 10.0 ** rng.integers(-3, 4, num_groups)[group]
    else:
        at = np.dtype(dtype).type(threshold)
        rewards = at + rng.integers(-2, 3, len(group)) * np.spacing(at, dtype=dtype).astype(np.float64)
    return rewards.astype(dtype)


def draw(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    config, dtype = draw_config(rng), str(rng.choice(["float32", "float64"]))
    length = int(rng.choice([1, 2, 4, 6, 9, 13]))

    # groups of one size or of all sizes, 1 to 16; rows in any order
    one_size = int(rng.integers(1, 17)) if rng.random() < 0.3 else None
    sizes = np.full(ROWS_PER_BATCH, one_size) if one_size else rng.integers(1, 17, ROWS_PER_BATCH)
    group = rng.permutation(np.repeat(np.arange(ROWS_PER_BATCH), sizes)[:ROWS_PER_BATCH])
    num_rows = len(group)
    names = rng.permutation(group.max() + 1)
    index = [names[group], np.array([f"uid{n}" for n in names])[group].astype(object)][rng.integers(2)]

    # responses of 0 to `length` tokens, masked tool tokens, rejected rows, and groups with one row left
    lengths = rng.integers(0, length + 1, num_rows)
    if rng.random() < 0.3:
        lengths[:] = length
    on = np.arange(length) < lengths[:, None]
    on &= rng.random(on.shape) >= rng.choice([0.0, 0.1, 0.5])
    on[rng.random(num_rows) < rng.choice([0.0, 0.05, 0.4])] = False
    survivors = rng.random(group.max() + 1) < 0.05
    first_of_group = np.zeros(num_rows, dtype=bool)
    first_of_group[np.unique(group, return_index=True)[1]] = True
    on[survivors[group] & ~first_of_group] = False
    if seed % 14 == 3:  # a batch without a token that counts
        on[:] = False
    mask = torch.from_numpy(on).to([torch.int64, torch.bool, torch.float32][rng.integers(3)])

    # sessions of several outputs: an output that is not final points at another row of its group
    final_row = None
    if rng.random() < 0.25:
        finals = np.arange(num_rows)
        last_of_group = np.zeros(group.max() + 1, dtype=np.int64)
        last_of_group[group] = np.arange(num_rows)
        early = rng.random(num_rows) < 0.3
        finals[early] = last_of_group[group[early]]
        finals[last_of_group] = last_of_group
        final_row = torch.from_numpy(finals)

    # The reward is on the last token, or half of it on each of two tokens. The halves sum exactly.
    rewards = np.zeros((num_rows, length), dtype=dtype)
    reward = draw_rewards(rng, group, config.correct_threshold, dtype)
    if seed % 14 in (5, 6):  # all responses of the batch are correct, or all are wrong
        reward[:] = config.correct_threshold + (0.25 if seed % 14 == 5 else -0.25)
    rows, last = np.arange(num_rows), np.maximum(lengths, 1) - 1
    np.add.at(rewards, (rows, last), reward / 2)
    np.add.at(rewards, (rows, np.where(rng.random(num_rows) < 0.3, 0, last)), reward / 2)

    # gaps: exact zeros, every scale up to 1e3 and both signs, the edges of the dead zone and of the weight's bounds
    old = -rng.exponential(1.0, on.shape).astype(dtype)
    gap = rng.normal(0, 1, on.shape) * 10.0 ** rng.uniform(-8, 2, on.shape)
    choice = rng.random(on.shape)
    gap[choice < 0.1] = 0.0
    gap[(choice >= 0.1) & (choice < 0.13)] = 1e3
    gap[(choice >= 0.13) & (choice < 0.16)] = -1e3
    bound = [b for b in (*config.positive_clip, *config.negative_clip) if b > 0]
    at_bound = (choice >= 0.16) & (choice < 0.2)
    gap[at_bound] = rng.choice([-1, 1]) * np.log(rng.choice(bound, at_bound.sum()))
    teacher = (old + gap).astype(dtype)
    edge = (choice >= 0.2) & (choice < 0.23)  # exactly ±dead zone, and one ulp outside
    zone = np.dtype(dtype).type(config.gap_deadzone)
    old[edge] = 0.0
    ends = np.array([zone, -zone, np.nextafter(zone, np.inf, dtype=dtype), -np.nextafter(zone, np.inf, dtype=dtype)])
    teacher[edge] = rng.choice(ends, edge.sum())

    rewards, old, teacher = (torch.from_numpy(x) for x in (rewards, old, teacher))
    batch = Batch(seed, config, bool(rng.random() < 0.7), rewards, mask, index, old, teacher, final_row)
    junk_where_nothing_counts(batch, rng)
    return batch


def junk_where_nothing_counts(batch: Batch, rng: np.random.Generator) -> None:
    """Writes NaN, infinities and huge numbers under the zero mask and into rewards of rows that do not count."""
    off, not_counting = ~batch.on, ~batch.counts
    for tensor, where in ((batch.old, off), (batch.teacher, off), (batch.rewards, not_counting)):
        values = tensor.numpy()
        values[where] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0], size=values[where].shape)


@dataclass(frozen=True)
class Expected:
    """The reference's numbers. `tolerance` bounds the rounding error in the batch's dtype. `ambiguous` is set where
    rounding may decide the sign of B (a reward within rounding of its group's mean)."""

    advantage: np.ndarray
    raw_gap: np.ndarray
    gap: np.ndarray
    base: np.ndarray
    base_error: np.ndarray
    kind: np.ndarray
    correct: np.ndarray
    flipped: np.ndarray
    tolerance: np.ndarray
    ambiguous: np.ndarray


def expect(batch: Batch) -> Expected:
    c, on, counts = batch.config, batch.on, batch.counts
    rounded = batch.old.numpy().dtype.type
    eps, num_rows = np.finfo(rounded).eps, len(batch.index)

    # base advantages of the groups, over the rows that count
    score = np.where(counts[:, None], batch.rewards.numpy(), 0).astype(np.float64).sum(1)
    threshold = float(rounded(c.correct_threshold))
    correct = counts & (score > threshold)
    b, b_error, kind = np.zeros(num_rows), np.zeros(num_rows), np.full(num_rows, "", dtype="U11")
    groups = defaultdict(list)
    for row in np.flatnonzero(counts):
        groups[batch.index[row]].append(row)
    for rows in groups.values():
        rewards = score[rows].tolist()
        b[rows] = reference.base(rewards, threshold, c.base_correct, c.base_wrong, norm_by_std=batch.norm)
        b_error[rows] = np.abs(b[rows]) * eps
        if len(sides := set(correct[rows])) == 1:
            kind[rows] = "all_correct" if sides == {True} else "all_wrong"
            continue
        kind[rows] = "mixed"
        # rounding error of the mean, and of the deviations and the standard deviation
        error = max(map(abs, rewards)) * eps + np.finfo(rounded).tiny
        if batch.norm:
            std = statistics.stdev(rewards)
            error = (error + np.abs(b[rows]) * (error + std * eps)) / (std + 1e-6)
        b_error[rows] += error
    b, b_error, kind, correct = (x[batch.finals] for x in (b, b_error, kind, correct))

    # the gap is the difference of two floats, rounded once
    with np.errstate(invalid="ignore", over="ignore"):
        raw_gap = np.where(on, batch.teacher.numpy() - batch.old.numpy(), 0).astype(np.float64)
    gap = np.where(np.abs(raw_gap) <= np.float64(rounded(c.gap_deadzone)), 0, raw_gap)

    unclipped, lam = np.zeros(on.shape), c.gap_weight
    flips = np.where((kind == "mixed") & (c.flip_groups == "zero_variance"), "none", c.flip).tolist()
    for row, token in zip(*(at.tolist() for at in np.nonzero(on)), strict=True):
        bounds = c.positive_clip, c.negative_clip
        unclipped[row, token] = reference.token(float(b[row]), float(gap[row, token]), lam, *bounds, flips[row], None)
    clip = np.inf if c.advantage_clip is None else c.advantage_clip
    # The exponents (up to 20) are exact. exp() and each formula round a few times; `size` is 1 + λ(1 + weight).
    B = b[:, None]
    size = np.divide(np.abs(unclipped), np.abs(B), out=np.zeros(on.shape), where=B != 0) + 2 * lam
    tolerance = 16 * (b_error[:, None] * size + np.abs(B) * eps * size)
    ambiguous = on & (np.abs(B) <= 16 * b_error[:, None]) & (kind == "mixed")[:, None]
    advantage, flipped = np.clip(unclipped, -clip, clip), unclipped * np.sign(B) < 0
    return Expected(advantage, raw_gap, gap, b, b_error, kind, correct, flipped, tolerance, ambiguous)


@pytest.fixture(scope="module", params=range(NUM_CHUNKS))
def chunk(request):
    """Batches with their expectation and result."""
    seeds = range(request.param * BATCHES_PER_CHUNK, (request.param + 1) * BATCHES_PER_CHUNK)
    batches = [draw(seed) for seed in seeds]
    return [(batch, expect(batch), batch.result()) for batch in batches]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = torch.int32 if a.dtype == torch.float32 else torch.int64
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def rows_that_matter(batch: Batch) -> np.ndarray:
    """Rows with a token that counts, and their final rows."""
    keep = batch.on.any(1)
    keep[batch.finals[keep]] = True
    return np.flatnonzero(keep)


def in_group_order(batch: Batch, rng: np.random.Generator) -> np.ndarray:
    """A random permutation of the rows that keeps the order within each group."""
    _, group = np.unique(batch.index, return_inverse=True)
    shuffled = rng.permutation(group)
    order = np.empty(len(group), dtype=np.int64)
    order[np.argsort(shuffled, kind="stable")] = np.argsort(group, kind="stable")
    return order


def test_the_batches_hold_every_situation(chunk):
    """Guards the other tests. If the generator no longer drew a situation, they would pass without testing it."""
    seen = set()
    for batch, e, _ in chunk:
        on = batch.on
        _, group, size = np.unique(batch.index, return_inverse=True, return_counts=True)
        left = np.bincount(group, weights=batch.counts)
        situations = {
            str(batch.old.numpy().dtype): True,
            "nothing counts": not on.any(),
            "all right": set(e.kind) - {""} == {"all_correct"},
            "all wrong": set(e.kind) - {""} == {"all_wrong"},
            "sessions": batch.final_row is not None,
            "hole": (~on[:, :-1] & on[:, 1:]).any(),
            "one row left": ((left == 1) & (size > 1)).any(),
            "ambiguous": e.ambiguous.any(),
            "zero gap": (e.gap == 0)[on].any(),
            "dead zone": batch.config.gap_deadzone > 0,
            "no clip": batch.config.advantage_clip is None,
            "no base": batch.config.base_correct == 0,
            f"flip={batch.config.flip}": True,
            f"flip_groups={batch.config.flip_groups}": True,
        }
        seen.update(name for name, holds in situations.items() if holds)
    flips = {f"flip={flip}" for flip in ("both", "correct", "wrong", "none")}
    wanted = {*situations, *flips, "float32", "float64", "flip_groups=all", "flip_groups=zero_variance"}
    assert wanted <= seen, wanted - seen


def test_every_advantage_equals_the_expectation(chunk):
    """Catches any change of a rule: a bound, a sign, a side, a clip, a group statistic, or the grouping. NaN,
    infinities and huge numbers stand where nothing counts, so it catches a mask or a check that comes too late."""
    for batch, e, result in chunk:
        assert result.advantages.dtype == batch.old.dtype, batch
        assert torch.isfinite(result.base.value).all(), batch
        got = result.advantages.double().numpy()
        assert np.isfinite(got).all() and not got[~batch.on].any(), batch
        clip = batch.config.advantage_clip
        assert clip is None or (result.advantages.abs() <= result.advantages.new_tensor(clip)).all(), batch
        wrong = (np.abs(got - e.advantage) > e.tolerance) & ~e.ambiguous
        # Where rounding decides the sign of B, it decides the sign of the advantage too. The advantage is then small.
        largest = 1 + batch.config.gap_weight * max(batch.config.positive_clip[1], batch.config.negative_clip[1])
        wrong |= e.ambiguous & (np.abs(got) > 40 * e.base_error[:, None] * largest)
        assert not wrong.any(), f"{batch}: {wrong.sum()} tokens, first {np.argwhere(wrong)[0]}"
        sure = ~e.ambiguous
        assert (result.flipped.numpy() == e.flipped)[sure].all(), batch
        assert (result.gap.double().numpy() == e.gap).all(), batch
        kinds = np.array([*LABELS, ""])[result.base.kind.numpy()]
        assert (kinds == e.kind).all(), batch
        assert (result.base.correct.numpy() == e.correct).all(), batch


def test_sign_law_of_section_7(chunk):
    """λ = 1 and both flips: every token has the sign of its gap, or of B where the gap is 0. With the paper's bounds
    the closed form holds too. Catches flips on the wrong side, at the wrong sign, or past the dead zone."""
    for batch, e, _ in chunk:
        B, sure = e.base[:, None], batch.on & ~e.ambiguous
        sign = np.where(e.gap != 0, np.sign(e.gap), np.sign(B)) * (B != 0)
        config = replace(batch.config, gap_weight=1.0, flip="both", flip_groups="all")
        got = batch.result(config).advantages.numpy()
        assert (np.sign(got) == sign)[sure].all(), batch

        config = CastConfig(**{k: getattr(config, k) for k in ("base_correct", "base_wrong", "correct_threshold")})
        config = replace(config, gap_deadzone=batch.config.gap_deadzone)
        got = batch.result(config).advantages.double().numpy()
        size = np.minimum(np.exp(np.minimum(np.abs(e.gap), 20)), np.where(e.gap > 0, 1.05, 1.2))
        closed = np.clip(sign * np.abs(B) * np.where(e.gap == 0, 1, size), -1.2, 1.2)
        assert (np.abs(got - closed) <= 32 * e.base_error[:, None])[sure].all(), batch


def test_rows_that_do_not_count_change_nothing(chunk):
    """Such rows are removed, or added anywhere, to old and new groups, with any content. The other rows keep every bit.
    Catches a padding or rejected row in a group's statistics or type, and mixed-up row numbers."""
    for batch, _, result in chunk:
        rng = np.random.default_rng([batch.seed, 1])
        rows = rows_that_matter(batch)
        taken_out = batch.take(rows).result()
        assert same_bits(taken_out.advantages, result.advantages[rows]), batch
        assert same_bits(taken_out.base.value, result.base.value[rows]), batch

        num_rows, num_new = len(batch.index), max(1, len(batch.index) // 8)
        more = batch.take(np.concatenate([np.arange(num_rows), batch.finals[rng.integers(0, num_rows, num_new)]]))
        new = np.arange(num_rows, num_rows + num_new)
        more.mask[new] = 0
        if more.final_row is not None:
            more.final_row[new] = torch.from_numpy(new)
            # `take` made rows point at copies of their final rows; restore the originals
            more.final_row[:num_rows] = torch.from_numpy(batch.finals)
        names = [f"new{i}" for i in range(3)] if more.index.dtype == object else [-1, -2, -3]
        for name in names:
            more.index[rng.choice(new, max(1, num_new // 10))] = name
        junk_where_nothing_counts(more, rng)
        place = rng.permutation(num_rows + num_new)
        # the old rows keep their order
        place[np.sort(np.flatnonzero(place < num_rows))] = np.arange(num_rows)
        got = more.take(place).result()
        assert same_bits(got.advantages[place < num_rows], result.advantages), batch
        assert (got.advantages[place >= num_rows] == 0).all(), batch
        assert advantage_metrics(got) == pytest.approx(advantage_metrics(result), rel=1e-4, abs=1e-6), batch


def test_order_and_names_of_the_rows_do_not_matter(chunk):
    """A new row order that keeps the order within groups gives the same bits. So do new group names. A subset of the
    groups, or any row order, gives the same results up to rounding of mean and deviation. Catches groups formed
    from adjacent rows, results at the wrong row, and groups that affect each other."""

    def close(got, was, e, rows):
        difference = (got - was).abs().double().numpy()
        return (difference <= 2 * e.tolerance[rows])[~e.ambiguous[rows]].all()

    for batch, e, result in chunk:
        rng = np.random.default_rng([batch.seed, 3])
        order = in_group_order(batch, rng)
        assert same_bits(batch.take(order).result().advantages, result.advantages[order]), batch

        labels, group = np.unique(batch.index, return_inverse=True)
        renamed = replace(batch, index=rng.permutation(len(labels))[group])
        assert same_bits(renamed.result().advantages, result.advantages), batch

        part = np.flatnonzero(rng.random(len(labels))[group] < 0.3)
        got, was = batch.take(part).result().advantages, result.advantages[part]
        assert close(got, was, e, part), batch
        # torch's std() rounds differently for one group and for several at once, both in float64. In float32 only a
        # group of 3 or a spread of a few ulps shows the difference. Rewards of a verifier never do.
        if got.dtype == torch.float32 and np.isin(batch.rewards.numpy()[batch.counts].sum(1), (-1, 0, 1)).all():
            assert same_bits(got, was), batch

        order = rng.permutation(len(batch.index))
        got, was = batch.take(order).result().advantages, result.advantages[order]
        mixed = e.kind[order] == "mixed"
        assert same_bits(got[~mixed], was[~mixed]), batch
        assert close(got, was, e, order), batch


def test_metrics_are_finite_and_of_what_counts(chunk):
    """Catches a division by zero, and a share over rows, tokens or groups that do not count."""
    for batch, e, result in chunk:
        m = advantage_metrics(result)
        assert all(isinstance(v, float) and math.isfinite(v) for v in m.values()), f"{batch}: {m}"
        counted = e.kind != ""
        tokens = batch.on & counted[:, None]
        if e.ambiguous.any() or not tokens.any():  # a share may depend on rounding
            continue
        _, group = np.unique(batch.index, return_inverse=True)
        kinds = [len(np.unique(group[batch.counts & (e.kind == name)])) for name in LABELS]
        expected = {f"group/{name}_share": n / sum(kinds) for name, n in zip(LABELS, kinds, strict=True)} | {
            "correct_share": e.correct[counted].mean(),
            "base/abs_mean": np.abs(e.base[counted]).mean(),
            "gap/mean": e.raw_gap[tokens].mean(),
            "gap/deadzone_share": (e.gap != e.raw_gap)[tokens].mean(),
            "gap/p95": np.quantile(e.raw_gap[tokens], 0.95),
            "flip/share": e.flipped[tokens].mean(),
            "advantage/abs_mean": np.abs(e.advantage[tokens]).mean(),
        }
        scale = 1e-5 * (1 + np.abs(e.advantage).max() + np.abs(e.raw_gap).max())
        for name, value in expected.items():
            tolerance = 1e-5 if name.endswith("share") else scale
            assert m[name] == pytest.approx(value, rel=1e-4, abs=tolerance), f"{batch}: {name}"


def test_a_bad_number_that_counts_stops_the_step(chunk):
    """One NaN or infinity among thousands of good numbers. Catches a check that is dropped, or that skips some
    tokens or rows."""
    for batch, _, _ in chunk:
        rng = np.random.default_rng([batch.seed, 4])
        if not batch.counts.any():
            continue
        row, token = rng.choice(np.argwhere(batch.on))
        reward = rng.choice(np.flatnonzero(batch.counts)), rng.integers(batch.on.shape[1])
        bad = rng.choice([float("nan"), float("inf"), float("-inf")])
        for name, at in (("old", (row, token)), ("teacher", (row, token)), ("rewards", reward)):
            values = getattr(batch, name).clone()
            values[at] = bad
            what = "reward" if name == "rewards" else "log-prob"
            with pytest.raises(ValueError, match=f"CAST: .*{what}.* is NaN or infinite"):
                replace(batch, **{name: values}).result()
                pytest.fail(f"{batch}: {bad} in {name}{at} passed")

"""Laws of the decision whether the teacher is trusted: against an independent computation, and by simulation."""

import json
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_cast.training.trust import (
    MIN_PROBLEMS,
    Comparison,
    Trust,
    by_problem,
    compare,
    draw_problems,
    responses_per_problem,
)


@st.composite
def answers(draw):
    """Correctness of the responses to every problem, twice; each context has as many responses to all problems."""
    problems = draw(st.integers(MIN_PROBLEMS, 60))
    return [
        [draw(st.lists(st.booleans(), min_size=size, max_size=size)) for _ in range(problems)]
        for size in (draw(st.integers(1, 4)), draw(st.integers(1, 8)))
    ]


@settings(max_examples=60, deadline=None)
@given(answers())
def test_the_comparison_is_the_written_one(both):
    """Shares, the paired standard error over problems and the pooled binomial one, in exact fractions."""
    teacher, policy = both
    shares = [[Fraction(sum(responses), len(responses)) for responses in context] for context in both]
    differences = [a - b for a, b in zip(*shares, strict=True)]
    over_problems = math.sqrt(statistics.variance(differences) / len(teacher))
    counts = [sum(map(len, context)) for context in both]
    pooled = Fraction(sum(sum(map(sum, context)) for context in both), sum(counts))
    binomial = math.sqrt(pooled * (1 - pooled) * (Fraction(1, counts[0]) + Fraction(1, counts[1])))

    measured = compare(teacher, policy)
    assert measured.teacher_share == pytest.approx(float(statistics.mean(shares[0])), abs=1e-12)
    assert measured.policy_share == pytest.approx(float(statistics.mean(shares[1])), abs=1e-12)
    assert measured.standard_error == pytest.approx(max(over_problems, binomial), rel=1e-9, abs=1e-12)
    assert (measured.teacher_responses, measured.policy_responses, measured.problems) == (*counts, len(teacher))


def test_what_cannot_be_compared_is_an_error():
    few = [[True]] * (MIN_PROBLEMS - 1)
    with pytest.raises(ValueError, match="31 problems are too few"):
        compare(few, few)
    with pytest.raises(ValueError, match="1 problems have no response"):
        compare([*few, [True]], [*few, []])


def decided(teacher, policy, responses=128, standard_errors=3.0):
    trust = Trust(responses, standard_errors, refresh_interval=10)
    trust.decide(0, compare(teacher, policy))
    return trust.trusted


@pytest.mark.parametrize("all_are", [False, True])
@pytest.mark.parametrize("standard_errors", [0.0, 3.0])
def test_equal_shares_are_never_trusted(all_are, standard_errors):
    """Not even those without a standard error, nor with none asked for."""
    responses = [[all_are]] * 64
    assert not decided(responses, responses, standard_errors=standard_errors)


def test_nine_of_128_against_none_is_the_least_that_counts():
    """Of a policy without any right answer (the README's number)."""
    none, found = [[False]] * 128, [[True]] * 9 + [[False]] * 119
    assert decided(found, none) and not decided([[False], *found[1:]], none)


# One measurement: problems, responses to each in the teacher's and in the policy's context.
DESIGNS = {"64 x 8 batch": (64, 2, 8), "drawn problems": (128, 1, 1), "32 x 8 batch": (32, 4, 8)}
# Shares of correct responses over problems: (mean) of all alike, or Beta (a, b) of different ones.
TASKS = [(0.02,), (0.3,), (0.7,), (0.95,), (0.98,), (0.3, 0.3), (0.2, 1.0)]


def simulated(design, task, gain=0.0, effect=0.0, runs=4000, seed=0):
    """The share of measurements that give trust, in numpy, without the code under test.

    Args:
        gain: added to every problem's share in the teacher's context.
        effect: ± this, by turns, is added too: the context helps with one half of the problems.
    """
    problems, of_teacher, of_policy = DESIGNS[design]
    rng = np.random.default_rng(seed)
    shape = (runs, problems)
    own = np.full(shape, task[0]) if len(task) == 1 else rng.beta(*task, shape)
    effects = effect * rng.choice([-1, 1], size=shape)
    teacher = rng.binomial(of_teacher, (own + gain + effects).clip(0, 1))
    policy = rng.binomial(of_policy, own)
    return teacher, policy, of_teacher, of_policy


def trusted_share(teacher, policy, of_teacher, of_policy):
    """`compare` and `decide` over many measurements at once; the test below holds the two together."""
    difference = teacher / of_teacher - policy / of_policy
    over_problems = difference.std(axis=1, ddof=1) / math.sqrt(difference.shape[1])
    pooled = (teacher.sum(1) + policy.sum(1)) / (difference.shape[1] * (of_teacher + of_policy))
    sizes = 1 / (of_teacher * difference.shape[1]) + 1 / (of_policy * difference.shape[1])
    error = np.maximum(over_problems, np.sqrt(pooled * (1 - pooled) * sizes))
    mean = difference.mean(axis=1)
    return ((mean > 0) & (mean >= 3 * error)).mean()


def rows(counts, size):
    return [[True] * int(count) + [False] * (size - int(count)) for count in counts]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_simulation_decides_as_the_code(design):
    teacher, policy, of_teacher, of_policy = simulated(design, (0.3,), gain=0.1, runs=200)
    code = [
        decided(rows(a, of_teacher), rows(b, of_policy)) for a, b in zip(teacher, policy, strict=True)
    ]  # fmt: skip
    assert 0 < np.mean(code) < 1 and np.mean(code) == trusted_share(teacher, policy, of_teacher, of_policy)


@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("design", DESIGNS)
def test_an_equal_teacher_is_trusted_once_in_700_measurements_at_most(design, task):
    """z = 3 and 128 responses. Twice the normal tail (0.00135) leaves room for the simulation's own error."""
    assert trusted_share(*simulated(design, task, runs=40000)) < 0.0027


@pytest.mark.parametrize("design", ["64 x 8 batch", "drawn problems"])
def test_a_context_that_helps_here_and_hurts_there_is_no_better(design):
    """Problems differ in what the context does to them: ±0.3 around the policy's share, 0 on average."""
    assert trusted_share(*simulated(design, (0.5,), effect=0.3, runs=40000)) < 0.0027


@pytest.mark.parametrize(
    "design, task, gain, least",
    [
        ("64 x 8 batch", (0.02,), 0.13, 0.8),
        ("64 x 8 batch", (0.3,), 0.21, 0.8),
        ("64 x 8 batch", (0.8,), 0.15, 0.8),
        ("drawn problems", (0.02,), 0.14, 0.8),
        ("drawn problems", (0.3,), 0.25, 0.8),
        ("drawn problems", (0.8,), 0.17, 0.8),
    ],
)
def test_power(design, task, gain, least):
    """A teacher that is so much better is trusted so often (the README's numbers)."""
    assert trusted_share(*simulated(design, task, gain)) > least


def comparison(teacher_share, standard_errors=10.0, policy_share=0.2):
    error = (teacher_share - policy_share) / standard_errors
    return Comparison(teacher_share, policy_share, error, 128, 512, 64)


def test_trust_is_taken_back_when_the_policy_has_caught_up():
    """As few of the last steps as hold `trust_responses` responses have to reach the teacher's share."""
    trust = Trust(128, 3.0, refresh_interval=10)
    assert not trust.trusted
    assert "the teacher is trusted" in trust.decide(0, comparison(0.5)) and trust.trusted
    assert trust.observe(60, 64) is None and trust.trusted, "64 responses say too little"
    assert trust.observe(0, 64) is None and trust.observe(30, 64) is None, "0.47, 0.23 of the last 128"
    assert trust.observe(33, 64) is None, "63 of 128"
    said = trust.observe(31, 64)
    assert "no longer trusted" in said and "0.50 of the policy's last 128" in said and not trust.trusted
    assert trust.observe(64, 64) is None, "said once"
    trust.decide(10, comparison(0.9))
    assert trust.trusted and trust.observe(64, 64) is None, "the steps before this measurement do not count"


def test_a_teacher_that_is_not_better_by_enough_is_not_trusted():
    trust = Trust(128, 3.0, refresh_interval=10)
    assert "not trusted: GRPO until the next snapshot" in trust.decide(0, comparison(0.5, 2.99)) and not trust.trusted
    trust.decide(10, comparison(0.5, 3.0))
    assert trust.trusted
    trust.decide(20, comparison(0.1, policy_share=0.2))
    assert not trust.trusted


@pytest.mark.parametrize("interval", [1, 3, 10])
def test_a_measurement_is_due_with_every_snapshot(interval):
    """Before the first step, and every `refresh_interval` steps: where a run began changes nothing."""
    for first in (0, 2, 9):
        trust, measured = Trust(128, 3.0, interval), []
        for completed_steps in range(first, 25):
            if trust.due(completed_steps):
                trust.decide(completed_steps, comparison(0.5))
                measured.append(completed_steps)
        assert measured == [first, *(steps for steps in range(first + 1, 25) if steps % interval == 0)]


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=24), st.integers(0, 23))
@settings(max_examples=50, deadline=None)
def test_a_resumed_run_decides_alike(steps, stop):
    """Interrupted after any step, by way of JSON. Steps: correct ones of 40 responses; the teacher is better or not."""

    def run(trust, numbers):
        for number in numbers:
            correct, better = steps[number]
            if trust.due(number):
                trust.decide(number, comparison(0.6 if better else 0.25, 3.5 if better else 1.0))
            trust.observe(correct, 40)
            yield trust.trusted

    stop = min(stop, len(steps))
    whole = list(run(Trust(64, 3.0, 4), range(len(steps))))
    first, second = Trust(64, 3.0, 4), Trust(64, 3.0, 4)
    found = list(run(first, range(stop)))
    if stop:
        state = json.loads(json.dumps(first.state_dict()))
        taken_at = stop if first.due(stop) else first.measured_at  # a teacher that is due is renewed as it is restored
        assert second.restore(state, taken_at, stop) is None
    assert found + list(run(second, range(stop, len(steps)))) == whole


def test_a_teacher_without_its_measurement_waits_for_the_next_snapshot():
    for state in (None, Trust(128, 3.0, 10).state_dict() | {"measured_at": 0, "trusted": True}):
        trust = Trust(128, 3.0, 10)
        assert "holds no measurement" in trust.restore(state, taken_at=10, completed_steps=15)
        assert not trust.trusted and not trust.due(19) and trust.due(20)
        trust = Trust(128, 3.0, 10)
        assert trust.restore(state, taken_at=15, completed_steps=15) is None and trust.due(15), "a new teacher"
    with pytest.raises(ValueError, match="version"):
        trust.restore({"version": 0}, 0, 0)


def test_problems_are_drawn_anew_for_every_measurement_and_alike_for_a_resumed_run():
    drawn = [draw_problems(seed, steps, 1000, 128) for seed in (None, 1) for steps in (0, 10)]
    assert all(len(set(rows)) == 128 and set(rows) <= set(range(1000)) for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) == 4
    assert draw_problems(1, 10, 1000, 128) == drawn[3]
    state = np.random.get_state()[1].tolist()
    draw_problems(1, 20, 1000, 128)
    assert np.random.get_state()[1].tolist() == state, "the training's random numbers"


def test_responses_are_counted_by_problem():
    graded = [("b", True), ("a", False), ("x", True), ("b", False)]
    assert by_problem(graded, ["a", "b", "c"]) == [[False], [True, False], []]
    assert [responses_per_problem(128, problems) for problems in (128, 64, 100, 32)] == [1, 2, 2, 4]

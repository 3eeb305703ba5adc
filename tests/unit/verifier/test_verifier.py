"""The verifier: which answer counts and which answers are equal. No response makes it raise or hang."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from verifier_cases import BOXED, RESPONSES

from verl_cast import verifier
from verl_cast.verifier import answers, compute_score, equivalence

ROOTS = (r"\boxed{\frac{\sqrt{2}}{2}}", "2^{-1/2}")  # needs math-verify
REASONING = "Let us think step by step. " * 40


def score(response, reference, **options):
    result = compute_score("math", response, reference, **{"tail_fraction": 0, **options})
    assert result.keys() == {"score", "acc", "unjudged", "pred"}
    assert result["score"] == result["acc"] in (0.0, 1.0)
    return result["score"]


# ---- which answers are paid ----


@pytest.mark.parametrize("kind", BOXED)
def test_boxed_answers_of_this_kind(kind):
    assert misjudged({reference: (box(right), box(wrong)) for reference, right, wrong in BOXED[kind]}) == []


@pytest.mark.parametrize("reference", [reference for reference, _, _ in RESPONSES])
def test_responses_with_this_answer(reference):
    assert misjudged({truth: lists for truth, *lists in RESPONSES if truth == reference}) == []


def box(contents):
    return [rf"So it is $\boxed{{{content}}}$." for content in contents]


def misjudged(by_reference):
    """(score, reference, response) where the score is 1 in the second list, or 0 in the first."""
    return [
        (1 - due, reference, response)
        for reference, lists in by_reference.items()
        for due, responses in zip((1.0, 0.0), lists, strict=True)
        for response in responses
        if score(response, reference) != due
    ]


FORMS = {
    "fraction": lambda x: f"{x.numerator}/{x.denominator}",
    "LaTeX": lambda x: rf"{'-' * (x < 0)}\frac{{{abs(x.numerator)}}}{{{x.denominator}}}",
    "mixed": lambda x: f"{'-' * (x < 0)}{int(abs(x))} {abs(x) % 1}" if x.denominator > 1 and abs(x) > 1 else str(x),
    "percent": lambda x: rf"{x.numerator * 100}/{x.denominator}\%",
    "equation": lambda x: f"x = {2 * x} - {x}" if x > 0 else f"x = {x}",
    "product": lambda x: rf"\frac{{{x.numerator}}}{{7}}\cdot\frac{{7}}{{{x.denominator}}}",
}
RATIONALS = st.fractions(-500, 500, max_denominator=120)


@given(RATIONALS, RATIONALS, st.sampled_from(sorted(FORMS)), st.sampled_from(["fraction", "LaTeX", "mixed"]))
@settings(max_examples=200, deadline=20_000)
def test_a_number_is_paid_in_every_form_and_no_other_number_in_any(x, y, form, form_of_reference):
    reference = FORMS[form_of_reference](x)
    assert score(rf"\boxed{{{FORMS[form](x)}}}", reference) == 1
    assume(y not in (x, 100 * x) and x != 100 * y)  # a percent sign may be left out
    assert score(rf"\boxed{{{FORMS[form](y)}}}", reference) == 0


# No last digit 0 and no 2: `1121-0e-1` is 11210e-1, and `2!` is 2.
@given(st.integers(3, 10**6).filter(lambda number: number % 10), st.integers(-3, 3), st.data())
@settings(max_examples=200, deadline=20_000)
def test_one_character_more_or_less_makes_a_number_wrong(number, places, data):
    right = f"{number:,}" if places == 0 else f"{number}e{places}"
    position = data.draw(st.integers(0, len(right)))
    junk = data.draw(
        st.sampled_from(["1", "9", " or ", "-", "/7", "^2", "√2", "x", "?", " not ", "<", "...", "_3", "!"])
    )
    wrong = right[:position] + junk + right[position:]
    assume(wrong.replace(",", "").strip(". ") != right.replace(",", ""))
    value = number * 10.0**places
    try:
        assume(float(wrong.replace(",", "")) != value)
    except ValueError:
        pass
    assert score(right, right.replace(",", "")) == 1
    assert score(rf"\boxed{{{wrong}}}", right.replace(",", "")) == 0, wrong


# ---- which answer counts ----


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{4}{\sqrt{3}}}.", r"\frac{4}{\sqrt{3}}"),
        (r"\boxed{7} \boxed{8} and then \boxed{9}", "9"),
        (r"\boxed{1} x \boxed{2}, \boxed{3} or $\boxed{4}$", "2 , 3 , 4"),  # alternatives stay alternatives
        (r"\boxed{5} and \boxed{5}", "5"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        ("<answer> 3 </answer> Answer: 4 \\boxed{5}", "3"),
        ("<answer>1</answer> <ANSWER>2</ANSWER>", "2"),
        ("\\boxed{5}\nAnswer: 4", "4"),
        ("\\boxed{5}\n**Answer:** 4", "4"),
        ("\\boxed{5}\n最终答案：4", "4"),
        ("\\boxed{5}\n### Final Answer\n4", "4"),
        ("Answer: 3\n  final answer :  4 ", "4"),
        ("Answer:\n\n 17\nbye", "17"),
        ("The answer: 4 is not on its own line\n\n 12 \n\n", "12"),
        ("It is\n$$\n12\n$$", "12"),
        ("<think>\\boxed{1}</think> It is \\boxed{2}", "2"),
        ("\\boxed{2} <think> or \\boxed{1}?", "2"),
        ("<reasoning>Answer: 1</reasoning>\n8", "8"),
        ("<think>cut off \\boxed{1}", ""),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_answer_that_counts(response, answer):
    assert answers.final_answer(response) == answer


@pytest.mark.parametrize(
    "response",
    [r"\boxed{42}", "\\boxed{42}.", "<answer>42</answer>", "The answer is $42$.\n\n42"],
)
def test_in_training_only_the_tail_counts(response):
    early, late = f"{response}\n{REASONING}\nso", f"{REASONING}\n{response}"
    assert score(late, "42", tail_fraction=0.05) == 1
    assert score(early, "42", tail_fraction=0.05) == 0


def test_the_tail_is_counted_in_the_tokenizers_tokens(tiny_directory):
    # The tokenizer has one token per byte, so the last 5 % of 100 characters are 5 tokens. The text has two words.
    text = "x" * 60 + " " + "y" * 28 + r"\boxed{42}."
    assert len(text) == 100
    assert answers.final_answer(text, 0.05, str(tiny_directory / "model")) == ""
    assert answers.final_answer(text, 0.12, str(tiny_directory / "model")) == "42"
    assert answers.final_answer(text.replace("y\\", "y \\"), 0.05) == "42"


def test_the_evaluations_rule_is_the_last_box_or_nothing():
    assert score(r"\boxed{1} \boxed{2} \boxed{3}", "3", extraction="last_box") == 1
    assert score("Answer: 3", "3", extraction="last_box") == 0
    assert score(r"\boxed{3} and \boxed{4", "3", extraction="last_box") == 0
    assert score(r"\boxed{3}{4}", "3", extraction="last_box") == 0


@pytest.mark.parametrize("options", [{"tail_fraction": 1.5}, {"tail_fraction": -1}, {"extraction": "first"}])
def test_an_option_without_sense_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        compute_score("math", "1", "1", **options)


def test_in_a_script_without_blanks_the_tail_is_counted_in_characters():
    text = "首先设未知数并列出方程，然后把两边同时化简。" * 20
    assert score(text + "\n\n所以答案是 $\\boxed{42}$。\n\n经检验无误。", "42", tail_fraction=0.05) == 1
    assert score("所以答案是 $\\boxed{42}$。\n\n" + "a b " * 200 + text, "42", tail_fraction=0.05) == 0


# ---- hostile responses ----

HOSTILE = {
    "power tower": r"\boxed{9^{9^{9^{9}}}}",
    "nested factorials": r"\boxed{((20!)!)!}",
    "unbalanced": r"\boxed{\frac{1}{2}",
    "closing only": "}" * 100_000,
    "1 MB of braces": "{" * 1_000_000,
    "boxes never closed": r"\boxed{" * 150_000,
    "boxes in boxes": r"\boxed{" * 30_000 + "1" + "}" * 30_000,
    "1 MB of new lines": "\n" * 1_000_000,
    "answer tags never closed": "<answer>" * 125_000,
    "thinking without end": "<think>" * 125_000,
    "answer lines without value": "answer:\n" * 125_000,
    "null bytes": "\\boxed{\x00\x00 1}",
    "lone surrogate": "\\boxed{\ud800 1}",
    "deep nesting": r"\boxed{" + "(" * 450 + "1" + ")" * 450 + "}",
    "dunder": r"\boxed{__import__('os').system('true')}",
    "huge sum": r"\boxed{\sum_{k=1}^{99999999999} \sin(k!)}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_response_is_wrong_and_soon_over(name):
    score(*ROOTS)  # starts the pool
    started = time.monotonic()
    result = compute_score("math", HOSTILE[name], "3", tail_fraction=0.05, timeout=2)
    assert result["score"] == 0.0
    assert time.monotonic() - started < 8
    assert len(result["pred"]) <= equivalence.MAX_ANSWER_CHARACTERS
    assert score(*ROOTS) == 1  # the next response is judged as usual


def test_a_stopped_comparison_is_said_and_every_power_of_two_of_them_logged(monkeypatch, caplog):
    monkeypatch.setattr(verifier, "_stopped_comparisons", itertools.count(1))
    results = [compute_score("math", HOSTILE["power tower"], "3", timeout=1) for _ in range(2)]
    assert [(r["score"], r["unjudged"]) for r in results] == [(0.0, 1.0)] * 2
    assert compute_score("math", r"\boxed{\frac{1}{2}}", "0.5", tail_fraction=0)["unjudged"] == 0.0
    for _ in range(7):
        verifier._report("9^9")
    assert [int(record.args[0]) for record in caplog.records] == [1, 2, 4, 8]


LATEX = st.lists(
    st.sampled_from(
        r"\boxed{ { } \frac \sqrt ^ _ ( ) [ 1 9 x , = ! \cup \infty \text{a} % $ \sum \int & \\ < Answer:".split()
        + [" ", "\n", "\x00"]
    ),
    max_size=25,
).map("".join)
ANY_TEXT = st.text(st.characters(codec=None), max_size=300) | LATEX.map(lambda text: rf"{text} \boxed{{{text}}}")


@given(ANY_TEXT, LATEX | st.just(r"\frac{1}{2}"))
@settings(max_examples=300, deadline=20_000)
def test_any_text_gets_a_verdict(text, reference):
    score(text, reference, timeout=2)


# ---- verl ----


def test_verl_loads_and_calls_it(compose):
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = compose(
        "reward.custom_reward_function.path=pkg://verl_cast.verifier",
        "+reward.custom_reward_function.reward_kwargs.tail_fraction=0",
    )
    function = get_custom_reward_fn(config)
    arguments = {"data_source": "math", "ground_truth": "0.5", "extra_info": {"split": "train"}}
    results = []
    thread = threading.Thread(
        target=lambda: results.append(function(solution_str=r"\boxed{\frac{1}{2}} by " + REASONING, **arguments))
    )
    thread.start()
    thread.join()
    assert results == [{"score": 1.0, "acc": 1.0, "unjudged": 0.0, "pred": r"\frac{1}{2}"}]


def test_several_accepted_answers_are_alternatives():
    for accepted in (["1", "2"], ("1", "2"), np.array(["1", "2"])):
        assert score(r"\boxed{2}", accepted) == score(r"\boxed{\frac{2}{2}}", accepted) == 1
        assert score(r"\boxed{3}", accepted) == score(r"\boxed{12}", accepted) == 0
    assert score(r"\boxed{2}", []) == score(r"\boxed{2}", np.array([])) == 0


@pytest.mark.parametrize("reference", ["12", 12, 12.0, np.str_("12"), np.int64(12), np.float32(12), np.array(12)])
def test_any_other_ground_truth_is_one_answer(reference):
    assert score(r"\boxed{12}", reference) == 1
    assert score(r"\boxed{1}", reference) == score(r"\boxed{2}", reference) == 0


@pytest.mark.parametrize("reference", [None, {"12": "12"}])
def test_a_ground_truth_of_another_type_is_read_as_text(reference):
    assert score(r"\boxed{12}", reference) == 0
    assert score(str(reference), reference) == 1

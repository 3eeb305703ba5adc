"""The verifier: which answer counts and which answers are equal. No response makes it raise, hang or leak processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_cast.verifier import answers, compute_score, equivalence

REASONING = "Let us think step by step. " * 40


def score(response, reference, **options):
    result = compute_score("math", response, reference, **{"tail_fraction": 0, **options})
    assert result.keys() == {"score", "acc", "unjudged", "pred"}
    assert result["score"] == result["acc"] in (0.0, 1.0)
    return result["score"]


# ---- which answer counts ----


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{4}{\sqrt{3}}}.", r"\frac{4}{\sqrt{3}}"),
        (r"\boxed{7} \boxed{8} and then \boxed{9}", "7"),  # the first box of a run counts
        (r"\boxed{1} x \boxed{2} \boxed{3} y \boxed{4} \boxed{5} \boxed{6}", "4"),  # the longest run counts
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        ("<answer> 3 </answer> Answer: 4 \\boxed{5}", "3"),
        ("<answer>1</answer> <ANSWER>2</ANSWER>", "2"),
        ("\\boxed{5}\nAnswer: 4", "4"),
        ("Answer: 3\n  final answer :  4 ", "4"),
        ("Answer:\n\n 17\nbye", "17"),
        ("The answer: 4 is not on its own line\n\n 12 \n\n", "12"),
        ("<think>\\boxed{1}</think> It is \\boxed{2}", "2"),
        ("\\boxed{2} <think> or \\boxed{1}?", "2"),
        ("<reasoning>Answer: 1</reasoning>\n8", "8"),
        ("<think>cut off \\boxed{1}", ""),
        ("Answer: **42**", "42"),  # Markdown marks are not part of the answer
        ("Final answer: `x_1`", "x_1"),
        ("It is\n**\\frac{1}{2}**", r"\frac{1}{2}"),
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


@pytest.mark.parametrize("options", [{"tail_fraction": 1.5}, {"tail_fraction": -1}, {"extraction": "first"}])
def test_an_option_without_sense_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        compute_score("math", "1", "1", **options)


# ---- which answers are equal ----

# (answer, reference, equal?): mostly the cases of math-verify's own tests.
PAIRS = [
    (r"\frac{10}{9}", "10/9", True),
    (r"-\frac{10}{9}", "-10/9", True),
    ("0.5", r"\frac{1}{2}", True),
    (r"\dfrac{1}{3}", "1/3", True),
    (r"\cfrac{1}{3}", r"\tfrac{1}{3}", True),
    (r"\frac13", "1/3", True),
    (r"\frac{1}{3} \text{ meters}", "1/3", True),
    (r"k = \frac{1}{3}", "1/3", True),
    (r"\left( \frac{1}{3} \right)", "1/3", True),
    (r"\sqrt3", r"\sqrt{3}", True),
    (r"\sqrt{12}", r"2\sqrt{3}", True),
    ("7,425,000", "7425000", True),
    ("14{,}916", "14916", True),
    ("1000.0", "1000", True),
    (".4", "0.4", True),
    ("042", "42", True),
    (r"28\%", "28", True),
    ("28", "0.28", False),
    ("28", r"\frac{28}{100}", False),
    (r"90^\circ", "90", True),
    ("[0,1)", "[0,1)", True),
    ("[0,1)", "[0,9)", False),
    ("[0,9)", "(0,9)", False),
    (r"(-\infty, 2) \cup (2, \infty)", r"(-\infty,2)\cup(2,\infty)", True),
    (r"\{2, 1, 3\}", r"\{1,2,3\}", True),
    (r"\{1, 2\}", r"\{1,2,3\}", False),
    (r"\{1,2,3,4\}", r"\{1,3\} \cup \{2,4\}", True),
    ("1, 2", "2,1", True),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)", True),
    ("(1,2)", "(2,1)", False),
    (r"\begin{pmatrix} 0 & 3 \\ 0 & -1 \end{pmatrix}", r"\begin{pmatrix}0&3\\0&-1\end{pmatrix}", True),
    (r"\begin{pmatrix} 0 & 3 \\ 0 & 1 \end{pmatrix}", r"\begin{pmatrix}0&3\\0&-1\end{pmatrix}", False),
    ("(x+1)^2", "x^2+2x+1", True),
    ("2-2p", "-2p+2", True),
    ("x+1", "x+2", False),
    (r"\text{Evelyn}", "Evelyn", True),
    ("evelyn ", "Evelyn", True),
    (r"\text{Carla}", "Evelyn", False),
    (r"3\pi", "3", False),  # math-verify reads the bare text as 3
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
    ("9" * 400, "9" * 399, False),
    ("1", "", False),
]


@pytest.mark.parametrize(("answer", "reference", "equal"), PAIRS)
def test_equivalence(answer, reference, equal):
    assert score(rf"So it is \boxed{{{answer}}}.", reference) == equal


@pytest.mark.parametrize(("answer", "reference"), [pair[:2] for pair in PAIRS if pair[1]])
def test_verdicts_are_those_of_math_verify(answer, reference):
    from math_verify import parse, verify

    theirs = verify(parse(f"${reference}$"), parse(f"${answer}$"))
    assert equivalence.is_equal(answer, reference, timeout=20) == (
        theirs or "".join(answer.split()).lower() == "".join(reference.split()).lower()
    )


@pytest.mark.parametrize("line", ["So the total is 42.", "The answer is $42$.", r"It must be \(42\)", "42 apples"])
def test_prose_is_read_as_it_stands(line):
    assert score(line, "42") == 1
    assert score(line, "43") == 0


# ---- hostile responses ----

HOSTILE = {
    "power tower": r"\boxed{9^{9^{9^{9}}}}",
    "plain tower": r"\boxed{9**9**9**9}",
    "factorials": r"\boxed{99999999!}",
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
    "deep fractions": r"\boxed{" + r"\frac{1}{" * 90 + "2" + "}" * 90 + "}",
    "deep powers": r"\boxed{" + "x^{" * 240 + "2" + "}" * 240 + "}",
    "dunder": r"\boxed{__import__('os').system('true')}",
    "huge sum": r"\boxed{\sum_{k=1}^{99999999999} \sin(k!)}",
    "huge number": r"\boxed{10^{10^{10}}}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_response_is_wrong_and_soon_over(name, caplog):
    score("1/2", "0.5")  # starts the pool
    started = time.monotonic()
    result = compute_score("math", HOSTILE[name], "3", tail_fraction=0.05, timeout=2)
    assert result["score"] == 0.0
    assert time.monotonic() - started < 8
    assert len(result["pred"]) <= equivalence.MAX_ANSWER_CHARACTERS
    assert score(r"\boxed{\frac{1}{2}}", "0.5") == 1  # the next response is judged as usual


def test_a_stopped_comparison_is_said(caplog):
    results = [compute_score("math", HOSTILE["power tower"], "3", timeout=1) for _ in range(2)]
    assert [(r["score"], r["unjudged"]) for r in results] == [(0.0, 1.0)] * 2
    assert compute_score("math", r"\boxed{\frac{1}{2}}", "0.5", tail_fraction=0)["unjudged"] == 0.0


def test_every_power_of_two_stopped_comparisons_is_logged(monkeypatch, caplog):
    import itertools

    from verl_cast import verifier

    monkeypatch.setattr(verifier, "_stopped_comparisons", itertools.count(1))
    for _ in range(9):
        verifier._report("9^9")
    assert [int(record.args[0]) for record in caplog.records] == [1, 2, 4, 8]


@given(st.text(st.characters(codec=None), max_size=300), st.sampled_from(["3", r"\frac{1}{2}", "", "\x00"]))
@settings(max_examples=150, deadline=20_000)
def test_any_text_gets_a_verdict(text, reference):
    score(text, reference, timeout=2)


LATEX = st.lists(
    st.sampled_from(
        r"\boxed{ { } \frac \sqrt ^ _ ( ) [ 1 9 x , = ! \cup \infty \text{a} % $ \sum \int & \\ < Answer:".split()
        + [" ", "\n"]
    ),
    max_size=25,
).map("".join)


@given(LATEX, LATEX)
@settings(max_examples=150, deadline=20_000)
def test_any_latex_gets_a_verdict(text, reference):
    score(rf"{text} \boxed{{{text}}}", reference, timeout=2)


# ---- processes ----


def processes() -> list[int]:
    """The pool's processes: children that multiprocessing spawned, without its resource tracker."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat, open(f"/proc/{name}/cmdline") as command:
                if int(stat.read().rsplit(")", 1)[1].split()[1]) == os.getpid() and "spawn_main" in command.read():
                    found.append(int(name))
        except OSError:  # the process has ended
            pass
    return found


def test_outside_the_main_thread_and_from_many_threads():
    # verl's reward workers call the verifier in a thread pool. math-verify's own time limit raises there.
    with ThreadPoolExecutor(16) as threads:
        responses = [rf"\boxed{{\frac{{{i % 7}}}{{2}}}}" for i in range(200)] + [HOSTILE["power tower"]] * 2
        scores = list(threads.map(lambda response: score(response, "1.5", timeout=2), responses))
    assert scores == [float(i % 7 == 3) for i in range(200)] + [0.0, 0.0]


def test_a_killed_process_costs_one_verdict_at_most():
    score("1/2", "0.5")
    for pid in processes():
        os.kill(pid, signal.SIGKILL)
    score("1/2", "0.5")
    assert score("1/2", "0.5") == 1


def test_equal_texts_integers_and_nothing_need_no_process(monkeypatch):
    monkeypatch.setattr(equivalence, "_running_pool", lambda: pytest.fail("asked for a process"))
    assert [score(*pair) for pair in [("x + Y", "X+y"), ("7", "007"), ("7", "8"), ("", "7"), ("x" * 2000, "7")]] == [
        1,
        1,
        0,
        0,
        0,
    ]


PROGRAM = """
import os, sys
from verl_cast.verifier import compute_score
if __name__ == "__main__":
    result = compute_score("math", "so 1/2", "0.5", tail_fraction=0)
    modules = sorted({"torch", "verl", "transformers", "math_verify", "numpy"} & set(sys.modules))
    print(result["score"], modules, flush=True)
    if "idle" in sys.argv:
        sys.stdin.read()
    if "hangs" in sys.argv:
        compute_score("math", r"\\boxed{9^{9^{9^{9}}}}", "3", timeout=2)
"""


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split()]


def alive_in_group(group):
    """Processes of the group, without zombies that only wait for init."""
    listed = subprocess.run(["ps", "-eo", "pgid=,ppid=,stat="], capture_output=True, text=True).stdout
    rows = [row.split() for row in listed.splitlines()]
    return [row for row in rows if row[0] == str(group) and not (row[1] == "1" and row[2].startswith("Z"))]


@pytest.mark.parametrize("end", ["exit", "killed while idle", "killed while it hangs"])
def test_nothing_is_left_behind(tmp_path, end):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", end.split()[-1]]
    # The group holds the program and all its descendants, unless one leaves the group.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = subprocess.Popen(command, cwd=tmp_path, **pipes, text=True, start_new_session=True)
    assert program.stdout.readline() == "1.0 []\n"  # the calling process imports nothing heavy
    if end != "exit":
        time.sleep(0.5)
        assert children(program.pid)
        program.kill()
    program.wait(timeout=20)
    give_up = time.monotonic() + 15
    while alive_in_group(program.pid) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not alive_in_group(program.pid)


def test_a_broken_math_verify_is_an_error_and_no_verdict(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "math_verify.py").write_text(
        "raise ImportError('no antlr here')"
    )  # the program's directory is first on the path
    run = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "RuntimeError: verifier: its math-verify processes do not work here" in run.stderr
    assert "no antlr here" in run.stderr


def test_a_forked_child_makes_its_own_pool():
    score("1/2", "0.5")
    pid = os.fork()
    if pid == 0:
        verdict = 1
        try:
            verdict = 0 if score("1/2", "0.5") == 1 else 2
        finally:
            os._exit(verdict)
    assert os.waitpid(pid, 0)[1] == 0


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


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_in_a_ray_worker_it_judges_and_is_not_held_up():
    """As in verl, the call comes from a thread of a Ray actor, whose main module is Ray's."""
    import ray

    class RewardWorker:
        def judge(self, *arguments, **options):
            with ThreadPoolExecutor() as pool:
                return pool.submit(compute_score, "math", *arguments, **options).result()

        def memory_of_processes(self):
            return [child.memory_info().rss for child in psutil.Process().children(recursive=True)]

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        worker = ray.remote(RewardWorker).remote()
        started = time.monotonic()
        first = ray.get(worker.judge.remote(r"\boxed{\frac12}", "0.5", tail_fraction=0))
        hostile = ray.get(worker.judge.remote(HOSTILE["power tower"], "1", tail_fraction=0, timeout=3))
        again = ray.get(worker.judge.remote(r"\boxed{\frac12}", "0.5", tail_fraction=0))
        assert (first["score"], hostile["score"], hostile["unjudged"], again["score"]) == (1, 0, 1, 1)
        assert time.monotonic() - started < 120
        assert max(ray.get(worker.memory_of_processes.remote())) < 400 * 2**20, "no torch and no verl in them"
    finally:
        ray.shutdown()

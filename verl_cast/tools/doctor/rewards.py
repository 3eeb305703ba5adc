"""The run's reward, tried before the run: one row of every data source, with a wrong response and with its own answer.

The rewards are those of verl's reward manager, as in `verl-cast diagnose`. The reward function is the user's code. It
may hang or end its process, so it is loaded and called in a child process with a time limit. Left out: reward models
and reward managers that need a server or more than one response.
"""

import contextlib
import functools
import inspect
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from omegaconf import DictConfig

from verl_cast.config.methods import method_config
from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.diagnose.setup import REWARD_MANAGERS, Problem, Setup, Verifier
from verl_cast.tools.doctor.lines import Line, cause_of, error, note, ok, warning

KEY = "reward.custom_reward_function"
SECONDS = 60  # for loading, and for each response
SOURCES = 16
WRONG = "I do not know."
# Each reward function looks for an answer in its own place. A response is right if it is right in one of these forms.
FORMS = ("\\boxed{{{}}}", "Answer: {}", "#### {}", "<answer>{}</answer>", "{}")
_ANOTHER = f"set {KEY}.path (pkg://verl_cast.verifier grades math)"


def check(config: DictConfig, rows: Sequence[Mapping[str, Any]], is_accepted: bool) -> list[Line]:
    """Load the reward function, and score the rows.

    Args:
        rows: one of every data source, with the columns that verl's reward managers read.
        is_accepted: whether the checks of the command accept it; if not, nothing is scored.
    """
    setup, why_not = _setup(config, rows) if is_accepted else (None, None)
    lines = _in_child(config, setup, rows)
    if why_not is not None and not any(line.mark == "error" for line in lines):
        lines.append(note("verifier", f"not called: {why_not}"))
    return lines


def _setup(config: DictConfig, rows: Sequence[Mapping[str, Any]]) -> tuple[Setup | None, str | None]:
    """What the verifier needs; without it, why rewards cannot be tried here."""
    manager = config.reward.reward_manager
    if manager.source != "register" or manager.name not in REWARD_MANAGERS:
        return None, f"reward.reward_manager.name={manager.name} is none of {', '.join(REWARD_MANAGERS)}"
    if config.reward.reward_model.enable:
        return None, "reward.reward_model.enable=True"
    if not rows:
        return None, "no row was read that has data_source and reward_model.ground_truth"
    config = config.copy()
    config.actor_rollout_ref.model.lora_adapter_path = None  # grading needs no weights
    try:
        setup = Setup(config, [])
        setup.tokenizer  # noqa: B018  loaded here: a download may take longer than the child's time
    except UserError:
        return None, "the model's tokenizer cannot be loaded"
    return setup, None


def _in_child(config: DictConfig, setup: Setup | None, rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The lines of `_lines`, from a child process that ends with its descendants.

    It is forked: a new process would import verl again, which takes longer than everything else here.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_lines, args=(sender, config, setup, rows))
    child.start()
    sender.close()
    lines, doing = [], "loading the reward function"
    try:
        while True:
            if not receiver.poll(SECONDS):
                lines.append(error("verifier", f"{doing} takes longer than {SECONDS:g} s; mend it, or {_ANOTHER}."))
                return lines
            said = receiver.recv()
            if said is None:
                return lines
            if isinstance(said, Line):
                lines.append(said)
            else:
                doing = said
    except EOFError:
        return [*lines, error("verifier", f"{doing} ends its process; mend it, or {_ANOTHER}.")]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.join()
        receiver.close()


def _send_lines(sender: Connection, config: DictConfig, setup: Setup | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """In the child: send findings, before each what is done next, and None at the end."""
    import asyncio

    os.setsid()
    asyncio.set_event_loop(asyncio.new_event_loop())  # the parent's would be shared
    for said in _lines(config, setup, rows):
        sender.send(said)
    sender.send(None)


def _lines(config: DictConfig, setup: Setup | None, rows: Sequence[Mapping[str, Any]]) -> Iterator[Line | str]:
    custom = config.reward.custom_reward_function
    problem = None if custom.path is None else _cannot_be_called(custom)
    if problem is not None:
        yield error("verifier", f"{KEY}: {problem}")
        return
    name = "verl's own reward function" if custom.path is None else f"{custom.name} of {custom.path}"
    if custom.path is not None:
        yield ok("verifier", f"{name} loads")
    if setup is None:
        return
    try:
        score = functools.partial(_score, setup, Verifier(setup))
    except Exception as problem:  # a reward manager may raise anything
        yield error("verifier", f"verl's reward manager does not start: {first_line(cause_of(problem))}")
        return
    threshold = method_config(config).correct_threshold
    for row in rows[:SOURCES]:
        yield f"{name}, called for data_source {row['data_source']},"
        try:
            yield _scored(score, row, threshold)
        except BaseException as problem:  # SystemExit, too: it would end a worker
            yield error("verifier", _raises(name, custom.path is None, row["data_source"], problem))
    if len(rows) > SOURCES:
        yield note("verifier", f"{len(rows) - SOURCES} more data sources were not tried")


def _cannot_be_called(custom: DictConfig) -> str | None:
    from verl.utils.import_utils import load_extern_object

    try:
        function = load_extern_object(custom.path, custom.name)
    except BaseException as problem:  # the user's file may raise anything
        return f"{custom.name} of {custom.path} does not load: {first_line(cause_of(problem))}"
    arguments = dict.fromkeys(("data_source", "solution_str", "ground_truth", "extra_info"))
    try:
        inspect.signature(function).bind(**{**arguments, **(custom.get("reward_kwargs") or {})})
    except TypeError as problem:
        return f"verl calls {custom.name}({', '.join(arguments)}), but {first_line(problem)}"
    return None


def _scored(score: Callable[[Mapping[str, Any], str], float], row: Mapping[str, Any], threshold: float) -> Line:
    """The rewards of a wrong and of a right response to one row."""
    source = f"data_source {row['data_source']}"
    wrong = score(row, WRONG)
    if wrong > threshold:
        return warning(
            "verifier",
            f"{source}: the response {WRONG!r} has reward {wrong:g} and counts as correct (above correct_threshold="
            f"{threshold:g}); check the reward function.",
        )
    answer, best = _answer(row["reward_model"]["ground_truth"]), -math.inf
    for form in FORMS if answer else ():
        response = form.format(answer)
        reward = score(row, response)
        if reward > threshold:
            return ok("verifier", f"{source}: reward {reward:g} for {_short(response)!r}, {wrong:g} for {WRONG!r}")
        best = max(best, reward)
    if not answer:
        return note("verifier", f"{source}: reward {wrong:g} for {WRONG!r}; its reference is no text to respond with")
    forms = ", ".join(_short(form.format(answer)) for form in FORMS)
    return warning(
        "verifier",
        f"{source}: its own answer has reward {best:g} at most and does not count as correct (correct_threshold="
        f"{threshold:g}), in none of the forms {forms}. If responses need another form (code, JSON), that is right; "
        "else check reward_model.ground_truth and the reward function.",
    )


def _score(setup: Setup, verifier: Verifier, row: Mapping[str, Any], response: str) -> float:
    """
    Raises:
        ValueError: the reward is no finite number.
    """
    fields = {"data_source": row["data_source"], "reward_model": row["reward_model"]}
    fields["extra_info"] = dict(row.get("extra_info") or {})
    reward = verifier.score(Problem([], None, fields), setup.tokenizer(response, add_special_tokens=False)["input_ids"])
    if not math.isfinite(reward):
        raise ValueError(f"the reward of {response!r} is {reward}, not a finite number")
    return reward


def _answer(reference: Any) -> str | None:
    """A reference as text: itself, or the first text in it."""
    if isinstance(reference, Mapping):
        reference = list(reference.values())
    if isinstance(reference, list | tuple):
        return next((text for text in map(_answer, reference) if text), None)
    return None if reference is None else str(reference)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}"


def _raises(name: str, is_verls: bool, source: str, problem: BaseException) -> str:
    if is_verls and isinstance(problem, NotImplementedError):
        return f"verl has no reward function for data_source {source}, and a run would stop; {_ANOTHER}."
    text = first_line(problem) if str(problem) else "no message."
    return f"{name} fails for data_source {source}: {type(problem).__name__}: {text} Mend it, or {_ANOTHER}."

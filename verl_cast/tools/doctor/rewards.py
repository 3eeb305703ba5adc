"""The run's reward, tried before the run: one row of every data source, with a wrong response and with its own answer.

The rewards are those of verl's reward manager. The reward function is the user's code. It may hang or end its process,
so it is loaded and called in a child process with a time limit. Left out: reward models and reward managers that need a
server or more than one response.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from omegaconf import DictConfig

from verl_cast.config.words import command_words
from verl_cast.tools.cli import cause_of, first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok, warning
from verl_cast.tools.run_parts import load_reward, not_graded

KEY = "reward.custom_reward_function"
SECONDS = 60  # for loading, and for each data source
WRONG = "I do not know."
# Each reward function looks for an answer in its own place. A response is right if it is right in one of these forms.
FORMS = ("\\boxed{{{}}}", "Answer: {}", "#### {}", "<answer>{}</answer>", "{}")
_ANOTHER = f"set {KEY}.path (pkg://verl_cast.verifier grades math)"


def check(config: DictConfig, tokenizer: Any, rows: Sequence[Mapping[str, Any]], threshold: float) -> list[Line]:
    """Load the reward function, and score the rows.

    Args:
        rows: one of every data source, as verl's dataset class gives them.
        threshold: a response with a greater reward is correct.
    """
    skipped = not_graded(config)
    lines = _in_child(_lines(config, tokenizer, [] if skipped else rows, threshold))
    if skipped is not None:
        lines.append(note("verifier", f"not called: {skipped} does not grade responses one by one in this process"))
    return lines


def _in_child(said: Iterator[Line | str]) -> list[Line]:
    """The lines that `said` gives in a child process, which ends with its descendants; a str is what it does next.

    It is forked: a new process would import verl again, which takes longer than everything else here.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, said))
    child.start()
    sender.close()
    lines, doing = [], "loading the reward function"
    try:
        while receiver.poll(SECONDS):
            heard = receiver.recv()
            if heard is None:
                return lines
            if isinstance(heard, Line):
                lines.append(heard)
            else:
                doing = heard
        return [*lines, error("verifier", f"{doing} takes longer than {SECONDS:g} s; mend it, or {_ANOTHER}.")]
    except EOFError:
        return [*lines, error("verifier", f"{doing} ends its process; mend it, or {_ANOTHER}.")]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.join()
        receiver.close()


def _send(sender: Connection, said: Iterator[Line | str]) -> None:
    os.setsid()
    asyncio.set_event_loop(asyncio.new_event_loop())  # the parent's would be shared
    for item in said:
        sender.send(item)
    sender.send(None)


def _lines(
    config: DictConfig, tokenizer: Any, rows: Sequence[Mapping[str, Any]], threshold: float
) -> Iterator[Line | str]:
    from verl.utils.import_utils import load_extern_object

    path, function = config.reward.custom_reward_function.path, config.reward.custom_reward_function.name
    name = "verl's own reward function" if path is None else f"{function} of {path}"
    try:
        if path is not None:
            load_extern_object(path, function)
            yield ok("verifier", f"{name} loads")
        reward_of = load_reward(config, tokenizer) if rows else None
    except BaseException as problem:  # the user's file may raise anything
        yield error("verifier", f"{KEY}: {name} does not load: {first_line(cause_of(problem))}")
        return
    for row in rows:
        source = row["data_source"]
        yield f"{name}, called for data_source {source},"
        try:
            yield _scored(reward_of, tokenizer, row, threshold)
        except BaseException as problem:  # SystemExit, too: it would end a worker
            what = f"{name} fails for data_source {source}: {type(problem).__name__}"
            yield error("verifier", f"{what}: {first_line(problem)} Mend it, or {_ANOTHER}.")


def _scored(reward_of: Callable, tokenizer: Any, row: Mapping[str, Any], threshold: float) -> Line:
    """The rewards of a wrong and of right responses to one row, and what they say of the threshold."""
    answer = _answer(row["reward_model"]["ground_truth"])
    texts = [WRONG, *(form.format(answer) for form in FORMS if answer)]
    wrong, *rewards = (reward_of(row, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    right = dict(zip(texts[1:], rewards, strict=True))
    best, limit = max(rewards, default=wrong), f"correct_threshold={threshold:g}"
    seen = f"data_source {row['data_source']}: reward {wrong:g} for {WRONG!r}"
    if wrong > threshold:
        return warning("verifier", f"{seen}, which counts as correct (above {limit}); check the reward function.")
    if not right:
        return note("verifier", f"{seen}; its reference is no text to respond with")
    if best > threshold:
        response = next(text for text, value in right.items() if value == best)
        return ok("verifier", f"{seen}, {best:g} for {_short(response)!r}")
    values = ", ".join(f"{value:g} for {_short(text)!r}" for text, value in right.items())
    remedy = "If responses need another form (code, JSON), that is right; else check the reward function."
    if best > wrong:
        between = command_words({"correct_threshold": (best + wrong) / 2})
        remedy = f"Every group would be all-wrong; if these rewards are right, use {between}."
    return warning("verifier", f"{seen}, {values}: none of them counts as correct ({limit}). {remedy}")


def _answer(reference: Any) -> str | None:
    """A reference as text: itself, or the first text in it."""
    if isinstance(reference, Mapping):
        reference = list(reference.values())
    if isinstance(reference, list | tuple):
        return next((text for text in map(_answer, reference) if text), None)
    return None if reference is None else str(reference)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}"

"""The run's reward, tried before the run: one row of every data source, with a wrong response and with its own answer.

The rewards are those of verl's reward manager. The reward function is the user's code. It may hang or end its process,
so it is loaded and called in a child process with a time limit. Left out: reward models and reward managers that need a
server or more than one response.
"""

import contextlib
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from omegaconf import DictConfig

from verl_cast.config.words import command_words
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, cause_of, error, note, ok, warning

KEY = "reward.custom_reward_function"
MANAGERS = ("naive", "dapo")  # verl's managers that grade one response by its text, in this process
SECONDS = 60  # for loading, and for each data source
SOURCES = 16
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
    manager, why_not = config.reward.reward_manager, None
    if manager.source != "register" or manager.name not in MANAGERS:
        why_not = f"reward.reward_manager.name={manager.name} is none of {', '.join(MANAGERS)}"
    elif config.reward.reward_model.enable:
        why_not = "reward.reward_model.enable=True"
    lines = _in_child(_lines(config, tokenizer, [] if why_not else rows[:SOURCES], threshold))
    if why_not is not None:
        lines.append(note("verifier", f"not called: {why_not}"))
    elif len(rows) > SOURCES:
        lines.append(note("verifier", f"{len(rows) - SOURCES} more data sources were not tried"))
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
    import asyncio

    os.setsid()
    asyncio.set_event_loop(asyncio.new_event_loop())  # the parent's would be shared
    for item in said:
        sender.send(item)
    sender.send(None)


def _lines(
    config: DictConfig, tokenizer: Any, rows: Sequence[Mapping[str, Any]], threshold: float
) -> Iterator[Line | str]:
    from verl.utils.import_utils import load_extern_object

    custom = config.reward.custom_reward_function
    name = "verl's own reward function" if custom.path is None else f"{custom.name} of {custom.path}"
    if custom.path is not None:
        try:
            load_extern_object(custom.path, custom.name)
        except BaseException as problem:  # the user's file may raise anything
            yield error("verifier", f"{KEY}: {name} does not load: {first_line(cause_of(problem))}")
            return
        yield ok("verifier", f"{name} loads")
    try:
        score = _scorer(config, tokenizer) if rows else None
    except Exception as problem:  # a reward manager may raise anything
        yield error("verifier", f"verl's reward manager does not start: {first_line(cause_of(problem))}")
        return
    for row in rows:
        yield f"{name}, called for data_source {row['data_source']},"
        try:
            yield _scored(score, row, threshold)
        except BaseException as problem:  # SystemExit, too: it would end a worker
            yield error("verifier", _raises(name, custom.path is None, row["data_source"], problem))


def _scorer(config: DictConfig, tokenizer: Any) -> Callable[[Mapping[str, Any], str], float]:
    """A function that grades a response to a row by verl's reward manager."""
    import numpy as np
    import torch
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    manager = load_reward_manager(config, tokenizer)

    def score(row: Mapping[str, Any], response: str) -> float:
        responses = torch.tensor([tokenizer(response, add_special_tokens=False)["input_ids"]])
        fields = {"data_source": row["data_source"], "reward_model": row["reward_model"]}
        fields["extra_info"] = dict(row["extra_info"])  # verl writes into it
        data = DataProto.from_dict(
            tensors={"responses": responses, "attention_mask": torch.ones_like(responses)},
            non_tensors={name: np.array([value], dtype=object) for name, value in fields.items()},
        )
        reward = float(manager.loop.run_until_complete(manager.run_single(data))["reward_score"])
        if not math.isfinite(reward):
            raise ValueError(f"the reward of {response!r} is {reward}, not a finite number")
        return reward

    return score


def _scored(score: Callable[[Mapping[str, Any], str], float], row: Mapping[str, Any], threshold: float) -> Line:
    """The rewards of a wrong and of right responses to one row, and what they say of the threshold."""
    source, answer = f"data_source {row['data_source']}", _answer(row["reward_model"]["ground_truth"])
    wrong = score(row, WRONG)
    right = {form.format(answer): score(row, form.format(answer)) for form in (FORMS if answer else ())}
    best = max(right, key=right.get, default=None)
    seen = f"{source}: reward {wrong:g} for {WRONG!r}"
    limit = f"correct_threshold={threshold:g}"
    if wrong > threshold:
        return warning("verifier", f"{seen}, which counts as correct (above {limit}); check the reward function.")
    if best is None:
        return note("verifier", f"{seen}; its reference is no text to respond with")
    if right[best] > threshold:
        return ok("verifier", f"{seen}, {right[best]:g} for {_short(best)!r}")
    values = ", ".join(f"{value:g} for {_short(text)!r}" for text, value in right.items())
    seen = f"{seen}, {values}: none of them counts as correct ({limit})"
    if right[best] > wrong:
        between = command_words({"correct_threshold": (right[best] + wrong) / 2})
        return warning(
            "verifier", f"{seen}. Every group would be all-wrong; if these rewards are right, use {between}."
        )
    return warning(
        "verifier",
        f"{seen}. If responses need another form (code, JSON), that is right; else check reward_model.ground_truth and "
        "the reward function.",
    )


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

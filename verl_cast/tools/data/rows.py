r"""A source's rows in verl's format, each problem once.

A row is data_source, prompt (chat messages), ability, reward_model {style, ground_truth}, extra_info {index, split,
problem}. The prompt has one of two forms. `raw` is DAPO's own words around the problem ("... Answer: $Answer ..."); the
evaluated run trains on it. `boxed` is the problem and the \boxed{} instruction; the evaluated run is evaluated on it.
Two problems are the same if their texts are equal without DAPO's words and without whitespace. The first one is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow
from datasets import Dataset
from tqdm import tqdm

from verl_cast.teacher.context import DAPO_PREFIX, DAPO_SUFFIX, INSTRUCTION, problem_text
from verl_cast.tools.cli import UserError
from verl_cast.tools.data.sources import Source

PROMPTS = ("raw", "boxed")
SCHEMA = pyarrow.schema(
    [
        ("data_source", pyarrow.string()),
        ("prompt", pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))),
        ("ability", pyarrow.string()),
        ("reward_model", pyarrow.struct([("style", pyarrow.string()), ("ground_truth", pyarrow.string())])),
        (
            "extra_info",
            pyarrow.struct([("index", pyarrow.int64()), ("split", pyarrow.string()), ("problem", pyarrow.string())]),
        ),
    ]
)


@dataclass(frozen=True)
class Prepared:
    """The rows that a source gave, and their counts.

    Attributes:
        table: rows in verl's format.
        rows_read: rows of the source.
        rows_duplicate: rows that were left out because their problem was there already.
        rows_conflicting: duplicates whose answer differs from the first one's.
    """

    table: pyarrow.Table
    rows_read: int
    rows_duplicate: int
    rows_conflicting: int


def prepare(dataset: Dataset, source: Source, prompt: str, limit: int | None = None) -> Prepared:
    """Turn a source's rows into verl's.

    Args:
        prompt: form of the prompt, one of PROMPTS.
        limit: at most this many problems, the first ones.

    Raises:
        UserError: a column is missing or holds something else; the message names it, and what was found.
    """
    problem_column = _column(dataset, source, "problem", source.problem_columns)
    answer_column = _column(dataset, source, "answer", source.answer_columns)
    answers: dict[str, str] = {}
    rows, num_conflicting = [], 0
    for i, content, answer in _iterate(dataset, source, problem_column, answer_column):
        problem, answer = _problem(i, content, source, problem_column), _answer(i, answer, source, answer_column)
        key = "".join(problem.split())
        if key in answers:
            num_conflicting += answers[key] != answer
            continue
        answers[key] = answer
        if limit is None or len(rows) < limit:
            rows.append(
                {
                    "data_source": source.data_source,
                    "prompt": _messages(content, problem, prompt),
                    "ability": "math",
                    "reward_model": {"style": "rule", "ground_truth": answer},
                    "extra_info": {"index": len(rows), "split": source.verl_split, "problem": problem},
                }
            )
    if not rows:
        raise UserError(f"{source.name}: the source holds no row.")
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA)
    return Prepared(table, len(dataset), len(dataset) - len(answers), num_conflicting)


def _column(dataset: Dataset, source: Source, what: str, candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if name in dataset.column_names:
            return name
    raise UserError(
        f"{source.name}: no column for the {what}: the columns are {', '.join(dataset.column_names)}, and one of "
        f"{', '.join(candidates)} is needed; rename the column in a copy and pass --source {source.name}=PATH."
    )


def _iterate(dataset: Dataset, source: Source, *columns: str) -> Iterator[tuple]:
    batches = dataset.select_columns(list(columns)).iter(batch_size=1000)
    with tqdm(total=len(dataset), desc=source.name, unit=" rows", disable=None, mininterval=1) as progress:
        i = 0
        try:
            for batch in batches:
                for values in zip(*(batch[column] for column in columns), strict=True):
                    yield i, *values
                    i += 1
                progress.update(i - progress.n)
        except UnicodeDecodeError as error:  # pyarrow decodes strings only when they are read
            raise UserError(f"{source.name}: text after row {i} is not UTF-8; convert the file to UTF-8.") from error


def _problem(i: int, content: Any, source: Source, column: str) -> str:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user" and isinstance(m["content"], str)]
    problem = problem_text(users) if users else ""
    if not problem:
        raise UserError(
            f"{source.name}: {column} of row {i} is {content!r:.80}; a problem must be text or a user's message."
        )
    return problem


def _answer(i: int, value: Any, source: Source, column: str) -> str:
    if column == "reward_model":
        value = value.get("ground_truth") if isinstance(value, dict) else None
    # A number column with missing values is read as floats.
    answer = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if value is None or not answer:
        raise UserError(f"{source.name}: row {i} has no answer in {column}.")
    if isinstance(value, list | dict):
        raise UserError(f"{source.name}: {column} of row {i} is {value!r:.80}; an answer must be text or a number.")
    return answer


def _messages(content: Any, problem: str, prompt: str) -> list[dict[str, str]]:
    if prompt == "boxed":
        return [{"role": "user", "content": f"{problem}\n\n{INSTRUCTION}"}]
    if isinstance(content, list):
        return [{"role": message["role"], "content": message["content"]} for message in content]
    return [{"role": "user", "content": f"{DAPO_PREFIX}\n\n{problem}\n\n{DAPO_SUFFIX}"}]

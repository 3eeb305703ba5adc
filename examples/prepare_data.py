r"""Writes the data sets of the examples as Parquet files in verl's format, as verl's examples/data_preprocess do.

    python examples/prepare_data.py                                  DAPO-Math-17K and the five benchmarks, into ./data
    python examples/prepare_data.py gsm8k_train gsm8k_test           only these
    python examples/prepare_data.py aime25 --source aime25=PLACE     PLACE is a file (parquet, json, jsonl, csv), a
                                                                     directory, or another name on the hub

Without network, rows come from the cache of `datasets`, or from --source. A row is data_source, prompt (chat messages),
ability, reward_model {style, ground_truth} and extra_info {index, split, problem}; GSM8K's extra_info is verl's.
Training prompts have DAPO's own words, as in the evaluated run; benchmarks and GSM8K have the problem and the \boxed{}
instruction. Problems are equal if their texts are, without DAPO's words and whitespace; the first one is kept. Answers
are text: a number keeps the digits of the file, and one whose digits are lost already is refused.
"""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from verl_cast.files import whole_file
from verl_cast.teacher.context import DAPO_PREFIX, DAPO_SUFFIX, INSTRUCTION, problem_text

PROBLEM = ("problem", "question", "Problem", "Question", "prompt")
ANSWER = ("answer", "Answer", "expected_answer", "reward_model")
# Name, also of the file -> its name on the hub, the split there, the usual number of problems, and the columns of
# problem and answer: the first that exists counts. DAPO's file has every problem about 100 times.
# open-r1/DAPO-Math-17k-Processed has each once, DAPO's messages in source_prompt, the answer in solution.
SOURCES = {
    "dapo_math_17k": (
        "BytedTsinghua-SIA/DAPO-Math-17k",
        "train",
        None,
        ("source_prompt", "prompt", "problem"),
        ("reward_model", "answer", "solution"),
    ),
    "aime24": ("HuggingFaceH4/aime_2024", "train", 30, PROBLEM, ANSWER),
    "aime25": ("math-ai/aime25", "test", 30, PROBLEM, ANSWER),
    "aime26": ("MathArena/aime_2026", "train", 30, PROBLEM, ANSWER),
    "math500": ("HuggingFaceH4/MATH-500", "test", 500, PROBLEM, ANSWER),
    "hmmt25": ("MathArena/hmmt_feb_2025", "train", 30, PROBLEM, ANSWER),
    "gsm8k_train": ("openai/gsm8k", "train", 7473, ("question",), ("answer",)),
    "gsm8k_test": ("openai/gsm8k", "test", 1319, ("question",), ("answer",)),
}
DATA_SOURCES = {"dapo_math_17k": "math_dapo", "gsm8k_train": "openai/gsm8k", "gsm8k_test": "openai/gsm8k"}


class BadData(Exception):
    """A sentence: file, row, column and remedy."""


def load(name: str, place: str, split: str) -> Iterable[dict[str, Any]]:
    """The source's rows. A text file is read here, because the readers of `datasets` make numbers of its digits."""
    path = Path(place).expanduser()
    if path.suffix in (".json", ".jsonl", ".csv"):
        return _csv(path) if path.suffix == ".csv" else _json(path)
    if path.suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=str(path), split="train")
    if path.is_file():
        raise BadData("it is not a file of parquet, json, jsonl or csv; convert it to one of them.")
    configuration = "main" if name.startswith("gsm8k") else None
    return datasets.load_dataset(str(path) if path.exists() else place, configuration, split=split)


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise BadData("it is empty; copy it again.")
    return text


def _csv(path: Path) -> list[dict[str, Any]]:
    reader, rows = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True), []
    try:
        for row in reader:
            if None in row:
                raise BadData(f"line {reader.line_num}: more cells than columns; quote cells with commas.")
            rows.append(row)
    except csv.Error as error:
        raise BadData(f"after line {reader.line_num}: {error}; copy the file again, or correct it.") from error
    return rows


def _json(path: Path) -> list[dict[str, Any]]:
    """JSON Lines, or one JSON array."""
    text, rows = _text(path), []
    is_array = text.lstrip().startswith("[")
    for number, part in enumerate([text] if is_array else text.split("\n"), 1):
        try:
            rows += _parsed(part) if is_array else [_parsed(part)] if part.strip() else []
        except json.JSONDecodeError as error:
            line = error.lineno if is_array else number
            raise BadData(f"line {line}: not JSON ({error.msg}); copy the file again, or correct the line.") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadData(f"row {number} is {row!r:.40}, not a JSON object; write an object with problem and answer.")
    return rows


def _parsed(text: str) -> Any:
    return json.loads(text, parse_int=str, parse_float=str)


def problem_of(value: Any) -> tuple[str, list[dict[str, str]] | None]:
    """The problem's text, and its chat messages if it has them (also as JSON text).

    Raises:
        ValueError: it is neither.
    """
    value, messages = _unpacked(value), None
    if isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value):
        value = messages = [{"role": m["role"], "content": m["content"]} for m in value]
    users = value if messages else [{"role": "user", "content": value}]
    users = [m for m in users if m["role"] == "user" and isinstance(m["content"], str)]
    problem = problem_text(users) if users else ""
    if not problem:
        raise ValueError(f"{value!r:.80} is neither text nor chat messages with a user's text")
    return problem, messages


def answer_of(value: Any, is_solution: bool = False) -> str:
    """The answer as text.

    Args:
        is_solution: GSM8K's form: a worked solution, and the answer after ####.

    Raises:
        ValueError: it is none, or its digits may be lost.
    """
    value = _unpacked(value)
    if isinstance(value, dict):
        value = value.get("ground_truth")
    if isinstance(value, float):
        # Floats come from a typed source. A number column with missing values has them in place of whole numbers.
        if not math.isfinite(value) or abs(value) >= 2**53 or len(repr(value).replace(".", "").strip("-0")) > 15:
            raise ValueError(f"{value!r} is a float, which may have lost digits of the answer")
        value = int(value) if value.is_integer() else value
    if value is None or isinstance(value, list | dict | bool):
        raise ValueError(f"{value!r:.60} is no answer")
    text = str(value).strip()
    if is_solution:
        _, mark, text = text.rpartition("####")
        if not mark:
            raise ValueError("it has no answer after ####")
        text = text.replace(",", "").strip()  # of thousands, as verl's own gsm8k.py does
    if not text:
        raise ValueError("it is empty")
    return text


def _unpacked(value: Any) -> Any:
    """Chat messages or a struct that a text column holds as JSON; anything else unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            inner = _parsed(value)
        except json.JSONDecodeError:
            return value
        return inner if inner and isinstance(inner[0] if isinstance(inner, list) else inner, dict) else value
    return value


def rows_of(name: str, place: str) -> tuple[list[dict[str, Any]], int, int]:
    """Rows in verl's format, the number of rows read, and of repeated problems with another answer than the first.

    Raises:
        BadData: a row or a column is not as it must be.
    """
    _, split, _, *candidates = SOURCES[name]
    made, num_read, num_conflicting, answers, columns = [], 0, 0, {}, None
    for num_read, row in enumerate(load(name, place, split), 1):
        columns = columns or [_column(row, names) for names in candidates]
        column = columns[0]
        try:
            problem, messages = problem_of(row.get(column))
            column = columns[1]
            answer = answer_of(row.get(column), is_solution=name.startswith("gsm8k"))
        except ValueError as error:
            raise BadData(f"row {num_read}, column {column}: {error}; correct it in a copy of the file.") from error
        key = "".join(problem.split())
        if key in answers:
            num_conflicting += answers[key] != answer
            continue
        answers[key] = answer
        extra = {"index": len(made), "split": "train" if name == "dapo_math_17k" else "test", "problem": problem}
        if name.startswith("gsm8k"):
            extra = {"split": split, "index": len(made), "answer": row["answer"], "question": row["question"]}
        if name != "dapo_math_17k":
            messages = [{"role": "user", "content": f"{problem}\n\n{INSTRUCTION}"}]
        elif messages is None:
            messages = [{"role": "user", "content": f"{DAPO_PREFIX}\n\n{problem}\n\n{DAPO_SUFFIX}"}]
        made.append(
            {
                "data_source": DATA_SOURCES.get(name, name),
                "prompt": messages,
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": answer},
                "extra_info": extra,
            }
        )
    if not made:
        raise BadData("it has no row; copy it again.")
    return made, num_read, num_conflicting


def _column(row: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in row:
            return name
    raise BadData(f"its columns are {', '.join(row)}, without {' or '.join(names)}; rename one in a copy.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    usual = [name for name in SOURCES if not name.startswith("gsm8k")]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SOURCES)} (default: all but GSM8K)")
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="default ./data")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=PLACE", help="may be repeated")
    args = parser.parse_args(argv)
    places = dict(pair.partition("=")[::2] for pair in args.source)
    names = args.names or usual
    for name in names:
        if name not in SOURCES:
            sys.exit(f"prepare_data.py: {name} is no data set; name one of {', '.join(SOURCES)}.")
    for name, place in places.items():
        if name not in names or not place:
            sys.exit(f"prepare_data.py: --source {name}={place}: must be NAME=PLACE, with NAME of {', '.join(names)}.")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        hub, _, num_problems, *_ = SOURCES[name]
        place = places.get(name, hub)
        try:
            rows, num_read, num_conflicting = rows_of(name, place)
        except BadData as error:
            sys.exit(f"prepare_data.py: {name} from {place}: {error}")
        except UnicodeDecodeError:
            sys.exit(f"prepare_data.py: {name} from {place}: it is not UTF-8; convert it to UTF-8.")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            download = f"`hf download --repo-type dataset {hub} --local-dir DIR`"
            remedy = f"fetch it with {download}, and pass one of its files: --source {name}=FILE"
            sys.exit(f"prepare_data.py: {name} from {place} cannot be read: {reason:.300}; {remedy}.")
        path = args.out / f"{name}.parquet"
        with whole_file(path) as scratch:
            datasets.Dataset.from_list(rows).to_parquet(scratch)
        print(f"{name}: {path}, {len(rows)} problems of {num_read} rows")
        if num_conflicting:
            print(f"  note: {num_conflicting} repeated problems have another answer than the first, which was kept")
        if num_problems not in (None, len(rows)):
            print(f"  note: it usually has {num_problems} problems")


if __name__ == "__main__":
    main()

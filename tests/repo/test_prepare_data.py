"""Laws of examples/prepare_data.py: every source becomes a Parquet file in verl's format; bad input gets a sentence.

Sources are small local files in their original formats, and the cache that `datasets` keeps of the hub.
"""

import csv
import importlib.util
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from verl_cast import verifier
from verl_cast.teacher.context import DAPO_PREFIX, DAPO_SUFFIX, INSTRUCTION

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEC = importlib.util.spec_from_file_location("prepare_data", EXAMPLES / "prepare_data.py")
prepare_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(prepare_data)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def dapo_row(problem, answer, index="a"):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": f"{DAPO_PREFIX}\n\n{problem}\n\n{DAPO_SUFFIX}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


DAPO = [dapo_row("What is $1+1$?", "2"), dapo_row("Find  $x$.\n", "34"), dapo_row("Third", "-3")] * 4
MATH500 = {
    "problem": "Convert $(0,3)$ to polar coordinates.",
    "solution": "We have $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}$",
    "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
    "subject": "Precalculus",
    "level": 2,
    "unique_id": "test/precalculus/807.json",
}
GSM8K = {
    "question": "A farm has 1,000 hens and sells 7. How many are left?",
    "answer": "1000 - 7 = <<1000-7=993>>993 hens, and 1,000 new ones.\n#### 1,993",
}


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(out, name, source):
    """The rows that a source gives."""
    prepare_data.main([name, "--out", str(out), "--source", f"{name}={source}"])
    return pyarrow.parquet.read_table(out / f"{name}.parquet").to_pylist()


def refusal(out, *arguments):
    with pytest.raises(SystemExit) as refused:
        prepare_data.main(["--out", str(out), *map(str, arguments)])
    sentence = str(refused.value)
    assert sentence.startswith("prepare_data.py: ") and "\n" not in sentence, sentence
    assert not list(out.glob("*.parquet"))
    return sentence


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json_text"])
def test_dapo_has_every_problem_once_in_its_own_words(tmp_path, capsys, form):
    """Its own Parquet file, JSON Lines, and CSV whose columns hold JSON as text."""
    rows = DAPO
    if form == "json_text":
        rows = [{name: json.dumps(row[name]) for name in ("prompt", "reward_model")} for row in DAPO]
    source = write(tmp_path / f"dapo.{'csv' if form == 'json_text' else form}", rows)
    rows = prepared(tmp_path, "dapo_math_17k", source)
    assert [row["prompt"] for row in rows] == [
        [{"role": "user", "content": original["prompt"][0]["content"]}] for original in DAPO[:3]
    ]
    assert [row["reward_model"] for row in rows] == [{"style": "rule", "ground_truth": a} for a in ("2", "34", "-3")]
    assert rows[1]["extra_info"] == {"index": 1, "split": "train", "problem": "Find  $x$."}
    assert {row["data_source"] for row in rows} == {"math_dapo"}
    assert "3 problems of 12 rows" in capsys.readouterr().out


def test_the_processed_form_of_dapo(tmp_path):
    row = {"prompt": "What is $1+1$?", "solution": "2", "source_prompt": DAPO[0]["prompt"]}
    without = {"prompt": row["prompt"], "solution": "2"}
    for source in (write(tmp_path / "with.parquet", [row]), write(tmp_path / "without.jsonl", [without])):
        (made,) = prepared(tmp_path, "dapo_math_17k", source)
        assert made["prompt"][0]["content"] == DAPO[0]["prompt"][0]["content"]
        assert made["reward_model"]["ground_truth"] == "2"


def test_repeated_problems_with_another_answer_are_said(tmp_path, capsys):
    source = write(tmp_path / "dapo.parquet", [dapo_row("A?", "1"), dapo_row(" A? ", "2"), dapo_row("A ?", "1")])
    (row,) = prepared(tmp_path, "dapo_math_17k", source)
    assert row["reward_model"]["ground_truth"] == "1"
    assert "1 repeated problems have another answer than the first" in capsys.readouterr().out


BENCHMARKS = {
    "aime24": ("parquet", {"id": 60, "problem": "Every morning", "solution": "s", "answer": "204", "year": "2024"}),
    "aime25": ("jsonl", {"problem": "Find the sum", "answer": "70", "id": "0"}),
    "aime26": ("parquet", {"problem_idx": 1, "answer": 277, "problem": "Patrick"}),
    "math500": ("jsonl", MATH500),
    "hmmt25": ("csv", {"problem_idx": 1, "problem": 'Compute,\n"exactly", $x$', "answer": r"\frac{448}{3}"}),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_in_its_own_format(tmp_path, capsys, name):
    suffix, row = BENCHMARKS[name]
    assert prepared(tmp_path, name, write(tmp_path / f"source.{suffix}", [row])) == [
        {
            "data_source": name,
            "prompt": [{"role": "user", "content": f"{row['problem']}\n\n{INSTRUCTION}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(row["answer"])},
            "extra_info": {"index": 0, "split": "test", "problem": row["problem"]},
        }
    ]
    assert f"it usually has {prepare_data.SOURCES[name][2]} problems" in capsys.readouterr().out


def test_gsm8k_has_verls_columns_and_our_verifiers_answer(tmp_path):
    source = write(tmp_path / "train.parquet", [GSM8K])
    (row,) = prepared(tmp_path, "gsm8k_train", source)
    assert row == {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f"{GSM8K['question']}\n\n{INSTRUCTION}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1993"},
        "extra_info": {"split": "train", "index": 0, "answer": GSM8K["answer"], "question": GSM8K["question"]},
    }
    arguments = {"data_source": row["data_source"], "ground_truth": "1993", "tail_fraction": 0}
    assert verifier.compute_score(solution_str=r"So there are \boxed{1993}.", **arguments)["score"] == 1
    (row,) = prepared(tmp_path, "gsm8k_test", source)
    assert row["extra_info"]["split"] == "test"
    without = write(tmp_path / "without.parquet", [GSM8K | {"answer": "993 hens"}])
    said = refusal(tmp_path / "out", "gsm8k_train", f"--source=gsm8k_train={without}")
    assert "row 1, column answer: it has no answer after ####; correct it in a copy" in said


NUMBERS = ["2", "0.5", "0.10", "-3", "9007199254740993", "12345678901234567", str(10**30), "1e400", "007", "3.0"]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_number_keeps_the_digits_of_the_file(tmp_path, form):
    numbers = NUMBERS if form == "csv" else [n for n in NUMBERS if n != "007"]  # no JSON number
    source = tmp_path / f"numbers.{form}"
    if form == "csv":
        source.write_text("problem,answer\n" + "".join(f"p{i},{n}\n" for i, n in enumerate(numbers)))
    else:
        rows = [f'{{"problem": "p{i}", "answer": {n}}}' for i, n in enumerate(numbers)]
        source.write_text("\n".join(rows) if form == "jsonl" else f"[{', '.join(rows)}]")
    found = prepared(tmp_path, "aime25", source)
    assert [row["reward_model"]["ground_truth"] for row in found] == numbers


def test_a_number_of_a_typed_source_is_exact_or_refused(tmp_path):
    exact = write(tmp_path / "ints.parquet", [{"problem": "a", "answer": 2**53 + 1}, {"problem": "b", "answer": None}])
    said = refusal(tmp_path / "out", "aime25", f"--source=aime25={exact}")
    assert "row 2, column answer: None is no answer" in said
    for value, answer in ((2**53 + 1, "9007199254740993"), (3.0, "3"), (0.25, "0.25"), (-1e-05, "-1e-05")):
        (row,) = prepared(tmp_path, "aime25", write(tmp_path / "one.parquet", [{"problem": "a", "answer": value}]))
        assert row["reward_model"]["ground_truth"] == answer
    for value in (1e30, 2.0**53, 0.1 + 0.2, float("nan")):
        lossy = write(tmp_path / "lossy.parquet", [{"problem": "a", "answer": value}])
        said = refusal(tmp_path / "out", "aime25", f"--source=aime25={lossy}")
        assert f"row 1, column answer: {value!r} is a float, which may have lost digits of the answer" in said


@pytest.mark.parametrize("numbers", [[str(10**30)], ["2", "0.5", "9007199254740993"]])
def test_a_directorys_lost_digits_are_refused(tmp_path, numbers):
    """`datasets` reads these files, so the digits are lost before this program sees them."""
    directory = tmp_path / "source"
    directory.mkdir()
    rows = [f'{{"problem": "p{i}", "answer": {n}}}\n' for i, n in enumerate(numbers)]
    (directory / "test.jsonl").write_text("".join(rows))
    said = refusal(tmp_path / "out", "aime25", f"--source=aime25={directory}")
    assert "lost digits" in said or "cannot be read" in said


def test_a_directory_gives_the_split_that_is_asked_for(tmp_path):
    directory = tmp_path / "MATH-500"
    directory.mkdir()
    write(directory / "test.jsonl", [MATH500])
    write(directory / "train.jsonl", [MATH500 | {"problem": "not this one"}])
    (row,) = prepared(tmp_path, "math500", directory)
    assert row["extra_info"]["problem"] == MATH500["problem"]


def test_the_hubs_rows_come_from_the_cache_without_network(tmp_path):
    # There is no hub here, so this builds the cache that `datasets` keeps of one.
    import datasets
    from datasets.packaged_modules.json.json import Json

    commit = "0123456789" * 4
    source, cache = write(tmp_path / "a.jsonl", [BENCHMARKS["aime26"][1]]), Path(datasets.config.HF_DATASETS_CACHE)
    builder = Json(cache_dir=str(cache), dataset_name="aime_2026", hash=commit, data_files={"train": [str(source)]})
    builder.download_and_prepare()
    kept = cache / "MathArena___aime_2026" / "default" / "0.0.0" / commit
    kept.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(kept)
    prepare_data.main(["aime26", "--out", str(tmp_path)])
    (row,) = pyarrow.parquet.read_table(tmp_path / "aime26.parquet").to_pylist()
    assert row["reward_model"]["ground_truth"] == "277"


@pytest.mark.parametrize(
    ("arguments", "row", "words"),
    [
        (["aime25"], {"task": "x", "answer": 1}, ["its columns are task, answer, without problem or", "rename one"]),
        (["aime25"], {"problem": "x", "key": 1}, ["its columns are problem, key, without answer or", "rename one"]),
        (["aime25"], {"problem": "  ", "answer": 1}, ["row 1, column problem: '  ' is neither text nor"]),
        (["aime25"], {"problem": ["x"], "answer": 1}, ["row 1, column problem: ['x'] is neither text nor chat"]),
        (["aime25"], {"problem": "x", "answer": ""}, ["row 1, column answer: it is empty; correct it"]),
        (["aime25"], {"problem": "x", "answer": ["7", "8"]}, ["row 1, column answer: ['7', '8'] is no answer"]),
        (["aime25"], {"problem": "x", "answer": True}, ["row 1, column answer: True is no answer"]),
        (["aime25"], {"problem": "x", "reward_model": '{"a": 1}'}, ["column reward_model: None is no answer"]),
        (["aime25"], {"problem": [{"role": "system", "content": "x"}], "answer": "1"}, ["row 1, column problem"]),
        (["aime23"], None, ["aime23 is no data set; name one of dapo_math_17k, aime24"]),
        (["--source=aime25"], None, ["--source aime25=: must be NAME=PLACE"]),
        (
            ["aime24", "--source=aime25=x.json"],
            None,
            ["--source aime25=x.json: must be NAME=PLACE, with NAME of aime24"],
        ),
        (["aime25", "--source=aime25=/nowhere.json"], None, ["/nowhere.json cannot be read", "No such file"]),
        (["aime25", f"--source=aime25={__file__}"], None, ["it is not a file of parquet, json, jsonl or csv"]),
        (["aime25"], None, ["math-ai/aime25", "hf download --repo-type dataset math-ai/aime25"]),  # no hub here
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, row, words):
    if row is not None:
        arguments = [*arguments, f"--source=aime25={write(tmp_path / 'source.jsonl', [row])}"]
    said = refusal(tmp_path / "out", *arguments)
    for word in words:
        assert word in said


ROW = b'{"problem": "a", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "it is empty; copy it again."),
        ("a.jsonl", b"\n\n", "it is empty;"),
        ("a.csv", b"", "it is empty;"),
        ("a.csv", b"problem,answer\n", "it has no row;"),
        ("a.jsonl", ROW * 2 + ROW[:-9], "line 3: not JSON (Unterminated"),
        ("a.jsonl", ROW + b"[1]\n", "row 2 is ['1'], not a JSON object"),
        ("a.json", b"[\n" + ROW.strip() + b",\n" + ROW[:-9], "line 3: not JSON (Unterminated"),
        ("a.csv", b'problem,answer\na,1\n"b', "after line 2: unexpected end of data"),
        ("a.csv", b"problem,answer\na,1\nb,x,2", "line 3: more cells than columns"),
        ("a.csv", b"problem;answer\na;1\n", "its columns are problem;answer, without problem or"),
        ("a.jsonl", ROW + ROW.replace(b"a", b"\xff", 1), "it is not UTF-8; convert it"),
        ("a.parquet", b"PAR1 but not really", "cannot be read: "),
        ("a.jsonl.gz", b"\x1f\x8b", "it is not a file of parquet"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_line(tmp_path, name, content, words):
    source = tmp_path / name
    source.write_bytes(content)
    said = refusal(tmp_path / "out", "aime25", f"--source=aime25={source}")
    assert str(source) in said and words in said


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + ROW, ROW.replace(b"\n", b"\r\n"), b"\n" + ROW + b"\n"])
def test_a_byte_order_mark_carriage_returns_and_empty_lines_do_no_harm(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    (row,) = prepared(tmp_path, "aime25", tmp_path / "a.jsonl")
    assert row["reward_model"]["ground_truth"] == "1"
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfproblem,answer\r\na,1\r\n")
    assert prepared(tmp_path, "aime25", tmp_path / "a.csv") == [row]


def test_verl_reads_it(tmp_path):
    import tiny
    from verl.utils.dataset.rl_dataset import RLHFDataset

    prepared(tmp_path, "dapo_math_17k", write(tmp_path / "d.parquet", DAPO))
    config = OmegaConf.create({"max_prompt_length": 1024, "filter_overlong_prompts": True, "cache_dir": str(tmp_path)})
    dataset = RLHFDataset(str(tmp_path / "dapo_math_17k.parquet"), tiny.tokenizer(), config)
    assert len(dataset) == 3
    assert dataset[0]["raw_prompt"] == [{"role": "user", "content": DAPO[0]["prompt"][0]["content"]}]
    assert dataset[0]["reward_model"]["ground_truth"] == "2" and dataset[2]["index"] == 2

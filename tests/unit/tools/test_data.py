"""Laws of `verl-cast data`: every source becomes a Parquet file in verl's format, and bad input gets one sentence.

The sources here are small local files in their original formats. The real `datasets` library reads them.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from verl_cast.teacher.context import DAPO_PREFIX, DAPO_SUFFIX, INSTRUCTION
from verl_cast.tools import cli
from verl_cast.tools.data.sources import SOURCES


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


def prepare(out, *arguments):
    return cli.main(["data", "--out", str(out), *map(str, arguments)])


def rows_of(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def test_dapo_has_every_problem_once_in_its_own_words(tmp_path, capsys):
    source = write(tmp_path / "dapo.parquet", DAPO)
    assert prepare(tmp_path / "out", "--only", "dapo", "--source", f"dapo={source}") == 0
    rows = rows_of(tmp_path / "out" / "dapo_math_17k.parquet")
    assert [row["prompt"] for row in rows] == [
        [{"role": "user", "content": original["prompt"][0]["content"]}] for original in DAPO[:3]
    ]
    assert [row["reward_model"] for row in rows] == [{"style": "rule", "ground_truth": a} for a in ("2", "34", "-3")]
    assert rows[1]["extra_info"] == {"index": 1, "split": "train", "problem": "Find  $x$."}
    assert {row["data_source"] for row in rows} == {"math_dapo"}
    assert "3 rows (read 12, duplicates 9)" in capsys.readouterr().out


def test_boxed_training_prompts_and_a_limit(tmp_path):
    source = write(tmp_path / "dapo.jsonl", DAPO)
    arguments = ["--only=dapo", f"--source=dapo={source}", "--prompt=boxed", "--train-limit=2"]
    assert prepare(tmp_path, *arguments) == 0
    rows = rows_of(tmp_path / "dapo_math_17k.parquet")
    assert [row["prompt"][0]["content"] for row in rows] == [
        f"What is $1+1$?\n\n{INSTRUCTION}",
        f"Find  $x$.\n\n{INSTRUCTION}",
    ]


def test_duplicates_with_another_answer_are_said(tmp_path, capsys):
    source = write(tmp_path / "dapo.parquet", [dapo_row("A?", "1"), dapo_row(" A? ", "2"), dapo_row("A ?", "1")])
    assert prepare(tmp_path, "--only=dapo", f"--source=dapo={source}") == 0
    assert rows_of(tmp_path / "dapo_math_17k.parquet")[0]["reward_model"]["ground_truth"] == "1"
    assert "1 duplicates give another answer" in capsys.readouterr().out
    assert json.loads((tmp_path / "manifest.json").read_text())["files"]["dapo_math_17k.parquet"][
        "rows_conflicting"
    ] == 1  # fmt: skip


def test_the_processed_form_of_dapo(tmp_path):
    row = {"prompt": "What is $1+1$?", "solution": "2", "source_prompt": DAPO[0]["prompt"]}
    with_messages = write(tmp_path / "with.parquet", [row])
    without = write(tmp_path / "without.jsonl", [{"prompt": row["prompt"], "solution": "2"}])
    for source in (with_messages, without):
        assert prepare(tmp_path, "--only=dapo", f"--source=dapo={source}") == 0
        (made,) = rows_of(tmp_path / "dapo_math_17k.parquet")
        assert made["prompt"][0]["content"] == DAPO[0]["prompt"][0]["content"]
        assert made["reward_model"]["ground_truth"] == "2"


BENCHMARKS = {
    "aime24": ("parquet", {"id": 60, "problem": "Every morning", "solution": "s", "answer": "204", "year": "2024"}),
    "aime25": ("jsonl", {"problem": "Find the sum", "answer": "70", "id": "0"}),
    "aime26": ("parquet", {"problem_idx": 1, "answer": 277, "problem": "Patrick"}),
    "math500": ("jsonl", MATH500),
    "hmmt25": ("csv", {"problem_idx": 1, "problem": 'Compute, "exactly", $x$', "answer": r"\frac{448}{3}"}),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_in_its_own_format(tmp_path, capsys, name):
    suffix, row = BENCHMARKS[name]
    source = write(tmp_path / f"source.{suffix}", [row])
    assert prepare(tmp_path, "--only", name, "--source", f"{name}={source}") == 0
    assert rows_of(tmp_path / f"{name}.parquet") == [
        {
            "data_source": name,
            "prompt": [{"role": "user", "content": f"{row['problem']}\n\n{INSTRUCTION}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(row["answer"])},
            "extra_info": {"index": 0, "split": "test", "problem": row["problem"]},
        }
    ]
    assert f"it usually has {SOURCES[name].num_problems} problems" in capsys.readouterr().out


def test_a_directory_gives_the_split_that_is_asked_for(tmp_path, capsys):
    directory = tmp_path / "MATH-500"
    directory.mkdir()
    write(directory / "test.jsonl", [MATH500])
    write(directory / "train.jsonl", [MATH500 | {"problem": "not this one"}])
    assert prepare(tmp_path, "--only=math500", f"--source=math500={directory}") == 0
    assert rows_of(tmp_path / "math500.parquet")[0]["extra_info"]["problem"] == MATH500["problem"]

    (directory / ".cache").mkdir()
    (directory / ".cache" / "downloaded").write_text("today")
    assert prepare(tmp_path, "--only=math500", f"--source=math500={directory}") == 0
    assert "up to date" in capsys.readouterr().out

    write(directory / "test.jsonl", [MATH500 | {"answer": "7"}])
    assert prepare(tmp_path, "--only=math500", f"--source=math500={directory}") == 0
    assert rows_of(tmp_path / "math500.parquet")[0]["reward_model"]["ground_truth"] == "7"


def test_the_hubs_commit_is_in_the_manifest(tmp_path):
    # There is no hub here, so this builds the cache that `datasets` keeps of one.
    # `datasets` reads it with the same classes, and takes the commit from the directory's name.
    from pathlib import Path

    import datasets
    from datasets.packaged_modules.json.json import Json

    commit = "0123456789" * 4
    source, cache = write(tmp_path / "a.jsonl", [BENCHMARKS["aime26"][1]]), Path(datasets.config.HF_DATASETS_CACHE)
    builder = Json(cache_dir=str(cache), dataset_name="aime_2026", hash=commit, data_files={"train": [str(source)]})
    builder.download_and_prepare()
    kept = cache / "MathArena___aime_2026" / "default" / "0.0.0" / commit
    kept.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(kept)

    assert prepare(tmp_path, "--only=aime26") == 0
    assert rows_of(tmp_path / "aime26.parquet")[0]["reward_model"]["ground_truth"] == "277"
    entry = json.loads((tmp_path / "manifest.json").read_text())["files"]["aime26.parquet"]
    assert (entry["commit"], entry["made_from"]["source"]) == (commit, "MathArena/aime_2026")


def test_a_second_call_keeps_what_is_up_to_date_and_the_bytes_are_the_same(tmp_path, capsys):
    aime, dapo = write(tmp_path / "a.jsonl", [BENCHMARKS["aime25"][1]]), write(tmp_path / "d.parquet", DAPO)
    arguments = ["--only=aime25,dapo", f"--source=aime25={aime}", f"--source=dapo={dapo}"]
    made, manifest = tmp_path / "out" / "aime25.parquet", tmp_path / "out" / "manifest.json"
    assert prepare(tmp_path / "out", *arguments) == 0
    first, described = made.read_bytes(), manifest.read_text()

    assert prepare(tmp_path / "out", *arguments) == 0
    assert capsys.readouterr().out.count("up to date, kept") == 2
    assert manifest.read_text() == described

    assert prepare(tmp_path / "out", *arguments, "--overwrite") == 0
    assert made.read_bytes() == first

    made.write_bytes(b"damaged")
    assert prepare(tmp_path / "out", *arguments) == 0
    assert made.read_bytes() == first

    write(aime, [BENCHMARKS["aime25"][1] | {"answer": "71"}])
    capsys.readouterr()
    assert prepare(tmp_path / "out", *arguments, "--prompt=boxed") == 0
    assert "up to date" not in capsys.readouterr().out
    assert rows_of(made)[0]["reward_model"]["ground_truth"] == "71"


def test_the_manifest_says_what_was_read(tmp_path):
    source = write(tmp_path / "d.parquet", DAPO)
    assert prepare(tmp_path, "--only=dapo", f"--source=dapo={source}") == 0
    entry = json.loads((tmp_path / "manifest.json").read_text())["files"]["dapo_math_17k.parquet"]
    assert entry["made_from"] == {
        "source": str(source),
        "split": None,
        "revision": None,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "prompt": "raw",
        "limit": None,
    }
    assert entry["sha256"] == hashlib.sha256((tmp_path / "dapo_math_17k.parquet").read_bytes()).hexdigest()
    assert (entry["rows_read"], entry["rows_duplicate"], entry["rows_written"]) == (12, 9, 3)
    assert {"datasets", "verl_cast"} <= entry["versions"].keys()


@pytest.mark.parametrize(
    ("arguments", "row", "words"),
    [
        (["--only=aime25"], {"task": "x", "answer": 1}, ["problem", "task, answer", "rename"]),
        (["--only=aime25"], {"problem": "x", "key": 1}, ["answer", "problem, key", "rename"]),
        (["--only=aime25"], {"problem": "  ", "answer": 1}, ["row 0", "problem"]),
        (["--only=aime25"], {"problem": "x", "answer": ""}, ["row 0", "no answer in answer"]),
        (["--only=aime25"], {"problem": "x", "answer": ["7", "8"]}, ["row 0", "text or a number"]),
        (["--only=aime25"], {"problem": [{"role": "system", "content": "x"}], "answer": "1"}, ["row 0", "problem"]),
        (["--only=aime23"], None, ["aime23", "aime24"]),
        (["--only=dapo", "--train-limit=0"], None, ["--train-limit 0"]),
        (["--source=aime25"], None, ["NAME=..."]),
        (["--only=aime25", "--source=aime25=/nowhere.json"], None, ["/nowhere.json", "no such file"]),
        (["--only=aime25", f"--source=aime25={__file__}"], None, [".parquet"]),
        (["--only=aime25"], None, ["math-ai/aime25", "--source aime25=PATH"]),  # no hub here
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, row, words):
    if row is not None:
        arguments = [*arguments, f"--source=aime25={write(tmp_path / 'source.jsonl', [row])}"]
    assert prepare(tmp_path / "out", *arguments) == 1
    # The progress bars of `datasets` come first.
    said = capsys.readouterr().err.rpartition("verl-cast data: ")[2]
    assert said.count("\n") == 1
    for word in words:
        assert word in said


def test_a_damaged_source_is_named(tmp_path, capsys):
    (tmp_path / "source.parquet").write_bytes(b"PAR1 but not really")
    assert prepare(tmp_path, "--only=aime25", f"--source=aime25={tmp_path / 'source.parquet'}") == 1
    assert str(tmp_path / "source.parquet") in capsys.readouterr().err


ROW = b'{"problem": "a", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "a.jsonl is empty;"),
        ("a.jsonl", b"\n\n", "a.jsonl is empty;"),
        ("a.json", b"", "a.json is empty;"),
        ("a.csv", b"", "a.csv is empty;"),
        ("a.jsonl", ROW * 2 + ROW[:-9], "a.jsonl, line 3: cut off: it ends in the middle of a row (Unterminated"),
        ("a.jsonl", ROW + ROW[:20] + b"\n" + ROW, "a.jsonl, line 2: not JSON (Unterminated"),
        ("a.jsonl", ROW + b"[1]\n", "a.jsonl, line 2: '[1]' is not a JSON object"),
        ("a.json", b"[\n" + ROW.strip() + b",\n" + ROW[:-9], "a.json, line 3: not JSON (Unterminated"),
        ("a.json", ROW + ROW[:-9], "a.json, line 2: cut off"),
        ("a.csv", b'problem,answer\na,1\n"b', "EOF inside string starting at row 2"),
        ("a.jsonl", ROW + ROW.replace(b"a", b"\xff", 1), "aime25: text after row 0 is not UTF-8; convert"),
    ],
)
@pytest.mark.parametrize("inside", ["", "directory"])
def test_an_empty_or_cut_file_is_one_sentence_with_its_line(tmp_path, capsys, name, content, words, inside):
    source = tmp_path / "sources" / inside
    source.mkdir(parents=True)
    (source / name).write_bytes(content)
    source = source if inside else source / name
    assert prepare(tmp_path / "out", "--only=aime25", f"--source=aime25={source}") == 1
    said = capsys.readouterr().err.rpartition("verl-cast data: ")[2]
    assert said.count("\n") == 1 and words in said and (name in said or "not UTF-8" in said or "EOF" in said)
    assert not (tmp_path / "out" / "aime25.parquet").exists()


def test_verl_reads_it(tmp_path, tiny_directory, compose):
    import tiny
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from verl_cast.tools.doctor import data as doctor

    source = write(tmp_path / "d.parquet", DAPO)
    assert prepare(tmp_path, "--only=dapo", f"--source=dapo={source}") == 0
    made = str(tmp_path / "dapo_math_17k.parquet")
    config = OmegaConf.create({"max_prompt_length": 1024, "filter_overlong_prompts": True, "cache_dir": str(tmp_path)})
    dataset = RLHFDataset(made, tiny.tokenizer(), config)
    assert len(dataset) == 3
    assert dataset[0]["raw_prompt"] == [{"role": "user", "content": DAPO[0]["prompt"][0]["content"]}]
    assert dataset[0]["reward_model"]["ground_truth"] == "2" and dataset[2]["index"] == 2

    found = doctor.check(
        compose(
            f"data.train_files={made}",
            f"data.val_files={made}",
            "reward.custom_reward_function.path=pkg://verl_cast.verifier",
        )
    )
    assert [line.mark for line in found.lines] == ["ok"] * len(found.lines)
    assert len(found.rows) == 3


def test_the_command_runs_by_itself(tmp_path):
    source = write(tmp_path / "a.jsonl", [BENCHMARKS["aime25"][1]])
    command = [sys.executable, "-m", "verl_cast", "data", "--only=aime25", f"--source=aime25={source}"]
    run = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "aime25.parquet").exists()


# ------------------------------------------------------------------------------------------------------------- models


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub's server, with one model. The client is the real huggingface_hub."""

    COMMIT = "0123456789" * 4
    FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "picture.png": b"no"}

    def do_GET(self):
        owner, name = "some", "model"
        if self.path.startswith(f"/api/models/{owner}/{name}/tree/"):
            files = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in self.FILES.items()]
            content = json.dumps(files).encode()
        elif self.path.startswith(f"/api/models/{owner}/{name}/"):
            siblings = [{"rfilename": file} for file in self.FILES]
            content = json.dumps({"id": f"{owner}/{name}", "sha": self.COMMIT, "siblings": siblings}).encode()
        elif self.path.startswith(f"/{owner}/{name}/resolve/"):
            content = self.FILES[self.path.rpartition("/")[2]]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    """Address of a server that speaks as the hub does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(directory, *arguments, **environment):
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(directory / "home"), **environment}
    command = [sys.executable, "-m", "verl_cast", "data", *arguments]
    return subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, timeout=120)


def test_a_model_is_fetched_ahead(tmp_path, hub):
    done = fetch(tmp_path, "--model", "some/model", HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "models" / "model"
    assert f"MODEL_PATH={made}" in done.stdout
    files = {path.name: path.read_bytes() for path in made.iterdir() if path.is_file()}
    assert files == {name: content for name, content in Hub.FILES.items() if name != "picture.png"}


def test_a_model_that_cannot_be_fetched_is_one_sentence(tmp_path, hub, capsys):
    offline = fetch(tmp_path, "--model", "some/model", "--out", "m", HF_HUB_OFFLINE="1")
    missing = fetch(tmp_path, "--model", "some/other", "--out", "m", HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    for done, words in (
        (offline, "--model some/model cannot be fetched from the Hugging Face hub: "),
        (missing, "--model some/other cannot be fetched from the Hugging Face hub: "),
    ):
        assert done.returncode == 1 and done.stdout == "" and words in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert "Run this where there is network access and copy m to the nodes" in offline.stderr
    assert prepare(tmp_path, "--model", "some/model", "--only", "dapo") == 1
    assert "--model fetches a model alone; call it without --only" in capsys.readouterr().err

"""The files that an evaluation writes while it runs: its settings, and every verified sample.

    settings.json             all settings that decide the samples; a later call must have the same
    samples/<benchmark>.jsonl one line per sample; the lines of a problem are written together

A killed evaluation therefore resumes with the incomplete problems, and further benchmarks can be added later. A line
holds problem (its row), sample, score, correct, the verifier's other findings, tokens, truncated, seconds (its share of
the time from one finished problem to the next) and the response.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_cast.files import whole_file
from verl_cast.tools.cli import UserError


class Record:
    """One evaluation's directory.

    Attributes:
        lines: benchmark -> row of the problem -> its samples; complete problems only.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], benchmarks: Mapping[str, Any], overwrite: bool):
        """
        Args:
            settings: all settings by name, as JSON can hold them.
            benchmarks: those of this call: name -> {"sha256": of its file, "problems": how many}. Those of earlier
                calls stay. The same file with more or fewer problems is the same benchmark.
            overwrite: discard the evaluation that is there.

        Raises:
            UserError: the directory holds an evaluation with other settings, or cannot be written.
        """
        self.directory, self.samples = directory, settings["samples"]
        path = directory / "settings.json"
        try:
            if overwrite:
                shutil.rmtree(directory / "samples", ignore_errors=True)
                for file in (path, directory / "results.json", directory / "results.md"):
                    file.unlink(missing_ok=True)
            (directory / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {directory}: it cannot be written: {error.strerror}.") from error
        wanted = json.loads(json.dumps({**settings, "benchmarks": dict(benchmarks)}))
        if path.exists():
            there = json.loads(path.read_text())
            _compare(directory, there, wanted)
            wanted["benchmarks"] = {**there["benchmarks"], **wanted["benchmarks"]}
        self.settings = wanted
        with whole_file(path) as scratch:
            scratch.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        self.lines = {name: self._read(name) for name in wanted["benchmarks"]}

    def missing(self, benchmark: str) -> list[int]:
        """The problems (rows) of a benchmark that are still to be sampled."""
        number = self.settings["benchmarks"][benchmark]["problems"]
        return [i for i in range(number) if i not in self.lines[benchmark]]

    def finished(self) -> dict[str, list[list[dict[str, Any]]]]:
        """The samples of every problem, for the benchmarks that are complete."""
        return {
            name: [self.lines[name][i] for i in range(about["problems"])]
            for name, about in self.settings["benchmarks"].items()
            if not self.missing(name)
        }

    def _file(self, benchmark: str) -> Path:
        return self.directory / "samples" / f"{benchmark}.jsonl"

    def _read(self, benchmark: str) -> dict[int, list[dict[str, Any]]]:
        """The complete problems of a benchmark. Lines of an incomplete problem are dropped from the file."""
        path = self._file(benchmark)
        if not path.exists():
            return {}
        rows = path.read_bytes().split(b"\n")
        by_problem: dict[int, list[dict[str, Any]]] = {}
        for row in rows[:-1]:  # after the last line feed: nothing, or an incomplete line
            line = json.loads(row)
            by_problem.setdefault(line["problem"], []).append(line)
        whole = {problem: lines for problem, lines in by_problem.items() if len(lines) == self.samples}
        kept = "".join(_row(line) for lines in whole.values() for line in lines)
        if kept.encode() != b"\n".join(rows):
            with whole_file(path) as scratch:
                scratch.write_text(kept, encoding="utf-8")
        return whole

    def add(self, benchmark: str, problem: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Save all samples of a problem."""
        lines = [{"problem": problem, "sample": k, **line} for k, line in enumerate(lines)]
        with self._file(benchmark).open("a", encoding="utf-8") as file:
            file.write("".join(map(_row, lines)))
        self.lines[benchmark][problem] = lines


def _compare(directory: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changed = [
        (name, there.get(name), value)
        for name, value in wanted.items()
        if name != "benchmarks" and there.get(name) != value
    ]
    changed += [
        (f"the file of {name}", there["benchmarks"][name]["sha256"][:12], value["sha256"][:12])
        for name, value in wanted["benchmarks"].items()
        if there["benchmarks"].get(name, value)["sha256"] != value["sha256"]
    ]
    if changed:
        name, old, new = changed[0]
        if name == "model":  # a list of all its files would be too long
            old, new = old["path"], new["path"] if new["path"] != old["path"] else "other files there"
        raise UserError(
            f"--out {directory}: it holds an evaluation with {name} = {old}, but this one has {new}; name another "
            "directory, or discard that evaluation with --overwrite."
        )


def _row(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"

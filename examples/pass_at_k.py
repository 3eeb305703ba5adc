"""Avg@k and Pass@k of validations that verl dumped (`trainer.validation_data_dir`), for evaluate.sh.

    python examples/pass_at_k.py --samples 16 --data data/aime24.parquet --dump base=0.jsonl cast=300.jsonl

verl's own best@k is a bootstrap estimate, with repetitions. With k samples of a problem Pass@k needs no estimate: it is
1 if one of them is right. Intervals are 95 % bootstrap intervals over problems, because samples of a problem are not
independent. `compute_score` is the reward function of evaluate.sh: verl's dump has no data source, so it adds it.
"""

import argparse
import asyncio
import functools
import inspect
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet

TITLES = {"aime24": "AIME24", "aime25": "AIME25", "aime26": "AIME26", "math500": "MATH-500", "hmmt25": "HMMT25"}


@functools.cache
def _load(function: str):
    from verl.utils.import_utils import load_extern_object

    return load_extern_object(function, "compute_score")


async def compute_score(data_source: str, function: str = "pkg://verl_cast.verifier", **arguments) -> dict:
    """verl's reward function: what the `compute_score` of `function` returns, with the data source.

    Args:
        function: a file or pkg://a.module, as in `reward.custom_reward_function.path`.
    """
    score, arguments = _load(function), {"data_source": data_source, **arguments}
    if inspect.iscoroutinefunction(score):
        result = await score(**arguments)
    else:
        result = await asyncio.to_thread(score, **arguments)
    return {**(result if isinstance(result, dict) else {"score": result}), "data_source": data_source}


def read(path: Path) -> dict[str, list[list[float]]]:
    """Data source -> problems -> scores of a problem's samples.

    verl's `uid` is {problem}_{sample}_{turn}. A sample of several turns has its final score in each of them. Two
    problems with the same text have different uids. A dump of another reward function has one data source, "all".
    """
    samples: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            problem, sample, _ = row["uid"].rsplit("_", 2)
            samples[row.get("data_source", "all"), problem][sample] = row["score"]
        except (ValueError, KeyError) as error:
            sys.exit(f"{path}, line {number}: no sample of verl's validation ({error}); remove it and evaluate again.")
    sources: dict[str, list[list[float]]] = defaultdict(list)
    for (source, _), scores in samples.items():
        sources[source].append(list(scores.values()))
    return dict(sources)


def matrix(problems: list[list[float]], samples: int, expected: int) -> tuple[np.ndarray, str]:
    """(N, samples) whether a sample is right, and a sentence about what is missing. Missing samples count as wrong.

    Args:
        problems: the scores of every problem in the dump.
        expected: number of problems that were to be evaluated.
    """
    most = max(map(len, problems), default=0)
    if len(problems) > expected or most > samples:
        found = f"{len(problems)} problems with up to {most} samples"
        sys.exit(f"the dump has {found}, but {expected} x {samples} were expected; name its own --samples and --data.")
    right = np.zeros((expected, samples), dtype=bool)
    for i, scores in enumerate(problems):
        right[i, : len(scores)] = np.array(scores) > 0.5
    missing = expected * samples - sum(map(len, problems))
    if not missing:
        return right, ""
    whole = expected - len(problems)
    return right, f"{missing} of {expected * samples} samples are missing ({whole} problems wholly): counted as wrong"


def interval(values: np.ndarray, seed: int = 42, resamples: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (N,) values, one per problem."""
    picks = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def _with_interval(values: np.ndarray, digits: int) -> str:
    low, high = interval(values)
    return f"{100 * values.mean():.{digits}f} ({100 * low:.{digits}f} to {100 * high:.{digits}f})"


def tables(dumps: dict[str, Path], samples: int, data: list[Path]) -> str:
    """The paper's table (a row per dump), one with intervals, and a sentence for whatever is missing."""
    expected: Counter[str] = Counter()
    for file in data:
        expected.update(pyarrow.parquet.read_table(file, columns=["data_source"])["data_source"].to_pylist())
    cells, details, notes = {}, [], []
    for name, path in dumps.items():
        found = read(path)
        if list(found) == ["all"]:
            counts = {next(iter(expected)) if len(expected) == 1 else "all": sum(expected.values())}
            found = {source: found["all"] for source in counts}
        else:
            counts = expected
        if unknown := sorted(set(found) - set(counts)) if data else []:
            sys.exit(f"{path} has the data source {unknown[0]}, which no file of --data has; name all its files.")
        for source in counts if data else found:
            right, missing = matrix(found.get(source, []), samples, counts[source] or len(found[source]))
            avg, passed = right.mean(axis=1), right.any(axis=1).astype(float)
            cells[name, source] = f"{100 * avg.mean():.2f} / {100 * passed.mean():.1f}"
            title = TITLES.get(source, source)
            details.append([name, title, str(len(right)), _with_interval(avg, 2), _with_interval(passed, 1)])
            notes += [f"{name}, {title}: {missing}."] if missing else []
    sources = {source: None for _, source in cells}
    columns = [source for source in TITLES if source in sources] + [s for s in sources if s not in TITLES]
    paper = [[f"Avg@{samples} / Pass@{samples}", *(TITLES.get(source, source) for source in columns)]]
    paper += [[name, *(cells.get((name, source), "–") for source in columns)] for name in dumps]
    head = ["", "benchmark", "problems", f"Avg@{samples} (95 %)", f"Pass@{samples} (95 %)"]
    return "\n".join([_markdown(paper), _markdown([head, *details]), *notes])


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=16, metavar="K", help="per problem (default 16)")
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE", help="the evaluated Parquet files")
    parser.add_argument("--dump", nargs="+", required=True, metavar="NAME=FILE", help="verl's dump, global step .jsonl")
    args = parser.parse_args()
    dumps = {}
    for pair in args.dump:
        name, _, path = pair.partition("=")
        if not Path(path).is_file():
            sys.exit(f"--dump {pair}: must be NAME=FILE, a file that verl wrote into trainer.validation_data_dir.")
        dumps[name] = Path(path)
    print(tables(dumps, args.samples, args.data))


if __name__ == "__main__":
    main()

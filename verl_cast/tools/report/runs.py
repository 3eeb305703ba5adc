"""The runs below the given paths: each with its metrics, its trajectory dumps and a unique name.

Every metrics file is one run: verl's JSON lines, or console logs in a directory without JSON lines. A dump belongs to
the CAST run whose metrics lie nearest. If no run logged cast/*, the dump is a run of its own. Directories that hold no
metrics of a run are skipped: contents of checkpoints, Ray's sessions, other loggers' files.
"""

import functools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from verl_cast import trajectories
from verl_cast.config.cast import CastConfig
from verl_cast.config.methods import METHODS
from verl_cast.tools.cli import UserError
from verl_cast.tools.report import metrics_file

MAX_DEPTH = 5
SKIPPED_DIRECTORIES = ("ray", "wandb", "swanlog", "tensorboard_log", "mlruns", "__pycache__", "node_modules")
SKIPPED_PREFIXES = (".", "global_step_", "session_")
# File names that do not identify a run. Such a run is named after its directory.
GENERIC_STEMS = ("metrics", "train", "training", "log", "run", "main", "console", "output", "stdout", "nohup")
VALIDATION_PREFIXES = ("val-", "val/")  # of all metrics that verl logs at step 0, before training


@dataclass
class Run:
    """One run, as read from its files.

    Attributes:
        name: unique among the runs of the page.
        steps: {step: {metric: value}}, NaN where a value was not finite.
        metrics_path: the file of these metrics; None if only a dump was found.
        dump_files: {step: file}.
        remarks: sentences about the run's files, such as what was skipped.
    """

    name: str
    steps: dict[int, dict[str, float]]
    metrics_path: Path | None
    dump_files: dict[int, Path] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @functools.cached_property
    def method(self) -> str | None:
        """The method (`cast`, `rlsd`, ...) whose name the metrics start with; None if they name no method."""
        prefixes = {name.split("/", 1)[0] for values in self.steps.values() for name in values}
        return next((name for name in METHODS if name in prefixes), None)

    @property
    def is_cast(self) -> bool:
        """Whether the run was trained with CAST. Its metrics decide; a dump counts only without metrics."""
        return self.method == CastConfig.NAME if self.steps else bool(self.dump_files)

    @property
    def kind(self) -> str:
        """The run's label on the page and in the terminal."""
        if self.is_cast:
            return CastConfig.TITLE
        if self.method:
            return f"{METHODS[self.method].TITLE}, not CAST"
        return "not CAST" if self.num_steps else "not trained yet"

    @property
    def num_steps(self) -> int:
        """Number of training steps. A step with only a validation, such as step 0, is not one."""
        return len(self.training_steps)

    @functools.cached_property
    def training_steps(self) -> set[int]:
        return {s for s, values in self.steps.items() if any(not n.startswith(VALIDATION_PREFIXES) for n in values)}

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps at which a metric was logged, and its values, NaN included.

        Args:
            name: of the metric; `{method}` in it stands for the run's method (`{method}/gap/mean`).
        """
        name = name.replace("{method}", str(self.method))
        found = [(step, values[name]) for step, values in self.steps.items() if name in values]
        return [step for step, _ in found], [value for _, value in found]

    def sums(self, name: str) -> dict[int, float] | None:
        """{step: sum of a metric up to and with the step}; None unless every training step has a number."""
        total, sums = 0.0, {}
        for step, values in self.steps.items():
            value = values.get(name, math.nan if step in self.training_steps else 0.0)
            if math.isnan(value):
                return None
            total += value
            sums[step] = total
        return sums if total else None

    def values(self, name: str) -> list[float]:
        """The finite values of a metric, by step."""
        return [value for value in self.series(name)[1] if not math.isnan(value)]

    def has(self, name: str) -> bool:
        return bool(self.values(name))

    def ratio(self, numerator: str, denominator: str) -> tuple[list[int], list[float]]:
        """numerator / denominator at every step that has both; NaN, a gap in the curve, if one of them is NaN."""
        found = [
            (step, values[numerator] / values[denominator])
            for step, values in self.steps.items()
            if numerator in values and values.get(denominator)
        ]
        return [step for step, _ in found], [value for _, value in found]


def fifths(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last fifth (at least one value each); `values` is not empty."""
    n = max(1, len(values) // 5)
    return sum(values[:n]) / n, sum(values[-n:]) / n


def find(paths: list[Path]) -> list[Run]:
    """All runs below `paths` (directories, or metrics files), in the order given.

    Raises:
        UserError: a path does not exist, or holds no run.
    """
    found: list[tuple[Run, tuple[str, ...]]] = []  # each with the path parts that its name may use
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name a run's directory, or its .jsonl or .log file.")
        of_path = _of_file(path) if path.is_file() else _of_directory(path)
        for run, parts in of_path:
            key = (run.metrics_path or next(iter(run.dump_files.values()))).resolve()
            if key not in seen:
                seen.add(key)
                found.append((run, parts))
    for (run, _), name in zip(found, _unique_names([parts for _, parts in found]), strict=True):
        run.name = name
    return [run for run, _ in found]


def files(paths: list[Path]) -> list[Path]:
    """All files that `find` may read."""
    found = []
    for path in paths:
        if path.is_dir():
            json_files, console_files, dumps = _walk(path)
            found += [*json_files, *console_files, *(file for dump in dumps for file in dump.glob("*.parquet"))]
        else:
            found.append(path)
    return found


def _of_file(path: Path) -> list[tuple[Run, tuple[str, ...]]]:
    if path.suffix == ".parquet":
        raise UserError(f"{path} is one file of a dump; name its directory, {path.parent}.")
    metrics = metrics_file.read(path)
    if not metrics.steps:
        raise UserError(f"{path} holds no metrics; {_LOOKED_FOR}.")
    return [(Run("", metrics.steps, path, {}, metrics.remarks), _name_parts(path, alone=True))]


_LOOKED_FOR = (
    'looked for JSON lines {"step": ..., "data": {...}} of verl\'s file logger (enable it with '
    "trainer.logger=[console,file]; VERL_FILE_LOGGER_PATH sets its file), and for console lines "
    "`step:N - name:value - ...`"
)


def _of_directory(root: Path) -> list[tuple[Run, tuple[str, ...]]]:
    json_files, console_files, dump_directories = _walk(root)
    dumps, unreadable = _readable(dump_directories)
    found = _read(filter(metrics_file.is_json_metrics, json_files))
    with_json = {run.metrics_path.parent for run in found}
    logs = _read(path for path in console_files if path.parent not in with_json)
    found += [log for log in logs if not any(_same(log, run) for run in found)]
    if not found and not dumps:
        empty = f" ({', '.join(str(p) for p in json_files[:3])} holds no complete line)" if json_files else ""
        raise UserError(
            f"{root} holds no metrics{empty}: {_LOOKED_FOR}. The search covers *"
            f"{', *'.join((*metrics_file.JSON_SUFFIXES, *metrics_file.CONSOLE_SUFFIXES))} files and trajectory dumps, "
            f"{MAX_DEPTH} directories deep.{' '.join(['', *sum(unreadable.values(), [])])}"
        )

    directories = [run.metrics_path.parent for run in found]
    runs = []
    for run in found:
        alone = directories.count(run.metrics_path.parent) == 1
        runs.append((run, _parts(root) if len(found) == 1 else _name_parts(run.metrics_path, alone)))
    cast = [run for run in found if run.is_cast]
    for dump in dumps:
        if not cast:
            remark = (
                f"{dump} holds trajectories of a CAST run whose metrics are not here, so it has no curves "
                f"({_LOOKED_FOR})."
            )
            runs.append((Run("", {}, None, trajectories.files(dump), [remark]), _parts(dump)))
            continue
        run = _nearest(cast, dump)
        if run.dump_files:
            run.remarks.append(
                f"{dump} is a second trajectory dump of this run, besides {next(iter(run.dump_files.values())).parent}."
            )
        # If two dumps hold the same step, the one found first counts.
        run.dump_files = dict(sorted({**trajectories.files(dump), **run.dump_files}.items()))
        run.remarks += _not_of_a_dump(dump)
    for directory, problems in unreadable.items():
        (_nearest(found, directory) if found else runs[0][0]).remarks.extend(problems)
    return runs


def _readable(directories: list[Path]) -> tuple[list[Path], dict[Path, list[str]]]:
    """The directories with at least one readable file of a dump; for the others, what is wrong with their files.

    Without this, one junk file named like a dump would be a run. In a readable dump, dump_view.py names such files.
    """
    dumps, unreadable = [], {}
    for directory in directories:
        problems = []
        for path in trajectories.files(directory).values():
            try:
                trajectories.read(path)
            except trajectories.DumpError as error:
                problems.append(str(error))
            else:
                dumps.append(directory)
                break
        else:
            unreadable[directory] = problems
    return dumps, unreadable


def _not_of_a_dump(directory: Path) -> list[str]:
    others = sorted(set(directory.glob("*.parquet")) - set(trajectories.files(directory).values()))
    return [f"{path} is not named like a file of a dump (step_N.parquet) and is skipped." for path in others]


def _read(paths: Iterable[Path]) -> list[Run]:
    """One run, without a name yet, for every file that holds metrics."""
    read = ((path, metrics_file.read(path)) for path in paths)
    return [Run("", metrics.steps, path, {}, metrics.remarks) for path, metrics in read if metrics.steps]


def _same(log: Run, run: Run) -> bool:
    """Whether a console log is of the same run as JSON lines in another directory: equal numbers, seconds included.

    Only training steps count: two runs can have the same validation before training.
    """
    pairs = [
        (value, run.steps[step][name])
        for step in log.training_steps & run.training_steps
        for name, value in log.steps[step].items()
        if name in run.steps[step]
    ]
    return bool(pairs) and all(a == b or math.isnan(a) and math.isnan(b) for a, b in pairs)


def _walk(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """JSON-lines files, console logs and dump directories below `root`, each sorted by path."""
    json_files, console_files, dumps = [], [], []
    for name, directories, names in os.walk(root):
        directory = Path(name)
        if trajectories.files(directory):
            dumps.append(directory)
            directories.clear()
            continue
        depth = len(directory.relative_to(root).parts)
        directories[:] = sorted(
            d
            for d in directories
            if depth < MAX_DEPTH and d not in SKIPPED_DIRECTORIES and not d.startswith(SKIPPED_PREFIXES)
        )
        json_files += [directory / n for n in sorted(names) if n.endswith(metrics_file.JSON_SUFFIXES)]
        console_files += [directory / n for n in sorted(names) if n.endswith(metrics_file.CONSOLE_SUFFIXES)]
    return json_files, console_files, dumps


def _nearest(runs: list[Run], dump: Path) -> Run:
    """The CAST run that a dump belongs to: most directories in common, then the run's file name in the dump's path."""

    def nearness(run: Run) -> tuple[int, bool]:
        common = Path(os.path.commonpath([run.metrics_path.parent.resolve(), dump.resolve()]))
        return len(common.parts), run.metrics_path.stem in dump.parts

    return max(runs, key=nearness)


def _parts(path: Path) -> tuple[str, ...]:
    return tuple(part for part in path.resolve().parts if part not in ("/", trajectories.DIRECTORY))


def _name_parts(path: Path, alone: bool) -> tuple[str, ...]:
    """The path parts that a run's name may use: the file's directories, and its stem unless that is generic."""
    if alone and path.stem in GENERIC_STEMS:
        return _parts(path.parent)
    return (*_parts(path.parent), path.stem)


def _unique_names(all_parts: list[tuple[str, ...]]) -> list[str]:
    """For every path, its shortest ending that no other path has."""
    names = []
    for i, parts in enumerate(all_parts):
        for n in range(1, len(parts) + 1):
            if all(parts[-n:] != other[-n:] for j, other in enumerate(all_parts) if j != i):
                break
        name = "/".join(parts[-n:]) if parts else "run"
        names.append(name if name not in names else f"{name} ({names.count(name) + 1})")
    return names

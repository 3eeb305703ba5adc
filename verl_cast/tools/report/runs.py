"""The runs below the given paths: each with its metrics, its trajectory dumps and a unique name.

Every file of verl's file logger is one run. A dump belongs to the CAST run whose metrics lie nearest. If no run logged
cast/*, the dump is a run.
"""

import functools
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from verl_cast import trajectories
from verl_cast.config.cast import CastConfig
from verl_cast.config.methods import METHODS
from verl_cast.tools.cli import UserError
from verl_cast.tools.report import metrics_file

VALIDATION_PREFIXES = ("val-", "val/")  # of all metrics that verl logs at step 0, before training
REMEDY = (
    "The report reads verl's file logger: add 'file' to trainer.logger (trainer.logger=[console,file]) and name the "
    ".jsonl file that it writes (VERL_FILE_LOGGER_PATH), or a directory that holds it."
)


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

    @functools.cached_property
    def num_steps(self) -> int:
        """Number of training steps. A step with only a validation, such as step 0, is not one."""
        return sum(any(not n.startswith(VALIDATION_PREFIXES) for n in values) for values in self.steps.values())

    def series(self, metric: str) -> dict[int, float]:
        """{step: value} of a metric, NaN included.

        Args:
            metric: `cast/...` stands for the same metric of the run's own method. `a over b` is the ratio of two, at
                the steps that have both.
        """
        metric, _, over = metric.replace("cast/", f"{self.method}/", 1).partition(" over ")
        return {
            step: values[metric] / values[over] if over else values[metric]
            for step, values in self.steps.items()
            if metric in values and (not over or values.get(over))
        }

    def values(self, metric: str) -> dict[int, float]:
        """As `series`, without NaN."""
        return {step: value for step, value in self.series(metric).items() if not math.isnan(value)}


def find(paths: list[Path]) -> list[Run]:
    """All runs below `paths` (directories, or metrics files), in the order given.

    Raises:
        UserError: a path does not exist, or holds no run.
    """
    found: dict[Path, Run] = {}  # by what names it: its file, the directory of its metrics.jsonl or of its dump
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name a run's directory, or its .jsonl file.")
        runs = _of_directory(path) if path.is_dir() else _of_files([path])
        if not runs:
            raise UserError(f"{path} holds no metrics. {REMEDY}")
        for run in runs:
            place = (run.metrics_path or next(iter(run.dump_files.values())).parent).resolve()
            found.setdefault(place.parent if place.name == "metrics.jsonl" else place, run)
    common = Path(os.path.commonpath([place.parent for place in found]))
    for place, run in found.items():
        run.name = str(place.relative_to(common)).removesuffix(metrics_file.SUFFIX)
    return list(found.values())


def _of_files(paths: list[Path]) -> list[Run]:
    read = ((path, *metrics_file.read(path)) for path in paths)
    return [Run("", steps, path, {}, remarks) for path, steps, remarks in read if steps]


def _of_directory(root: Path) -> list[Run]:
    runs = _of_files(sorted(path for path in root.rglob(f"*{metrics_file.SUFFIX}") if path.is_file()))
    cast = [run for run in runs if run.is_cast]
    for dump in sorted({file.parent for file in root.rglob("step_*.parquet")}):
        files = trajectories.files(dump)
        if files and not cast:
            remark = f"{dump} holds trajectories of a CAST run whose metrics are not here. {REMEDY}"
            runs.append(Run("", {}, None, files, [remark]))
        elif files:
            run = max(cast, key=lambda one: _nearness(one.metrics_path, dump))
            if run.dump_files:
                first = next(iter(run.dump_files.values())).parent
                run.remarks.append(f"{dump} is a second trajectory dump of this run, besides {first}.")
            # If two dumps hold the same step, the one found first counts.
            run.dump_files = dict(sorted({**files, **run.dump_files}.items()))
    return runs


def _nearness(metrics_path: Path, dump: Path) -> tuple[int, bool]:
    """How many directories they have in common, then whether the file's name is in the dump's path."""
    common = Path(os.path.commonpath([metrics_path.parent.resolve(), dump.resolve()]))
    return len(common.parts), metrics_path.stem in dump.parts

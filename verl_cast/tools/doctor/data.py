"""The run's data, as verl's own dataset class gives them: what it reads, filters and refuses is what a run would.

Left out: the needs of a user's own dataset class or reward manager.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from verl_cast.checks.data import check_rows
from verl_cast.config.cast import CastConfigError
from verl_cast.tools.cli import cause_of, first_line
from verl_cast.tools.doctor.lines import Line, error, ok
from verl_cast.tools.run_parts import load_dataset

ROWS = 64
_FILTER = "data.filter_overlong_prompts"


@dataclass
class Data:
    """What is known of the data.

    Attributes:
        total: rows of the training data that the run sees; 0 where they cannot be read.
        chats: messages of the first training rows.
        of_source: a row of every data source of training and validation data.
    """

    total: int = 0
    chats: list[list[dict]] = field(default_factory=list)
    of_source: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)


def check(config: DictConfig, model_config: Any, is_accepted: bool) -> Data:
    """Load the training and validation data.

    Args:
        model_config: verl's HFModelConfig, for tokenizer and processor.
        is_accepted: whether the checks of the command accept it, so that the method's settings are valid.
    """
    found = Data()
    for key in ("train_files", "val_files"):
        try:
            _look_at(config, key, model_config, is_accepted, found)
        except CastConfigError as problem:
            found.lines += [error("data", complaint) for complaint in problem.complaints]
        except Exception as problem:  # verl, datasets or the user's class may raise anything
            cause = cause_of(problem)
            found.lines.append(error("data", f"data.{key}: {type(cause).__name__}: {first_line(cause)}"))
    return found


def _look_at(config: DictConfig, key: str, model_config: Any, is_accepted: bool, found: Data) -> None:
    dataset = whole = load_dataset(config, key, model_config)
    if config.data.get("filter_overlong_prompts"):
        whole = load_dataset(config, key, model_config, filter_overlong_prompts=False)
    dropped = f"{_FILTER}=True drops {len(whole) - len(dataset)} of {len(whole)}"
    if key == "train_files":
        found.total = len(dataset)
    if len(dataset):
        rows = f"{len(dataset)} rows" if len(dataset) == len(whole) else f"{len(dataset)} rows are left: {dropped}"
        found.lines.append(ok("data", f"data.{key}: {rows}"))
    else:
        limit = f"data.max_prompt_length={config.data.max_prompt_length}"
        found.lines.append(error("data", f"data.{key}: no row is left: {dropped} ({limit})."))
        dataset = whole
    if len(dataset) == 0:
        return
    if key == "train_files" and is_accepted:
        check_rows(config, dataset)
    problems = _columns(config, dataset)
    found.lines += [line for line in problems if line not in found.lines]
    if not problems:
        rows = [dataset[row] for row in range(min(ROWS, len(dataset)))]
        found.chats = found.chats or [list(row["raw_prompt"]) for row in rows]
        _add_sources(dataset, rows, found.of_source)


def _columns(config: DictConfig, dataset: Any) -> list[Line]:
    """What verl's dataset class and reward managers read of a row and do not check."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    if not isinstance(dataset, RLHFDataset):
        return []
    row, key, problems = dataset.dataframe[0], config.data.prompt_key, []
    if type(dataset)._build_messages is RLHFDataset._build_messages and not _is_chat(row.get(key)):
        problems.append(
            f"column {key} (data.prompt_key) must hold chat messages in verl's form [{{role, content}}, ...]"
        )
    if isinstance(row.get("extra_info"), str):
        problems.append("column extra_info holds text, and verl reads a struct there")
    if config.reward.reward_manager.source == "register":
        if row.get("data_source") is None:
            problems.append("verl's reward manager needs a column data_source")
        reference = row.get("reward_model")
        if not isinstance(reference, Mapping) or "ground_truth" not in reference:
            problems.append("verl's reward manager needs a column reward_model, a struct with ground_truth")
    types = ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items())
    return [error("data", f"{problem}; the columns are {types}.") for problem in problems]


def _is_chat(messages: Any) -> bool:
    return isinstance(messages, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)


def _add_sources(dataset: Any, rows: list[dict[str, Any]], found: dict[str, Mapping[str, Any]]) -> None:
    """Add a row of every data source that is new: of all rows, if the dataset has the table of verl's class."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    if isinstance(dataset, RLHFDataset) and "data_source" in dataset.dataframe.column_names:
        first: dict[str, int] = {}
        for number, name in enumerate(dataset.dataframe["data_source"]):
            first.setdefault(name, number)
        rows = [dataset[number] for name, number in first.items() if name not in found]
    for row in rows:
        if "data_source" in row:
            found.setdefault(row["data_source"], row)

"""The run's data, as verl's own dataset class gives them: what it reads, filters and refuses is what a run would.

Left out: remote files, and the needs of a user's own dataset class or reward manager.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cast.checks.data import check_rows
from verl_cast.config.cast import CastConfigError
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, cause_of, error, note, ok

ROWS = 64
_FILTER = "data.filter_overlong_prompts"


@dataclass
class Data:
    """What is known of the data.

    Attributes:
        total: rows of the training data that the run sees; None where they cannot be read.
        chats: messages of the first training rows.
        of_source: a row of every data source of training and validation data.
    """

    total: int | None = None
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
    names = config.data[key]
    names = [names] if isinstance(names, str) else list(names or [])
    remote = [name for name in names if "://" in name]
    if remote:
        found.lines.append(note("data", f"data.{key}: {', '.join(remote)} is remote; skipped"))
        return
    missing = [name for name in names if not Path(name).expanduser().exists()]
    if missing or not names:
        what = f"{missing[0]} does not exist; verl reads it before the first step" if missing else "names no file"
        found.lines.append(error("data", f"data.{key}: {what}."))
        return
    dataset, where = _dataset(config, key, model_config), ", ".join(names)
    whole = dataset
    if config.data.get("filter_overlong_prompts"):
        whole = _dataset(config, key, model_config, filter_overlong_prompts=False)
    if len(dataset) == 0:
        reason = f"{_FILTER}=True drops all {len(whole)}" if len(whole) else "it holds none"
        limit = f"data.max_prompt_length={config.data.max_prompt_length}"
        found.lines.append(error("data", f"data.{key}: no row is left of {where}: {reason} ({limit})."))
    else:
        dropped = f" ({_FILTER} drops {len(whole) - len(dataset)} more)" if len(whole) > len(dataset) else ""
        found.lines.append(ok("data", f"data.{key}: {len(dataset)} rows of {where}{dropped}"))
    source = dataset if len(dataset) else whole
    if len(source) == 0:
        return
    if key == "train_files":
        found.total = len(dataset)
        if is_accepted:
            check_rows(config, dataset)
    problems = _columns(config, source)
    found.lines += [line for line in problems if line not in found.lines]
    if not problems:
        rows = [source[row] for row in range(min(ROWS, len(source)))]
        found.chats = found.chats or [list(row["raw_prompt"]) for row in rows]
        _add_sources(source, rows, found.of_source)


def _dataset(config: DictConfig, key: str, model_config: Any, **changed: Any) -> Any:
    """As verl's trainer loads it; `changed` are settings of `data`."""
    from verl.trainer.ppo.utils import create_rl_dataset

    is_train = key == "train_files"
    return create_rl_dataset(
        config.data[key],
        OmegaConf.merge(config.data, changed),
        model_config.tokenizer,
        model_config.processor,
        is_train=is_train,
        max_samples=config.data.get("train_max_samples" if is_train else "val_max_samples", -1),
    )


def _columns(config: DictConfig, dataset: Any) -> list[Line]:
    """What verl's dataset class and reward managers read of a row and do not check."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    if not isinstance(dataset, RLHFDataset):
        return []
    row, key, lines = dataset.dataframe[0], config.data.prompt_key, []
    own_messages = type(dataset)._build_messages is not RLHFDataset._build_messages
    names = ", ".join(row)
    if key not in row and not own_messages:
        return [error("data", f"data.prompt_key={key}: the data have no such column; they have {names}.")]
    if not own_messages and not _is_chat(row[key]):
        lines.append(error("data", f"column {key} must hold chat messages in verl's form [{{role, content}}, ...]."))
    if isinstance(row.get("extra_info"), str):
        lines.append(error("data", "column extra_info holds text, and verl reads a struct there; write it as one."))
    if config.reward.reward_manager.source == "register":
        if row.get("data_source") is None:
            lines.append(error("data", f"verl's reward manager needs a column data_source; the columns are {names}."))
        reference = row.get("reward_model")
        if not isinstance(reference, Mapping) or "ground_truth" not in reference:
            form = "it holds text" if isinstance(reference, str) else f"the columns are {names}"
            needs = "verl's reward manager needs a column reward_model, a struct with ground_truth"
            lines.append(error("data", f"{needs}; {form}."))
    return lines


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

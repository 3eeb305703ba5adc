"""Is the teacher's context fit? The records of what was measured about it.

With both flips the policy goes where the teacher is (method sections 7 and 11). A context in which the model is worse
than under its own prompt therefore drags it down. `verl-cast diagnose` measures this before training. Its record lies
in `$VERL_CAST_CACHE`, or `~/.cache/verl_cast`, below `fitness/`; the doctor and the run's start look for it there.

A record holds for one model, task and way of sampling. Its name is a hash over what a measurement depends on:

* the model: hub name, or absolute path with the sizes and times of its files, since a path is often written again;
* the context as the model sees it: plain, same or the template's source, whatever the file is called;
* chat template and its arguments, temperature, top-p, top-k, response length: they make the student what it is;
* the task: training files and reward function, since a context that helps in one task may hurt in another. The files
  that were measured on (best a validation set) are not part of it; the record names them.

Left out: the measuring itself (tools/diagnose). Imports neither torch nor verl, and a record that cannot be read
is said and ignored: it never stops a run.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cast.checks import evidence
from verl_cast.config.cast import CastConfigError
from verl_cast.config.methods import cast_config
from verl_cast.files import whole_file
from verl_cast.teacher.context import chat_template_kwargs, load_template

logger = logging.getLogger("verl_cast")

RECORD_VERSION = 1
# An interval over fewer problems says nothing: with three equal differences its width is 0.
MIN_PROBLEMS = 10
_WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def record_path(config: DictConfig, context: str | None = None) -> Path:
    """Where the record of this run's model, context, sampling and task is kept.

    Args:
        config: the composed config of the run.
        context: another context than the run's own, spelled as `algorithm.cast.teacher.context`.

    Raises:
        CastConfigError: the context's template cannot be read.
    """
    identity = json.dumps(_identity(config, context), sort_keys=True, ensure_ascii=False)
    root = Path(os.environ.get("VERL_CAST_CACHE") or "~/.cache/verl_cast").expanduser()
    return root / "fitness" / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"


def save(config: DictConfig, record: Mapping[str, Any], context: str | None = None) -> Path:
    """Keep a record (see `verl_cast.tools.diagnose.contexts.fitness_record`), in place of an older one.

    Raises:
        OSError: the directory cannot be written.
    """
    path = record_path(config, context)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def find(config: DictConfig, context: str | None = None) -> dict[str, Any] | None:
    """The record of this run; None where nothing was measured, or where its record is unreadable (which is logged).

    Raises:
        CastConfigError: the context's template cannot be read.
    """
    path = "its cache"
    try:
        path = record_path(config, context)
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["record_version"]
        if version != RECORD_VERSION:
            raise ValueError(f"it is of version {version}, this verl_cast reads {RECORD_VERSION}")
        warning(record)  # reads every field that is relied on
    except FileNotFoundError:
        return None
    except CastConfigError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:  # RuntimeError: no home
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("[verl_cast] the context's measurement in %s is ignored (%s); measure again.", path, reason)
        return None
    return record


def verdict(record: Mapping[str, Any]) -> str:
    """Is the policy better in the teacher's context? `better`, `worse` or `undecided` (method section 11).

    It is decided when the 95 % interval of the difference of accuracies, teacher − student, does not hold 0.
    """
    low, high = (float(bound) for bound in record["difference"]["interval"])
    if int(record["problems"]) < MIN_PROBLEMS:
        return "undecided"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def warning(record: Mapping[str, Any]) -> str | None:
    """A sentence where the teacher was measured worse: the numbers, and what can be done; else None."""
    student, teacher = (_share(record[side]) for side in ("student", "teacher"))
    difference, (low, high) = record["difference"]["value"], record["difference"]["interval"]
    numbers = (
        f"the model is right in {teacher} of its responses in the teacher's context {record['context']}, and in "
        f"{student} under its own prompt (difference {difference:+.2f}, {low:+.2f} to {high:+.2f}; "
        f"{record['problems']} problems x {record['samples']}, {record['measured_at'][:10]})"
    )
    if verdict(record) != "worse":
        return None
    return (
        f"The teacher is measured worse than the policy: {numbers}. With both flips the policy moves to the teacher. "
        f"Choose another algorithm.cast.teacher.context. {evidence.advice('not better')}"
    )


def _share(side: Mapping[str, Any]) -> str:
    low, high = side["interval"]
    return f"{side['accuracy']:.2f} ({low:.2f} to {high:.2f})"


def _identity(config: DictConfig, context: str | None) -> dict[str, Any]:
    def select(key: str) -> Any:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    context = cast_config(config).teacher.context if context is None else context
    files = select("data.train_files")
    files = [files] if isinstance(files, str) or files is None else files
    return {
        "model": _model(select("actor_rollout_ref.model.path")),
        "context": load_template(context) or context,
        "chat_template": select("actor_rollout_ref.model.custom_chat_template"),
        "chat_template_kwargs": chat_template_kwargs(config),
        "sampling": {key: select(f"actor_rollout_ref.rollout.{key}") for key in ("temperature", "top_p", "top_k")},
        "max_response_length": select("data.max_response_length"),
        "train_files": [_absolute(file) for file in files],
        "reward": [
            _absolute(select("reward.custom_reward_function.path")),
            select("reward.custom_reward_function.name"),
        ],
    }


def _absolute(path: Any) -> Any:
    """Local paths in one spelling; hdfs:// and the like, hub names and None as they are."""
    if not isinstance(path, str) or "://" in path:
        return path
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def _model(path: Any) -> Any:
    directory = Path(path).expanduser() if isinstance(path, str) else None
    if directory is None or not directory.is_dir():
        return path
    stats = [file.stat() for pattern in _WEIGHTS for file in sorted(directory.glob(pattern))]
    return [str(directory.resolve()), [[stat.st_size, stat.st_mtime_ns] for stat in stats]]

"""The kinds of MODEL, and what vLLM loads for each.

* A Hugging Face model, directory or hub name: itself.
* An adapter in PEFT's format: the adapter on its base model.
* A verl checkpoint (`global_step_N` or its `actor`) of FSDP1 or FSDP2: merged once, by verl's merger (merge.py).
* A verl checkpoint of Megatron: the Hugging Face model that verl saves in it by default. Shards
  (`use_dist_checkpointing`) are merged by verl's merger, which has Megatron's own requirements.

Adapters are not merged; vLLM applies them as LoRA, like verl's rollouts and the evaluated run. Merged into bfloat16
weights, the update of a small learning rate would mostly be rounded away.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.vllm_process import root_cause

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("*.safetensors", "*.bin")
MODEL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py", *WEIGHTS]  # what is downloaded of a model
_NOT_THE_MODEL = ("optim_", "extra_state_", "cast_self_teacher_")


@dataclass(frozen=True)
class Source:
    """The model that the command line names.

    Attributes:
        kind: hugging_face, adapter, fsdp or megatron (the last two must be merged).
        path: its directory; for a checkpoint, the actor's.
        base: the base model that the command line names, for adapters.
    """

    kind: str
    path: Path
    base: str | None = None

    def identity(self) -> dict[str, Any]:
        """What distinguishes this model from others: path, kind, base model, and the sizes and times of its files."""
        # A checkpoint also holds other parts of the run's state, which may be deleted later.
        files = [f for f in sorted(self.path.rglob("*")) if f.is_file() and not f.name.startswith(_NOT_THE_MODEL)]
        return {
            "path": str(self.path),
            "kind": self.kind,
            "base": self.base,
            "files": {str(f.relative_to(self.path)): [f.stat().st_size, f.stat().st_mtime_ns] for f in files},
        }


@dataclass(frozen=True)
class Loadable:
    """What vLLM loads: a Hugging Face model, its tokenizer, and an adapter if there is one."""

    model: Path
    tokenizer: Path
    adapter: Path | None = None


def find(name: str, base: str | None = None) -> Source:
    """The model of that name.

    Raises:
        UserError: there is none, or it holds no model.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        return Source("hugging_face", _from_hub(name), base)
    path = path.resolve()
    if (path / "actor").is_dir():
        path = path / "actor"
    nested = path / "model" / "huggingface"  # Megatron
    for kind, place in (("adapter", path), ("adapter", nested / "adapter")):
        if (place / ADAPTER_CONFIG).exists():
            return Source(kind, place, base)
    if (path / "fsdp_config.json").exists():
        return Source("fsdp", path, base)
    for place in (path, nested):
        if (place / "config.json").exists() and has_weights(place):
            return Source("hugging_face", place, base)
    if (path / "model" / "dist_ckpt").is_dir():
        return Source("megatron", path, base)
    steps = sorted(path.glob("global_step_*"), key=lambda step: int(step.name.rpartition("_")[2]))
    hint = f" Name one of its checkpoints, such as {steps[-1]}." if steps else ""
    raise UserError(
        f"{name} holds no model: neither a Hugging Face model (config.json and weights), nor an adapter "
        f"({ADAPTER_CONFIG}), nor a checkpoint that verl wrote with FSDP or Megatron.{hint}"
    )


def load(source: Source, directory: Path, trust_remote_code: bool = False) -> Loadable:
    """The source as vLLM can load it, merged into `directory`/model if needed and not yet done.

    Raises:
        UserError: verl's merger failed (the message gives its reason), or an adapter has no base model.
    """
    if source.kind == "adapter":
        base = _base(source)
        return Loadable(base, base, source.path)
    model = source.path if source.kind == "hugging_face" else _merged(source, directory, trust_remote_code)
    adapter = model / "lora_adapter"  # verl's merger puts it there, also when the user runs it
    if not adapter.is_dir():
        return Loadable(model, model)
    return Loadable(model if has_weights(model) else _base(source), model, adapter)


def _merged(source: Source, directory: Path, trust_remote_code: bool) -> Path:
    """`directory`/model, merged from exactly these shards."""
    merged, partial, made_from = directory / "model", directory / "model.partial", "made_from.json"
    config = source.path / ("huggingface" if source.kind == "fsdp" else "model/huggingface")
    if not (config / "config.json").exists():  # verl saves no config beside Megatron's shards
        config = _base(source)
    identity = json.dumps(source.identity(), indent=1)
    if (merged / made_from).exists() and (merged / made_from).read_text() == identity:
        return merged
    print(f"[model] merging {source.path} (verl.model_merger)", file=sys.stderr, flush=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    log = directory / "merge.log"
    arguments = [source.kind, str(source.path), str(config), str(partial)]
    arguments += ["--trust-remote-code"] if trust_remote_code else []
    with log.open("wb") as output:
        command = [sys.executable, "-m", "verl_cast.tools.evaluate.merge", *arguments]
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        reason = root_cause(log.read_text(errors="replace"))
        raise UserError(
            f"{source.path}: verl's model merger failed: {reason} (its log: {log})."
            + (" For Megatron's shards it needs CUDA and TransformerEngine." if source.kind == "megatron" else "")
        )
    (partial / made_from).write_text(identity)
    shutil.rmtree(merged, ignore_errors=True)
    os.replace(partial, merged)
    return merged


def _base(source: Source) -> Path:
    """The directory of the base model of an adapter, or of shards without config."""
    config = source.path / ADAPTER_CONFIG
    named = json.loads(config.read_text()).get("base_model_name_or_path") if config.exists() else None
    name = source.base or named
    if not name:
        raise UserError(f"{source.path} is not a complete model; name its base model with --base-model.")
    base = find(str(name))
    if base.kind != "hugging_face":
        raise UserError(f"--base-model {name}: must be a Hugging Face model, not a checkpoint or an adapter.")
    return base.path


def has_weights(directory: Path) -> bool:
    return any(file for pattern in WEIGHTS for file in directory.glob(pattern))


def _from_hub(name: str) -> Path:
    """The newest snapshot of a model on the hub, downloaded if it is not in the cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES))
    except (OSError, ValueError) as error:  # no such repository, no network, or no name of a repository
        raise UserError(f"{name}: no such directory, and the hub gives no such model: {first_line(error)}") from error

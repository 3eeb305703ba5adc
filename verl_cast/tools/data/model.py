"""`verl-cast data --model ID`: a model from the hub as a directory, fetched ahead for nodes without network."""

from pathlib import Path

from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.evaluate.models import MODEL_FILES, has_weights


def fetch(name: str, directory: Path) -> None:
    """Download a model (weights, config, tokenizer) into this directory. What is there already is not fetched again.

    Raises:
        UserError: the hub cannot be reached or has no such model, or what it has is no model.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, local_dir=directory, allow_patterns=MODEL_FILES)
    except (OSError, ValueError) as error:  # no network, no such repository, no name of one, or a full disk
        raise UserError(
            f"--model {name} cannot be fetched from the Hugging Face hub: {first_line(error)} Run this where there is "
            f"network access and copy {directory} to the nodes; a gated model needs `hf auth login` first."
        ) from error
    if not (directory / "config.json").exists() or not has_weights(directory):
        raise UserError(
            f"--model {name}: the hub's repository has no config.json or no weights (*.safetensors, *.bin), so it is "
            "no model for verl; name another one."
        )

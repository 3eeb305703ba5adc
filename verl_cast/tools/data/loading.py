"""Loads a source's rows with `datasets`: from the hub, a local file (parquet, json, jsonl, csv) or a local directory.

Without network, rows come from the cache of `datasets`. Left out: `save_to_disk` directories.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow

from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.data.sources import Source

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
# Raised for unreadable files and an unreachable hub. ConnectionError and DatasetNotFoundError are OSErrors.
PROBLEMS = (OSError, ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException)


@dataclass(frozen=True)
class Origin:
    """Where a source's rows come from.

    Attributes:
        source: a hub name, or a local path.
        split: None for a file.
        revision: on the hub; None: the current main.
        sha256: of the local file or directory; None for the hub.
    """

    source: str
    split: str | None
    revision: str | None = None
    sha256: str | None = None


def local_origin(path: Path, source: Source) -> Origin:
    """The origin of a local file or directory.

    Raises:
        UserError: it does not exist, or its format is unknown.
    """
    if path.is_dir():
        # Hidden files are the downloader's metadata; they contain dates.
        files = [file for file in path.rglob("*") if file.is_file() and "/." not in f"/{file.relative_to(path)}"]
        return Origin(str(path), source.split, sha256=_hash(sorted(files)))
    if not path.is_file():
        raise UserError(f"--source {source.name}={path}: no such file or directory.")
    if path.suffix not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise UserError(f"--source {source.name}={path}: neither a directory nor one of {known}.")
    return Origin(str(path), None, sha256=_hash([path]))


def load(origin: Origin, source: Source) -> tuple[datasets.Dataset, str | None]:
    """All rows, and their commit on the hub (None: local).

    Raises:
        UserError: they cannot be loaded; the message says how to provide them by hand.
    """
    try:
        if origin.sha256 is None:
            builder = datasets.load_dataset_builder(origin.source, revision=origin.revision)
            builder.download_and_prepare()
            return builder.as_dataset(origin.split), builder.hash
        if origin.split is None:
            builder = BUILDERS[Path(origin.source).suffix]
            return datasets.load_dataset(builder, data_files=origin.source, split="train"), None
        return _split(datasets.load_dataset(origin.source), origin), None
    except PROBLEMS as error:
        if origin.sha256 is not None:
            raise UserError(f"--source {source.name}={origin.source} cannot be read: {first_line(error)}") from error
        raise UserError(
            f"{origin.source} cannot be loaded from the Hugging Face hub: {first_line(error)} Download it with "
            f"network access (`hf download --repo-type dataset {origin.source}`) and pass --source {source.name}=PATH, "
            "that directory or a file; or leave it out with --only."
        ) from error


def _split(found: datasets.DatasetDict, origin: Origin) -> datasets.Dataset:
    if origin.split in found:
        return found[origin.split]
    if len(found) == 1:
        return next(iter(found.values()))
    raise UserError(f"{origin.source} has no split {origin.split}; it has {', '.join(found)}. Name one file of it.")


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if len(files) > 1:
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()

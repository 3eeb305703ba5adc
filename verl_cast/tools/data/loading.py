"""Loads a source's rows with `datasets`: from the hub, a local file (parquet, json, jsonl, csv) or a local directory.

Without network, rows come from the cache of `datasets`. Left out: `save_to_disk` directories.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow

from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.data.sources import Source

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
# Raised for unreadable files and an unreachable hub. ConnectionError and DatasetNotFoundError are OSErrors. `datasets`
# raises StopIteration for an empty JSON file.
PROBLEMS = (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError, pyarrow.ArrowException)


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
        return Origin(str(path), source.split, sha256=_hash(_files(path)))
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
            # The message of `datasets` itself is only that an error occurred.
            reason = _damage(Path(origin.source)) or first_line(error.__cause__ or error)
            raise UserError(f"--source {source.name}={origin.source} cannot be read: {reason}") from error
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


def _files(directory: Path) -> list[Path]:
    """All files below, except hidden ones: those are the downloader's metadata, which contain dates."""
    return sorted(f for f in directory.rglob("*") if f.is_file() and "/." not in f"/{f.relative_to(directory)}")


def _damage(path: Path) -> str | None:
    """A sentence about the first empty or broken JSON file at this path, with its line; None if all are whole."""
    for file in _files(path) if path.is_dir() else [path]:
        if file.suffix in BUILDERS and not file.read_bytes().strip():
            return f"{file} is empty; download or copy it again."
        fault = _fault(file.read_bytes(), file.suffix) if file.suffix in (".json", ".jsonl") else None
        if fault:
            return f"{file}, {fault}; download or copy the file again, or correct the line."
    return None


def _fault(content: bytes, suffix: str) -> str | None:
    if suffix == ".json":  # one document, or JSON Lines
        try:
            json.loads(content)
            return None
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                return f"line {error.lineno}: not JSON ({error.msg})"
        except UnicodeDecodeError:
            pass  # the lines tell where
    *_, last = lines = content.rstrip().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            cut = "cut off: it ends in the middle of a row" if line is last else "not JSON"
            return f"line {number}: {cut} ({error.msg})"
        except UnicodeDecodeError:
            return f"line {number}: not UTF-8"
        if not isinstance(row, dict):
            return f"line {number}: {line.decode()[:40]!r} is not a JSON object"
    return None


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if len(files) > 1:
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()

"""A source's rows, by `datasets`: from the hub, a local file (parquet, json, jsonl, csv) or a local data set directory.

Without network, what `datasets` has in its cache is read. Left out: `save_to_disk` directories.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow

from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.data.sources import Source

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
# What unreadable files and unreachable hubs raise: ConnectionError is an OSError, DatasetNotFoundError too.
PROBLEMS = (OSError, ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException)


@dataclass(frozen=True)
class Origin:
    """Where rows are asked for.

    Attributes:
        source: a hub name, or a local path.
        split: None for a file.
        revision: asked of the hub; None: what main stands at.
        sha256: of what lies at the local path; None for the hub.
    """

    source: str
    split: str | None
    revision: str | None = None
    sha256: str | None = None


def local_origin(path: Path, source: Source) -> Origin:
    """The origin of a local file or directory.

    Raises:
        UserError: it does not exist, or is of no known format.
    """
    if path.is_dir():
        # Hidden files are the downloader's own notes, with dates in them.
        files = [file for file in path.rglob("*") if file.is_file() and "/." not in f"/{file.relative_to(path)}"]
        return Origin(str(path), source.split, sha256=_hash(sorted(files)))
    if not path.is_file():
        raise UserError(f"--source {source.name}={path}: no such file or directory.")
    if path.suffix not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise UserError(f"--source {source.name}={path}: neither a directory nor one of {known}.")
    return Origin(str(path), None, sha256=_hash([path]))


def load(origin: Origin, source: Source) -> tuple[datasets.Dataset, str | None]:
    """All rows, and the hub's commit that they come from (None: local).

    Raises:
        UserError: they cannot be had; says how to give them by hand.
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
            f"{origin.source} cannot be loaded from the Hugging Face hub: {first_line(error)} Fetch it where there is "
            f"network (`hf download --repo-type dataset {origin.source}`) and give --source {source.name}=PATH, a file "
            "or that directory; or leave it out with --only."
        ) from error


def _split(found: datasets.DatasetDict, origin: Origin) -> datasets.Dataset:
    if origin.split in found:
        return found[origin.split]
    if len(found) == 1:
        return next(iter(found.values()))
    raise UserError(f"{origin.source} has no split {origin.split} but {', '.join(found)}; name one file of it instead.")


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if len(files) > 1:
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()

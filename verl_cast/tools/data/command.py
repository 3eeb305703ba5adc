"""`verl-cast data`: its arguments, and the files that it writes: one Parquet file per data set, and manifest.json.

A file is kept if the manifest lists it, it is intact, and it was made from the same source with the same options. The
hub is not asked for a newer commit then. The same source gives the same bytes.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet

import verl_cast
from verl_cast.files import whole_file
from verl_cast.tools.cli import UserError
from verl_cast.tools.data import loading, model, rows
from verl_cast.tools.data.sources import SOURCES, Source

MANIFEST = "manifest.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(SOURCES)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default ./data; of a model ./models/NAME")
    parser.add_argument(
        "--model", metavar="ID", help="fetch this model from the hub into DIR, for nodes without network, and no data"
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"make only these data sets, of {names}")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="take a data set from a local file (parquet, json, jsonl, csv), a local directory or another hub name "
        "(hub:OWNER/NAME) instead of its usual place; may be repeated",
    )
    parser.add_argument(
        "--revision", action="append", default=[], metavar="NAME=REVISION", help="revision on the hub (default: main)"
    )
    parser.add_argument(
        "--prompt",
        choices=rows.PROMPTS,
        default="raw",
        help="form of the training prompts: DAPO's own words (default, as in the evaluated run) or the problem with "
        "the \\boxed{} instruction that benchmarks always have",
    )
    parser.add_argument("--train-limit", type=int, metavar="N", help="only the first N training problems")
    parser.add_argument("--overwrite", action="store_true", help="make files again that are up to date")


def main(args: argparse.Namespace) -> int:
    return _fetch_model(args) if args.model is not None else _make_data(args)


def _fetch_model(args: argparse.Namespace) -> int:
    if args.only or args.source or args.revision:
        raise UserError("--model fetches a model alone; call it without --only, --source and --revision.")
    directory = args.out or Path("models") / args.model.rpartition("/")[2]
    _make_directory(directory)
    model.fetch(args.model, directory)
    print(f"{args.model}: {directory} (for the scripts in examples/: MODEL_PATH={directory.resolve()})")
    return 0


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {directory} cannot be created ({error.strerror}).") from error


def _make_data(args: argparse.Namespace) -> int:
    args.out = args.out or Path("data")
    chosen = _chosen(args.only)
    places, revisions = _pairs("--source", args.source), _pairs("--revision", args.revision)
    if args.train_limit is not None and args.train_limit < 1:
        raise UserError(f"--train-limit {args.train_limit}: must be at least 1.")
    _make_directory(args.out)
    manifest = _read_manifest(args.out)
    for source in chosen:
        options = {
            "prompt": args.prompt if source.training else "boxed",
            "limit": args.train_limit if source.training else None,
        }
        origin = _origin(source, places.get(source.name), revisions.get(source.name))
        made_from = asdict(origin) | options
        entry = manifest["files"].get(source.file)
        if not args.overwrite and entry and entry["made_from"] == made_from and _is_intact(args.out, source, entry):
            print(f"{source.name}: {args.out / source.file} is up to date, kept ({entry['rows_written']} rows)")
            continue
        dataset, commit = loading.load(origin, source)
        prepared = rows.prepare(dataset, source, **options)
        entry = {"made_from": made_from, "commit": commit} | _write(args.out, source, prepared)
        manifest["files"][source.file] = entry
        # Written after every file, so that an error in a later source loses nothing.
        with whole_file(args.out / MANIFEST) as scratch:
            scratch.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _say(args.out, source, prepared)
    return 0


def _chosen(only: str | None) -> list[Source]:
    names = list(SOURCES) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names:
        raise UserError(f"--only {only}: must name data sets of {', '.join(SOURCES)}.")
    return [SOURCES[name] for name in names]


def _pairs(option: str, values: list[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, right = value.partition("=")
        if name not in SOURCES or not equals or not right:
            raise UserError(f"{option} {value}: must be NAME=..., with NAME one of {', '.join(SOURCES)}.")
        pairs[name] = right
    return pairs


def _origin(source: Source, place: str | None, revision: str | None) -> loading.Origin:
    if place is None or place.startswith("hub:"):
        repo = source.repo if place is None else place.removeprefix("hub:")
        return loading.Origin(repo, source.split, revision=revision)
    if revision is not None:
        raise UserError(
            f"--revision {source.name}={revision}: {source.name} comes from a local file, not from the hub."
        )
    return loading.local_origin(Path(place).expanduser(), source)


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.exists():
        return {"files": {}}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of this command; remove it or choose another --out.") from error
    return manifest


def _is_intact(directory: Path, source: Source, entry: dict[str, Any]) -> bool:
    path = directory / source.file
    return path.is_file() and _sha256(path) == entry["sha256"]


def _write(directory: Path, source: Source, prepared: rows.Prepared) -> dict[str, Any]:
    path = directory / source.file
    with whole_file(path) as scratch:
        pyarrow.parquet.write_table(prepared.table, scratch)
    return {
        "rows_read": prepared.rows_read,
        "rows_duplicate": prepared.rows_duplicate,
        "rows_conflicting": prepared.rows_conflicting,
        "rows_written": prepared.table.num_rows,
        "sha256": _sha256(path),
        "versions": {
            "verl_cast": verl_cast.__version__,
            "datasets": importlib.metadata.version("datasets"),
            "pyarrow": importlib.metadata.version("pyarrow"),
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(directory: Path, source: Source, prepared: rows.Prepared) -> None:
    written = prepared.table.num_rows
    print(
        f"{source.name}: {directory / source.file}, {written} rows "
        f"(read {prepared.rows_read}, duplicates {prepared.rows_duplicate})"
    )
    if prepared.rows_conflicting:
        print(f"  note: {prepared.rows_conflicting} duplicates give another answer than the first, which was kept")
    if source.num_problems not in (None, written):
        print(f"  note: it usually has {source.num_problems} problems")

"""What the metrics mean, from the one table that says it: "Metrics" in verl_cast/advantage/README.md."""

import functools
import importlib.resources
import re
from dataclasses import dataclass

METHOD = "cast"  # the table's name for what a baseline logs under its own


@dataclass(frozen=True)
class Explained:
    what: str
    healthy: str


@functools.cache
def metrics() -> dict[str, Explained]:
    """Name of a metric, as CAST logs it -> its row of the table, without markup."""
    page = importlib.resources.files("verl_cast.advantage").joinpath("README.md").read_text(encoding="utf-8")
    rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if re.match(r"\| `\w+/", line))
    return {_plain(name): Explained(_plain(what), _plain(healthy)) for name, what, healthy in rows}


def _plain(cell: str) -> str:
    return cell.replace("`", "").replace("\\|", "|").strip()

"""Accuracies in print: those of the paper, ``data/paper.json``, and of other methods, ``data/field.json``."""

import importlib.resources
import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

__all__ = ["PublishedAccuracy", "published_accuracy", "published_rows", "published_tables"]

FILES = ("paper.json", "field.json")


@dataclass(frozen=True)
class PublishedAccuracy:
    """A published top-1 accuracy in percent.

    Attributes
    ----------
    mean : float
    std : float or None
        Over runs, if it was published.
    runs : int or None
        Number of runs behind the mean, if it is known.
    uncertain : bool
        Whether the number could not be read without doubt.
    others : tuple of float
        Further figures in print for the same method and pair.
    source : str or None
        Where it was published, if not in the paper.
    """

    mean: float
    std: float | None = None
    runs: int | None = None
    uncertain: bool = False
    others: tuple[float, ...] = ()
    source: str | None = None

    def __str__(self) -> str:
        std = "" if self.std is None else f" ({self.std:.2f})"
        others = f", others {', '.join(f'{other:.2f}' for other in self.others)}" if self.others else ""
        return f"{self.mean:.2f}{std}{', uncertain' if self.uncertain else ''}{others}"

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return asdict(self)


def published_tables() -> tuple[str, ...]:
    """List the tables that have rows."""
    return tuple(name for name, table in _tables().items() if "rows" in table)


def published_rows(table: str) -> tuple[str, ...]:
    """List the rows of a table."""
    return tuple(_tables()[table]["rows"])


def published_accuracy(table: str, row: str, pair: str, dataset: str) -> PublishedAccuracy | None:
    """Look up a top-1 accuracy in percent.

    Parameters
    ----------
    table : str
        One of `published_tables`, such as ``table3``.
    row : str
    pair : str
        Such as ``WRN-40-2/WRN-16-2``.
    dataset : str
        The dataset of the runs to compare with.

    Returns
    -------
    PublishedAccuracy or None
        ``None`` if the table does not have this row, pair and dataset, or its number is not readable.
    """
    found = _tables()[table]
    cells = found["rows"].get(row) or {}
    figures = (cells if pair == found["pair"] else None) if "pair" in found else cells.get(pair)
    if dataset != found["dataset"] or not figures:
        return None
    return PublishedAccuracy(
        figures["mean"],
        figures.get("std"),
        found.get("runs"),
        figures.get("uncertain", False),
        tuple(figures.get("others", ())),
        cells.get("source", found.get("source")),
    )


@cache
def _tables() -> dict[str, dict[str, Any]]:
    folder = importlib.resources.files("kdcache.data")
    files = [json.loads((folder / name).read_text("utf-8")) for name in FILES]
    return {name: table for file in files for name, table in file.items() if isinstance(table, dict)}

"""Accuracies that the paper reports, from ``data/paper.json``."""

import importlib.resources
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from kdcache.analysis.estimates import MeanStd

__all__ = ["PaperAccuracy", "paper_accuracy", "paper_rows"]

RUNS_PER_MEAN = 3
"""Number of runs behind each mean of the paper. A table with a single pair reports single runs."""


@dataclass(frozen=True)
class PaperAccuracy(MeanStd):
    """A top-1 accuracy of the paper in percent.

    Attributes
    ----------
    uncertain : bool
        Whether the number could not be read without doubt.
    """

    uncertain: bool = False

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {**super().as_json(), "uncertain": self.uncertain}


def paper_rows(table: str) -> tuple[str, ...]:
    """List the rows of a table of the paper; empty if there is no such table."""
    return tuple(_paper().get(table, {}).get("rows", ()))


def paper_accuracy(table: str | None, row: str | None, pair: str, dataset: str) -> PaperAccuracy | None:
    """Look up a top-1 accuracy in percent.

    Parameters
    ----------
    table : str or None
        Such as ``table3``.
    row : str or None
        One of `paper_rows`.
    pair : str
        Such as ``WRN-40-2/WRN-16-2``.
    dataset : str
        The dataset of the runs to compare with.

    Returns
    -------
    PaperAccuracy or None
        ``None`` if the paper does not report this row, pair and dataset, or its number is not readable.
    """
    if table is None or row is None or dataset != _paper()[table]["dataset"]:
        return None
    found, rows = _paper()[table], _paper()[table]["rows"]
    if "pair" in found:
        return PaperAccuracy(1, rows[row]["top1"], None) if pair == found["pair"] else None
    cell = rows[row].get(pair)
    if not cell:
        return None
    return PaperAccuracy(RUNS_PER_MEAN, cell["mean"], cell.get("std"), uncertain=cell.get("uncertain", False))


@cache
def _paper() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads((importlib.resources.files("kdcache.data") / "paper.json").read_text("utf-8"))
    return tables

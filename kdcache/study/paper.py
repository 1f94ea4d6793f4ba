"""Accuracies that the paper reports, from ``data/paper.json``."""

import importlib.resources
import json
from functools import cache
from typing import Any

from kdcache.analysis.estimates import MeanStd

__all__ = ["paper_accuracy", "paper_rows"]

RUNS_PER_MEAN = 3
"""Number of runs behind each mean of the paper. A table with a single pair reports single runs."""


def paper_rows(table: str) -> tuple[str, ...]:
    """List the rows of a table of the paper; empty if there is no such table."""
    return tuple(_paper().get(table, {}).get("rows", ()))


def paper_accuracy(table: str | None, row: str | None, pair: str, dataset: str) -> MeanStd | None:
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
    MeanStd or None
        ``None`` if the paper does not report this row, pair and dataset, or its number is not readable.
    """
    if table is None or row is None or dataset != _paper()[table]["dataset"]:
        return None
    found, rows = _paper()[table], _paper()[table]["rows"]
    if "pair" in found:
        return MeanStd(1, rows[row]["top1"], None) if pair == found["pair"] else None
    cell = rows[row].get(pair)
    return MeanStd(RUNS_PER_MEAN, cell["mean"], cell.get("std")) if cell else None


@cache
def _paper() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads((importlib.resources.files("kdcache.data") / "paper.json").read_text("utf-8"))
    return tables

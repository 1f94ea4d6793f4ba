"""What the paper reports, as ``data/paper.json`` has it."""

import importlib.resources
import json
from functools import cache
from typing import Any

from kdcache.analysis.estimates import MeanStd

__all__ = ["RUNS", "paper_figure", "paper_rows"]

RUNS = 3
"""Of which a figure of the paper is the mean; a table of a single pair has single figures."""


def paper_rows(table: str) -> tuple[str, ...]:
    """Name the rows of a table; none of one that the paper does not have."""
    return tuple(_paper().get(table, {}).get("rows", ()))


def paper_figure(table: str | None, row: str | None, pair: str, dataset: str) -> MeanStd | None:
    """Look up a top-1 accuracy.

    Parameters
    ----------
    table : str or None
        As ``table3``.
    row : str or None
        Its key there, one of `paper_rows`.
    pair : str
        As ``WRN-40-2/WRN-16-2``.
    dataset : str
        On which ours was trained.

    Returns
    -------
    MeanStd or None
        ``None`` where the paper reports nothing for this dataset and pair, or nothing that is readable.
    """
    if table is None or row is None or dataset != _paper()[table]["dataset"]:
        return None
    found, rows = _paper()[table], _paper()[table]["rows"]
    if "pair" in found:
        return MeanStd(1, rows[row]["top1"], None) if pair == found["pair"] else None
    cell = rows[row].get(pair)
    return MeanStd(RUNS, cell["mean"], cell.get("std")) if cell else None


@cache
def _paper() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads((importlib.resources.files("kdcache.data") / "paper.json").read_text("utf-8"))
    return tables

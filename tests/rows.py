"""Tables of rows that tell where they belong."""

import torch

from kdcache.answers.codec import DENSE, Columns
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN
from kdcache.answers.table import Table, fill

CLASSES = 100
ROWS = 25_000  # three chunks of float16


def table(place: StoreLocation, name: str = CLEAN, rows: int = ROWS) -> Table:
    return Table(place, name, rows, DENSE.layout(CLASSES))


def whole(place: StoreLocation, name: str = CLEAN) -> Table:
    """A table that is full."""
    one = table(place, name)
    list(fill([(one, rows_of)]))
    return one


def rows_of(span: range) -> Columns:
    """Rows that tell where they belong."""
    return {"logits": (torch.tensor(span)[:, None] % 2011 + torch.arange(CLASSES) / 128).half()}


def equal(one: Columns | None, other: Columns) -> bool:
    return one is not None and all(one[name].equal(other[name]) for name in other)

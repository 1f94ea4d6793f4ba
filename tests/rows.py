"""Tables whose rows identify themselves."""

import torch

from kdcache.answers.encoding import DEFAULT_ENCODING, EncodedAnswers
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import CLEAN
from kdcache.answers.table import Table, fill_missing

CLASSES = 100
ROWS = 25_000  # three chunks of float16


def table(location: StoreLocation, path: str = CLEAN, rows: int = ROWS) -> Table:
    return Table(location, path, rows, DEFAULT_ENCODING.layout(CLASSES))


def full_table(location: StoreLocation, path: str = CLEAN) -> Table:
    """A complete table."""
    one = table(location, path)
    list(fill_missing([(one, rows_of)]))
    return one


def rows_of(span: range) -> EncodedAnswers:
    """Rows that depend on their position."""
    return {"logits": (torch.tensor(span)[:, None] % 2011 + torch.arange(CLASSES) / 128).half()}


def equal(one: EncodedAnswers | None, other: EncodedAnswers) -> bool:
    return one is not None and all(one[name].equal(other[name]) for name in other)

"""How an answer is stored: all its logits, or the largest ones and what the rest weighs together.

An answer passes through its format before anyone uses it, also when it was just asked: so answers that are read back
and answers that are new are the same bits.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.choices import STORE_DTYPES
from kdcache.errors import KdcacheError, UsageError, problem

__all__ = ["DENSE", "Columns", "Dense", "Format", "Layout", "TopK", "format_of", "require_finite", "row_bytes"]

Columns = dict[str, Tensor]
"""Encoded answers: tensors by name, each with the same number of rows."""

Layout = dict[str, tuple[int, np.dtype]]
"""Width and type of each column."""

REST_TEMPERATURE = 4.0
"""Temperature at which the rest of a `TopK` answer weighs what it truly weighs: the paper's tau."""


@dataclass(frozen=True)
class Dense:
    """All logits.

    Parameters
    ----------
    dtype : str
        ``float16`` or ``float32``.
    """

    dtype: str = "float16"

    @property
    def name(self) -> str:
        """Name of the format, part of a store's fingerprint."""
        return self.dtype

    def layout(self, classes: int) -> Layout:
        """Name the columns that hold answers about so many classes."""
        return {"logits": (classes, np.dtype(self.dtype))}

    def encode(self, logits: Tensor) -> Columns:
        """Encode logits (B, C), which `require_finite` looks at."""
        return {"logits": logits.to(getattr(torch, self.dtype))}

    def decode(self, columns: Columns, classes: int) -> Tensor:
        """Give back logits, float32 (B, C)."""
        return columns["logits"].float()


@dataclass(frozen=True)
class TopK:
    """The K largest logits with their classes, and one logit that stands for each of the others.

    The other C - K logits are given back equal, so that together they have the probability at `REST_TEMPERATURE`
    that they truly have; at other temperatures this is close but not exact.

    Parameters
    ----------
    dtype : str
        ``float16`` or ``float32``.
    topk : int
        K.
    """

    dtype: str
    topk: int

    @property
    def name(self) -> str:
        """Name of the format, part of a store's fingerprint."""
        return f"{self.dtype}-top{self.topk}"

    def layout(self, classes: int) -> Layout:
        """Name the columns, as in `Dense`.

        Raises
        ------
        UsageError
            Where there are not more than K classes.
        """
        if self.topk >= classes:
            raise UsageError(problem("--topk", expected=f"fewer than the {classes} classes", got=self.topk))
        layout = {"top": (self.topk, self.dtype), "classes": (self.topk, _index_type(classes)), "rest": (1, _REST)}
        return {name: (width, np.dtype(dtype)) for name, (width, dtype) in layout.items()}

    def encode(self, logits: Tensor) -> Columns:
        """Encode logits, as in `Dense`; ``rest`` is the log-sum-exp of the others at `REST_TEMPERATURE`."""
        top, classes = logits.float().topk(self.topk, dim=1)
        others = (logits.float() / REST_TEMPERATURE).scatter(1, classes, -torch.inf)
        return {
            "top": top.to(getattr(torch, self.dtype)),
            "classes": classes.to(getattr(torch, _index_type(logits.shape[1]))),
            "rest": others.logsumexp(1, keepdim=True),
        }

    def decode(self, columns: Columns, classes: int) -> Tensor:
        """Give back logits, as in `Dense`."""
        each = REST_TEMPERATURE * (columns["rest"] - math.log(classes - self.topk))
        return each.expand(-1, classes).scatter(1, columns["classes"].long(), columns["top"].float())


Format = Dense | TopK


def row_bytes(layout: Layout) -> int:
    """Add up the bytes of a row."""
    return sum(width * dtype.itemsize for width, dtype in layout.values())


DENSE = Dense()
"""What answers are unless something else is asked for: all logits, in half precision."""

_REST = "float32"


def _index_type(classes: int) -> str:
    return "int16" if classes <= 2**15 else "int32"


def format_of(dtype: str, topk: int | None = None) -> Format:
    """Find the format for a precision, of all logits or of the `topk` largest; a ``ValueError`` for any other."""
    if dtype not in STORE_DTYPES or not (topk is None or type(topk) is int):
        raise ValueError("format")
    return Dense(dtype) if topk is None else TopK(dtype, topk)


def require_finite(columns: Columns) -> None:
    """Make sure that encoded answers are finite in their format; a `KdcacheError` says in which they are not.

    On a GPU this makes the host wait for it.
    """
    for column in columns.values():
        if not column.isfinite().all():
            precision = str(column.dtype).removeprefix("torch.")
            raise KdcacheError(f"the teacher gave an answer that is not finite in {precision}")

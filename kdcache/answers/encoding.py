"""How logits are stored: all of them, or the largest ones and the total weight of the others.

Logits pass through the encoding before anyone uses them, even if they were computed just now. So logits that were read
from a store and logits that were computed are the same bits.
"""

from __future__ import annotations  # so that sizes can be computed without torch

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcache.choices import STORE_DTYPES
from kdcache.errors import KdcacheError, UsageError, problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "DEFAULT_ENCODING",
    "Dense",
    "EncodedLogits",
    "Layout",
    "LogitEncoding",
    "TopK",
    "make_encoding",
    "require_finite",
    "row_bytes",
]

EncodedLogits = dict[str, "Tensor"]
"""Encoded logits: tensors by name, all with the same number of rows."""

Layout = dict[str, tuple[int, np.dtype]]
"""Width and dtype of each column."""

REST_TEMPERATURE = 4.0
"""Temperature at which `TopK` preserves the probability of the classes that it drops: the paper's tau."""

REST_DTYPE = "float32"


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
        """Name of the encoding, part of a store's fingerprint."""
        return self.dtype

    def layout(self, classes: int) -> Layout:
        """Describe the columns that hold the logits of a number of classes."""
        return {"logits": (classes, np.dtype(self.dtype))}

    def encode(self, logits: Tensor) -> EncodedLogits:
        """Encode logits (B, C); see `require_finite`."""
        return {"logits": logits.to(_torch_dtype(self.dtype))}

    def decode(self, columns: EncodedLogits, classes: int) -> Tensor:
        """Decode to logits, float32 (B, C)."""
        return columns["logits"].float()


@dataclass(frozen=True)
class TopK:
    """The K largest logits with their classes, and one value for the C - K others.

    The others are decoded to equal logits that have together the probability that they had at `REST_TEMPERATURE`. At
    other temperatures this is an approximation.

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
        """Name of the encoding, part of a store's fingerprint."""
        return f"{self.dtype}-top{self.topk}"

    def layout(self, classes: int) -> Layout:
        """Describe the columns, see `Dense.layout`.

        Raises
        ------
        UsageError
            If there are not more than K classes.
        """
        if self.topk >= classes:
            raise UsageError(problem("--topk", expected=f"fewer than the {classes} classes", got=self.topk))
        layout = {
            "top": (self.topk, self.dtype),
            "classes": (self.topk, _index_dtype(classes)),
            "rest": (1, REST_DTYPE),
        }
        return {name: (width, np.dtype(dtype)) for name, (width, dtype) in layout.items()}

    def encode(self, logits: Tensor) -> EncodedLogits:
        """Encode logits (B, C); ``rest`` is the log-sum-exp of the dropped logits at `REST_TEMPERATURE`."""
        top, classes = logits.float().topk(self.topk, dim=1)
        others = (logits.float() / REST_TEMPERATURE).scatter(1, classes, -math.inf)
        return {
            "top": top.to(_torch_dtype(self.dtype)),
            "classes": classes.to(_torch_dtype(_index_dtype(logits.shape[1]))),
            "rest": others.logsumexp(1, keepdim=True),
        }

    def decode(self, columns: EncodedLogits, classes: int) -> Tensor:
        """Decode to logits, float32 (B, C)."""
        each = REST_TEMPERATURE * (columns["rest"] - math.log(classes - self.topk))
        return each.expand(-1, classes).scatter(1, columns["classes"].long(), columns["top"].float())


LogitEncoding = Dense | TopK

DEFAULT_ENCODING = Dense()
"""All logits in half precision."""


def make_encoding(dtype: str, topk: int | None = None) -> LogitEncoding:
    """Make the encoding for a dtype, of all logits or of the `topk` largest; a ``ValueError`` for anything else."""
    if dtype not in STORE_DTYPES or not (topk is None or type(topk) is int):
        raise ValueError("encoding")
    return Dense(dtype) if topk is None else TopK(dtype, topk)


def row_bytes(layout: Layout) -> int:
    """Size of one row, in bytes."""
    return sum(width * dtype.itemsize for width, dtype in layout.values())


def require_finite(columns: EncodedLogits) -> None:
    """Raise a `KdcacheError` if encoded logits are not finite. On a GPU, the host waits for the device."""
    for column in columns.values():
        if not column.isfinite().all():
            dtype = str(column.dtype).removeprefix("torch.")
            raise KdcacheError(
                problem(
                    "logits of the teacher",
                    expected=f"values that are finite in {dtype}",
                    got="infinity or NaN",
                    remedy="Try --store-dtype float32." if dtype == "float16" else None,
                )
            )


def _index_dtype(classes: int) -> str:
    return "int16" if classes <= 2**15 else "int32"


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype

"""How answers of a teacher are stored: its logits, the largest ones of them, or the vectors from which they follow.

Answers pass through the encoding before anyone uses them, even if they were computed just now. So answers that were
read from a store and answers that were computed are the same bits.
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
    "AnswerEncoding",
    "Dense",
    "EncodedAnswers",
    "Layout",
    "TopK",
    "Vectors",
    "make_encoding",
    "require_finite",
    "row_bytes",
]

EncodedAnswers = dict[str, "Tensor"]
"""Encoded answers: tensors by name, all with the same number of rows."""

Layout = dict[str, tuple[int, np.dtype]]
"""Width and dtype of each column."""

REST_TEMPERATURE = 4.0
"""Temperature at which `TopK` preserves the probability of the classes that it drops: the paper's tau."""

REST_DTYPE = "float32"

VECTORS = "vectors"
"""Column of the vectors."""


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

    def encode(self, logits: Tensor) -> EncodedAnswers:
        """Encode logits (B, C); see `require_finite`."""
        return {"logits": logits.to(_torch_dtype(self.dtype))}

    def decode(self, columns: EncodedAnswers, classes: int) -> Tensor:
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

    def encode(self, logits: Tensor) -> EncodedAnswers:
        """Encode logits (B, C); ``rest`` is the log-sum-exp of the dropped logits at `REST_TEMPERATURE`."""
        top, classes = logits.float().topk(self.topk, dim=1)
        others = (logits.float() / REST_TEMPERATURE).scatter(1, classes, -math.inf)
        return {
            "top": top.to(_torch_dtype(self.dtype)),
            "classes": classes.to(_torch_dtype(_index_dtype(logits.shape[1]))),
            "rest": others.logsumexp(1, keepdim=True),
        }

    def decode(self, columns: EncodedAnswers, classes: int) -> Tensor:
        """Decode to logits, float32 (B, C)."""
        each = REST_TEMPERATURE * (columns["rest"] - math.log(classes - self.topk))
        return each.expand(-1, classes).scatter(1, columns["classes"].long(), columns["top"].float())


@dataclass(frozen=True)
class Vectors:
    """The vectors V that the teacher's last layer reads, from which its logits follow: z = W V + b.

    Parameters
    ----------
    dtype : str
        ``float16`` or ``float32``.
    width : int
        D.

    Notes
    -----
    Rounding V to float16 changes logit c by at most ``sum_d |W_cd| (2**-11 |V_d| + 2**-25)``. The product itself is
    exact but for the last rounding to float32.
    """

    dtype: str
    width: int

    @property
    def name(self) -> str:
        """Name of the encoding, part of a store's fingerprint. The width follows from the teacher."""
        return f"vectors-{self.dtype}"

    def layout(self, classes: int) -> Layout:
        """Describe the columns, see `Dense.layout`; the number of classes does not matter."""
        return {VECTORS: (self.width, np.dtype(self.dtype))}

    def encode(self, vectors: Tensor) -> EncodedAnswers:
        """Encode vectors (B, D)."""
        return {VECTORS: vectors.to(_torch_dtype(self.dtype))}

    def decode(self, columns: EncodedAnswers, classes: int) -> Tensor:
        """Decode to vectors, float32 (B, D)."""
        return columns[VECTORS].float()


AnswerEncoding = Dense | TopK | Vectors

DEFAULT_ENCODING = Dense()
"""All logits in half precision."""


def make_encoding(dtype: str, topk: int | None = None, width: int | None = None) -> AnswerEncoding:
    """Make the encoding for a dtype: of all logits, of the `topk` largest, or of vectors with a width.

    Raises
    ------
    ValueError
        For anything else.
    """
    if dtype not in STORE_DTYPES or any(number is not None and type(number) is not int for number in (topk, width)):
        raise ValueError("encoding")
    if width is None:
        return Dense(dtype) if topk is None else TopK(dtype, topk)
    if topk is not None or width < 1:
        raise ValueError("encoding")
    return Vectors(dtype, width)


def row_bytes(layout: Layout) -> int:
    """Size of one row, in bytes."""
    return sum(width * dtype.itemsize for width, dtype in layout.values())


def require_finite(columns: EncodedAnswers) -> None:
    """Raise a `KdcacheError` if encoded answers are not finite. On a GPU, the host waits for the device."""
    for name, column in columns.items():
        if not column.isfinite().all():
            dtype = str(column.dtype).removeprefix("torch.")
            raise KdcacheError(
                problem(
                    f"{'vectors' if name == VECTORS else 'logits'} of the teacher",
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

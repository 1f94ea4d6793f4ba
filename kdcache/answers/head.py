"""The last layer of a teacher, by which logits follow from vectors, and its place in a store of vectors."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.answers.encoding import EncodedAnswers
from kdcache.answers.store import BIAS, HEAD, WEIGHT, AnswerStore
from kdcache.answers.table import fill_missing
from kdcache.errors import KdcacheError, problem

__all__ = ["LinearHead", "padded_blocks", "read_head", "write_head"]


class LinearHead:
    """The last layer of a teacher: logits z = W V + b of its vectors V.

    Products are computed in float64, where the device has it, and in the same number of rows, so that a vector has the
    same logits in whichever batch and place. In float32 the last bits depend on the place in the batch for some widths.

    Parameters
    ----------
    layer : Linear
    rows : int
        Rows of every product; the last one is padded.
    """

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        dtype = torch.float32 if layer.weight.device.type == "mps" else torch.float64
        # Copies, since the caller may train the same module.
        self.weight, self.bias = (tensor.detach().to(dtype, copy=True) for tensor in (layer.weight, bias))
        self.rows = rows

    def __call__(self, vectors: Tensor) -> Tensor:
        """Compute logits, float32 (B, C), of vectors (B, D)."""
        blocks = padded_blocks(vectors.to(self.weight.dtype), self.rows)
        parts = [functional.linear(padded, self.weight, self.bias)[:rows] for rows, padded in blocks]
        return torch.cat(parts).float()


def write_head(store: AnswerStore, head: LinearHead) -> None:
    """Store the last layer beside the vectors, unless it is there."""

    def rows(classes: range) -> EncodedAnswers:
        chosen = slice(classes.start, classes.stop)
        return {WEIGHT: head.weight[chosen].cpu().float(), BIAS: head.bias[chosen, None].cpu().float()}

    assert store.head is not None
    list(fill_missing([(store.head, rows)]))


def read_head(store: AnswerStore) -> nn.Linear:
    """Read the last layer from a store of vectors.

    Raises
    ------
    KdcacheError
        If it is missing or damaged.
    """
    assert store.head is not None
    chunks = [columns for chunk in range(len(store.head.chunks)) if (columns := store.head.read(chunk)) is not None]
    if len(chunks) < len(store.head.chunks):
        what = f"table {HEAD} of the store {store.location.where}"
        remedy = "'kdcache cache fill' with the same options writes it again."
        raise KdcacheError(
            problem(what, expected="the last layer of the teacher", got="a part or nothing", remedy=remedy)
        )
    weight, bias = (torch.cat([columns[name] for columns in chunks]) for name in (WEIGHT, BIAS))
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.weight.data, layer.bias.data = weight, bias[:, 0]
    return layer


def padded_blocks(tensor: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Split a tensor into blocks of so many rows; the last one is padded with its first row."""
    for rows in tensor.split(size):
        missing = size - len(rows)
        yield len(rows), torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows

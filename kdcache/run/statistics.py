"""Per-sample and per-step statistics of a run: collected on the device, stored epoch by epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec

from kdcache import distributed
from kdcache.answers.location import StoreLocation
from kdcache.errors import KdcacheError, first_line, problem
from kdcache.files import write_folder_atomically

__all__ = ["EpochStatistics", "StatisticsReader", "StatisticsShape", "StatisticsStore", "StoredEpoch"]

SCHEMA = "kdcache-statistics-3"

READ_ERRORS = (KeyError, TypeError, ValueError, RuntimeError, OSError, IndexError)
"""What zarr and its codecs raise for metadata and chunks that are damaged or missing."""


class StatisticsShape(NamedTuple):
    """Sizes of an epoch: N samples with M mixed views each, T steps, and the names of L losses."""

    samples: int
    slots: int
    steps: int
    losses: tuple[str, ...]


@dataclass
class EpochStatistics:
    """Statistics of an epoch, filled in step by step on the device without synchronizing with it.

    Attributes
    ----------
    d_x : Tensor of float32, shape (N,)
        d (Equation 2) of each sample's x, measured in the training step; NaN without a teacher.
    d_mixed : Tensor of float32, shape (M, N)
        d of each mixed view; NaN if the criterion did not need it and the view was not picked.
    picked : Tensor of bool, shape (M, N)
        Which mixed views were trained on.
    kl_ratio : Tensor of float32, shape (T,)
        r of each step: mean d of the picks over mean d of all candidates (Equation 3). NaN without picking, or if d of
        some candidate is unknown.
    disagreements : Tensor of float32, shape (T,)
        Mixed views of the step whose label the teacher disagrees with; NaN without a teacher or mixed views.
    losses : Tensor of float32, shape (T, L)
        Each loss of the sum, times its weight.
    """

    d_x: Tensor
    d_mixed: Tensor
    picked: Tensor
    kl_ratio: Tensor
    disagreements: Tensor
    losses: Tensor

    @classmethod
    def empty(cls, shape: StatisticsShape, device: torch.device) -> "EpochStatistics":
        """Create the statistics of an epoch before its first step: NaN, and nothing picked."""
        samples, slots, steps, losses = shape

        def unknown(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, device=device)

        return cls(
            d_x=unknown(samples),
            d_mixed=unknown(slots, samples),
            picked=torch.zeros(slots, samples, dtype=torch.bool, device=device),
            kl_ratio=unknown(steps),
            disagreements=unknown(steps),
            losses=unknown(steps, len(losses)),
        )

    def merged(self) -> "EpochStatistics":
        """Combine the statistics of all processes."""
        return EpochStatistics(
            d_x=_known_anywhere(self.d_x),
            d_mixed=_known_anywhere(self.d_mixed),
            picked=distributed.all_reduce_max(self.picked.byte()).bool(),
            kl_ratio=self.kl_ratio,  # each process has it over all candidates
            disagreements=distributed.all_reduce_sum(self.disagreements),
            losses=distributed.all_reduce_sum(self.losses) / distributed.world_size(),
        )

    def split(self) -> "EpochStatistics":
        """Invert `merged`: distribute combined statistics so that the processes can continue and merge them again."""
        if distributed.is_main():
            return replace(self, losses=self.losses * distributed.world_size())
        return replace(self, disagreements=_zero_if_known(self.disagreements), losses=_zero_if_known(self.losses))

    def mean_kl_ratio(self) -> float | None:
        """Mean of r over the steps; ``None`` if no step has one."""
        return _number(self.kl_ratio.nanmean())

    def label_disagreement(self) -> float | None:
        """Share of the mixed views whose label the teacher disagrees with; ``None`` without teacher or mixed views."""
        return _number(self.disagreements.sum() / self.d_mixed.numel()) if self.d_mixed.numel() else None


def _known_anywhere(d: Tensor) -> Tensor:
    found = distributed.all_reduce_max(torch.where(d.isnan(), -torch.inf, d))
    return torch.where(found.isinf(), torch.nan, found)


def _zero_if_known(sums: Tensor) -> Tensor:
    return torch.where(sums.isnan(), sums, 0)


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()


class StatisticsStore:
    """Writes the statistics of a run to a zarr store.

    The arrays are ``d_x`` (E, N), ``d_mixed`` (E, M, N), ``picked`` (E, M, N), ``kl_ratio`` (E, T), ``disagreements``
    (E, T) and ``losses`` (E, T, L); empty ones are left out. d is stored in float16, whose relative error of at most
    2^-11 is far below its spread. The attribute ``losses`` names the losses; ``epochs_written`` counts the epochs, and
    is updated after the arrays.

    Parameters
    ----------
    path : Path
        Created if missing, filled with NaN. A resumed run continues its store; with more epochs, the arrays grow.
    epochs : int
        E.
    shape : StatisticsShape
    """

    def __init__(self, path: Path, epochs: int, shape: StatisticsShape) -> None:
        samples, slots, steps, losses = shape
        arrays: dict[str, tuple[tuple[int, ...], str, Any]] = {
            "d_x": ((epochs, samples), "float16", np.nan),
            "d_mixed": ((epochs, slots, samples), "float16", np.nan),
            "picked": ((epochs, slots, samples), "bool", False),
            "kl_ratio": ((epochs, steps), "float32", np.nan),
            "disagreements": ((epochs, steps), "float32", np.nan),
            "losses": ((epochs, steps, len(losses)), "float32", np.nan),
        }

        def create(folder: Path) -> None:
            attributes = {"schema": SCHEMA, "epochs_written": 0, "losses": list(losses)}
            group = zarr.create_group(folder, attributes=attributes)
            for name, (shape, dtype, fill_value) in arrays.items():
                if 0 not in shape:
                    group.create_array(
                        name,
                        shape=shape,
                        chunks=(1, *shape[1:]),  # each epoch is a chunk of its own, written once
                        dtype=dtype,
                        compressors=(BloscCodec(cname="zstd"), Crc32cCodec()),
                        fill_value=fill_value,
                    )

        if not path.exists():
            write_folder_atomically(path, create)
        self._group = zarr.open_group(StoreLocation(path).store, mode="r+")
        if (schema := self._group.attrs.get("schema")) != SCHEMA:
            what = f"the statistics {path} were written by another version of kdcache"
            raise KdcacheError(
                problem(what, expected=SCHEMA, got=schema, remedy="Start the run again with --overwrite.")
            )
        for name, array in self._group.arrays():
            array.resize(arrays[name][0])

    def write(self, epoch: int, statistics: EpochStatistics) -> None:
        """Write the statistics of an epoch, counted from 0, and wait until they are on the disk."""
        for name, array in self._group.arrays():
            array[epoch] = getattr(statistics, name).cpu().numpy()
        self._group.attrs["epochs_written"] = epoch + 1


@dataclass(frozen=True)
class StoredEpoch:
    """The statistics of one epoch as stored.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    d_x : ndarray of float32, shape (N,)
    d_mixed : ndarray of float32, shape (M, N)
    picked : ndarray of bool, shape (M, N)
    kl_ratio, disagreements : ndarray of float32, shape (T,)
        See `EpochStatistics`.
    """

    epoch: int
    d_x: np.ndarray
    d_mixed: np.ndarray
    picked: np.ndarray
    kl_ratio: np.ndarray
    disagreements: np.ndarray


@dataclass(frozen=True)
class StatisticsReader:
    """Reads the statistics of a run, finished or not, one epoch at a time to save memory.

    Parameters
    ----------
    path : Path
        Of a store that `StatisticsStore` wrote.
    epochs : int
        Epochs written.
    samples : int
        N.
    """

    path: Path
    epochs: int
    samples: int

    @classmethod
    def open(cls, path: Path) -> "StatisticsReader":
        """Open a store.

        Raises
        ------
        KdcacheError
            If it is missing or damaged.
        """
        try:
            group = zarr.open_group(path, mode="r")
            schema, written = group.attrs.get("schema"), group.attrs.get("epochs_written")
            if schema != SCHEMA or not isinstance(written, int):
                what = f"the statistics {path} were written by another version of kdcache"
                raise KdcacheError(problem(what, expected=SCHEMA, got=schema, remedy="Train the run again."))
            return cls(path, written, cls._array(group, "d_x").shape[1])
        except FileNotFoundError:
            remedy = "Train the run again to record them."
            raise KdcacheError(
                problem(f"statistics {path}", expected="a folder", got="nothing", remedy=remedy)
            ) from None
        except READ_ERRORS as error:
            what, remedy = f"could not read the statistics {path}", "Train the run again to record them anew."
            raise KdcacheError(problem(what, got=first_line(error), remedy=remedy)) from None

    def epoch(self, epoch: int) -> StoredEpoch:
        """Read an epoch, counted from 0.

        Raises
        ------
        KdcacheError
            If it is damaged.
        """
        try:
            group = zarr.open_group(self.path, mode="r")
            found = {name: np.asarray(self._array(group, name)[epoch]) for name in ("d_x", "kl_ratio", "disagreements")}
            mixed = "d_mixed" in group  # a run without mixed views has no such arrays
            shape = (0, self.samples)
            d_mixed = np.asarray(self._array(group, "d_mixed")[epoch]) if mixed else np.empty(shape, np.float32)
            picked = np.asarray(self._array(group, "picked")[epoch]) if mixed else np.empty(shape, bool)
        except READ_ERRORS as error:
            what = f"could not read epoch {epoch + 1} of the statistics {self.path}"
            remedy = "Train the run again to record them anew."
            raise KdcacheError(problem(what, got=first_line(error), remedy=remedy)) from None
        floats = {name: values.astype(np.float32) for name, values in found.items()}
        return StoredEpoch(epoch, d_mixed=d_mixed.astype(np.float32), picked=picked.astype(bool), **floats)

    def __iter__(self) -> Iterator[StoredEpoch]:
        """Read all epochs written, one after the other."""
        return map(self.epoch, range(self.epochs))

    @staticmethod
    def _array(group: zarr.Group, name: str) -> zarr.Array:
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise TypeError(f"{name} is not an array")
        return array

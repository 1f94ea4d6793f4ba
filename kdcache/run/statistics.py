"""The store of per-sample statistics of a run: an epoch at a time, in arrays of the full shape."""

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

__all__ = ["EpochStatistics", "Shape", "StatisticsReader", "StatisticsStore", "StoredEpoch"]

SCHEMA = "kdcache-statistics-2"


class Shape(NamedTuple):
    """How much there is to know of an epoch: N samples with M mixed views each, T steps, and the names of L losses."""

    samples: int
    slots: int
    steps: int
    losses: tuple[str, ...]


# What zarr and its codecs raise at metadata and chunks that are damaged or gone.
_DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, OSError, IndexError)


@dataclass
class EpochStatistics:
    """What an epoch adds up, on the device, without waiting for it.

    Attributes
    ----------
    d_x : Tensor of float32, shape (N,)
        d of Equation 2 of each sample's x, when the student was trained on it; NaN without a teacher.
    d_mixed : Tensor of float32, shape (M, N)
        d of each mixed view; NaN where the criterion did not need it and the view was not picked.
    picked : Tensor of bool, shape (M, N)
        Which mixed views were trained on.
    kl_ratio : Tensor of float32, shape (T,)
        r of Equation 3 of each step, over all candidates; NaN without picking or without d of all candidates.
    disputed : Tensor of float32, shape (T,)
        Mixed views of the step whose label the teacher disputes; NaN without teacher or mix.
    losses : Tensor of float32, shape (T, L)
        Each loss of the sum, with its weight.
    """

    d_x: Tensor
    d_mixed: Tensor
    picked: Tensor
    kl_ratio: Tensor
    disputed: Tensor
    losses: Tensor

    @classmethod
    def empty(cls, shape: Shape, device: torch.device) -> "EpochStatistics":
        """Make the statistics of an epoch of which nothing is known yet."""
        samples, slots, steps, losses = shape

        def unknown(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, device=device)

        return cls(
            d_x=unknown(samples),
            d_mixed=unknown(slots, samples),
            picked=torch.zeros(slots, samples, dtype=torch.bool, device=device),
            kl_ratio=unknown(steps),
            disputed=unknown(steps),
            losses=unknown(steps, len(losses)),
        )

    def merged(self) -> "EpochStatistics":
        """Put together what each process that trains the network knows."""
        return EpochStatistics(
            d_x=_known_anywhere(self.d_x),
            d_mixed=_known_anywhere(self.d_mixed),
            picked=distributed.all_reduce_max(self.picked.byte()).bool(),
            kl_ratio=self.kl_ratio,  # over all candidates, so the same everywhere
            disputed=distributed.all_reduce_sum(self.disputed),
            losses=distributed.all_reduce_sum(self.losses) / distributed.world_size(),
        )

    def split(self) -> "EpochStatistics":
        """Undo `merged`, so that what was put together can be added to, and be put together again."""
        if distributed.is_main():
            return replace(self, losses=self.losses * distributed.world_size())
        nothing = (torch.where(column.isnan(), column, 0) for column in (self.disputed, self.losses))
        return replace(self, **dict(zip(("disputed", "losses"), nothing, strict=True)))

    def mean_kl_ratio(self) -> float | None:
        """Mean of r over the steps; ``None`` where no step has one."""
        return _number(self.kl_ratio.nanmean())

    def label_disagreement(self) -> float | None:
        """Share of the mixed views whose label the teacher disputes; ``None`` without teacher or mix."""
        return _number(self.disputed.sum() / self.d_mixed.numel()) if self.d_mixed.numel() else None


def _known_anywhere(d: Tensor) -> Tensor:
    found = distributed.all_reduce_max(torch.where(d.isnan(), -torch.inf, d))
    return torch.where(found.isinf(), torch.nan, found)


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()


class StatisticsStore:
    """A zarr store of the statistics of every epoch of a run.

    ``d_x`` (E, N), ``d_mixed`` (E, M, N) and ``picked`` (E, M, N) by sample index, ``kl_ratio`` and ``disputed``
    (E, T), and ``losses`` (E, T, L), by step; the attribute ``losses`` names the L. d is stored in float16, whose
    relative error of at most 2^-11 is far below its spread. The attribute ``epochs_written`` says how many epochs are
    there; it is written after them.

    Parameters
    ----------
    path : Path
        Store to make, full of unknowns, if it is not there: a run that goes on finds its own, and more epochs than it
        had make it longer.
    epochs : int
        E.
    shape : Shape
    """

    def __init__(self, path: Path, epochs: int, shape: Shape) -> None:
        samples, slots, steps, losses = shape
        arrays: dict[str, tuple[tuple[int, ...], str, Any]] = {
            "d_x": ((epochs, samples), "float16", np.nan),
            "d_mixed": ((epochs, slots, samples), "float16", np.nan),
            "picked": ((epochs, slots, samples), "bool", False),
            "kl_ratio": ((epochs, steps), "float32", np.nan),
            "disputed": ((epochs, steps), "float32", np.nan),
            "losses": ((epochs, steps, len(losses)), "float32", np.nan),
        }

        def write(folder: Path) -> None:
            group = zarr.create_group(
                folder, attributes={"schema": SCHEMA, "epochs_written": 0, "losses": list(losses)}
            )
            for name, (shape, dtype, unknown) in arrays.items():
                if 0 not in shape:
                    group.create_array(
                        name,
                        shape=shape,
                        chunks=(1, *shape[1:]),  # an epoch is one chunk, written once
                        dtype=dtype,
                        compressors=(BloscCodec(cname="zstd"), Crc32cCodec()),
                        fill_value=unknown,
                    )

        if not path.exists():
            write_folder_atomically(path, write)
        self._group = zarr.open_group(StoreLocation(path).store, mode="r+")
        for name, array in self._group.arrays():
            array.resize(arrays[name][0])

    def write(self, epoch: int, statistics: EpochStatistics) -> None:
        """Write the statistics of an epoch, counted from 0, and wait for the disk."""
        for name, array in self._group.arrays():
            array[epoch] = getattr(statistics, name).cpu().numpy()
        self._group.attrs["epochs_written"] = epoch + 1


@dataclass(frozen=True)
class StoredEpoch:
    """The statistics of one epoch as they were written, NaN where a figure is not known.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    d_x : ndarray of float32, shape (N,)
    d_mixed : ndarray of float32, shape (M, N)
    picked : ndarray of bool, shape (M, N)
    kl_ratio, disputed : ndarray of float32, shape (T,)
    """

    epoch: int
    d_x: np.ndarray
    d_mixed: np.ndarray
    picked: np.ndarray
    kl_ratio: np.ndarray
    disputed: np.ndarray


@dataclass(frozen=True)
class StatisticsReader:
    """The statistics of a run, finished or not, read an epoch at a time, so that no more is ever in memory.

    Parameters
    ----------
    path : Path
        A store that `StatisticsStore` wrote.
    epochs : int
        How many epochs were written.
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
            Where there is none, or it cannot be read.
        """
        try:
            group = zarr.open_group(path, mode="r")
            schema, written = group.attrs.get("schema"), group.attrs.get("epochs_written")
            if schema != SCHEMA or not isinstance(written, int):
                raise KdcacheError(problem(f"{path}: schema", expected=SCHEMA, got=schema))
            return cls(path, written, cls._array(group, "d_x").shape[1])
        except FileNotFoundError:
            raise KdcacheError(problem(f"statistics {path}", expected="a store that exists", got="none")) from None
        except _DAMAGE as error:
            raise KdcacheError(problem(f"statistics {path} cannot be read", got=first_line(error))) from None

    def epoch(self, epoch: int) -> StoredEpoch:
        """Read an epoch, counted from 0.

        Raises
        ------
        KdcacheError
            Where it is damaged.
        """
        try:
            group = zarr.open_group(self.path, mode="r")
            found = {name: np.asarray(self._array(group, name)[epoch]) for name in ("d_x", "kl_ratio", "disputed")}
            there = "d_mixed" in group  # a run without mixed views has no such arrays
            shape = (0, self.samples)
            d_mixed = np.asarray(self._array(group, "d_mixed")[epoch]) if there else np.empty(shape, np.float32)
            picked = np.asarray(self._array(group, "picked")[epoch]) if there else np.empty(shape, bool)
        except _DAMAGE as error:
            where = f"statistics {self.path}, epoch {epoch + 1}"
            raise KdcacheError(problem(f"{where} cannot be read", got=first_line(error))) from None
        floats = {name: values.astype(np.float32) for name, values in found.items()}
        return StoredEpoch(epoch, d_mixed=d_mixed.astype(np.float32), picked=picked.astype(bool), **floats)

    def __iter__(self) -> Iterator[StoredEpoch]:
        """Read all epochs that were written, one after the other."""
        return map(self.epoch, range(self.epochs))

    @staticmethod
    def _array(group: zarr.Group, name: str) -> zarr.Array:
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise TypeError(f"{name} is no array")
        return array

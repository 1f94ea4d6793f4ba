"""The store of per-sample statistics of a run: an epoch at a time, in arrays of the full shape."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec

from kdcache.files import write_whole_folder

__all__ = ["EpochStatistics", "StatisticsStore"]

SCHEMA = "kdcache-statistics-1"


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
    """

    d_x: Tensor
    d_mixed: Tensor
    picked: Tensor
    kl_ratio: Tensor
    disputed: Tensor

    @classmethod
    def empty(cls, samples: int, slots: int, steps: int, device: torch.device) -> "EpochStatistics":
        """Make the statistics of an epoch of which nothing is known yet."""

        def unknown(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, device=device)

        return cls(
            d_x=unknown(samples),
            d_mixed=unknown(slots, samples),
            picked=torch.zeros(slots, samples, dtype=torch.bool, device=device),
            kl_ratio=unknown(steps),
            disputed=unknown(steps),
        )

    def mean_kl_ratio(self) -> float | None:
        """Mean of r over the steps; ``None`` where no step has one."""
        return _number(self.kl_ratio.nanmean())

    def label_disagreement(self) -> float | None:
        """Share of the mixed views whose label the teacher disputes; ``None`` without teacher or mix."""
        return _number(self.disputed.sum() / self.d_mixed.numel()) if self.d_mixed.numel() else None


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()


class StatisticsStore:
    """A zarr store of the statistics of every epoch of a run.

    ``d_x`` (E, N), ``d_mixed`` (E, M, N) and ``picked`` (E, M, N) by sample index, ``kl_ratio`` and ``disputed``
    (E, T) by step. d is stored in float16, whose relative error of at most 2^-11 is far below its spread. The
    attribute ``epochs_written`` says how many epochs are there; it is written after them.

    Parameters
    ----------
    path : Path
        Store to make, full of unknowns.
    epochs, samples, slots, steps : int
        E, N, M and T.
    """

    def __init__(self, path: Path, *, epochs: int, samples: int, slots: int, steps: int) -> None:
        arrays: dict[str, tuple[tuple[int, ...], str, Any]] = {
            "d_x": ((epochs, samples), "float16", np.nan),
            "d_mixed": ((epochs, slots, samples), "float16", np.nan),
            "picked": ((epochs, slots, samples), "bool", False),
            "kl_ratio": ((epochs, steps), "float32", np.nan),
            "disputed": ((epochs, steps), "float32", np.nan),
        }

        def write(folder: Path) -> None:
            group = zarr.create_group(folder, attributes={"schema": SCHEMA, "epochs_written": 0})
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

        write_whole_folder(path, write)
        self._group = zarr.open_group(path, mode="r+")

    def write(self, epoch: int, statistics: EpochStatistics) -> None:
        """Write the statistics of an epoch, counted from 0."""
        for name, array in self._group.arrays():
            array[epoch] = getattr(statistics, name).cpu().numpy()
        self._group.attrs["epochs_written"] = epoch + 1

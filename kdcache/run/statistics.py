"""Per-sample and per-step statistics of an epoch, collected on the device. `statistics_store` writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache import distributed
from kdcache.errors import KdcacheError, problem

__all__ = ["EpochStatistics", "StatisticsShape"]


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
    labelled : Tensor of float32, shape (T,)
        Mixed views of the step that have a label; NaN where `disagreements` is. Kept in checkpoints alone.
    losses : Tensor of float32, shape (T, L)
        Each loss of the sum, times its weight.
    """

    d_x: Tensor
    d_mixed: Tensor
    picked: Tensor
    kl_ratio: Tensor
    disagreements: Tensor
    labelled: Tensor
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
            labelled=unknown(steps),
            losses=unknown(steps, len(losses)),
        )

    def like(self, columns: Mapping[str, Tensor]) -> "EpochStatistics":
        """Take columns from a checkpoint, on this device.

        Raises
        ------
        KdcacheError
            If they are not of the same names, types and shapes.
        """
        given, own = (
            {name: (column.dtype, column.shape) for name, column in one.items()} for one in (columns, vars(self))
        )
        if given != own:
            raise KdcacheError(problem("statistics in the checkpoint", expected=_short(own), got=_short(given)))
        return EpochStatistics(**{name: column.to(self.d_x.device) for name, column in columns.items()})

    def merged(self) -> "EpochStatistics":
        """Combine the statistics of all processes."""
        return EpochStatistics(
            d_x=_known_anywhere(self.d_x),
            d_mixed=_known_anywhere(self.d_mixed),
            picked=distributed.all_reduce_max(self.picked.byte()).bool(),
            kl_ratio=self.kl_ratio,  # each process has it over all candidates
            disagreements=distributed.all_reduce_sum(self.disagreements),
            labelled=distributed.all_reduce_sum(self.labelled),
            losses=distributed.all_reduce_sum(self.losses) / distributed.world_size(),
        )

    def split(self) -> "EpochStatistics":
        """Invert `merged`: distribute combined statistics so that the processes can continue and merge them again."""
        if distributed.is_main():
            return replace(self, losses=self.losses * distributed.world_size())
        sums = {name: _zero_if_known(getattr(self, name)) for name in ("disagreements", "labelled", "losses")}
        return replace(self, **sums)

    def mean_kl_ratio(self) -> float | None:
        """Mean of r over the steps; ``None`` if no step has one."""
        return _number(self.kl_ratio.nanmean())

    def label_disagreement(self) -> float | None:
        """Share of the labels of mixed views that the teacher disagrees with; ``None`` if there are none."""
        return _number(self.disagreements.sum() / self.labelled.sum())


def _short(columns: Mapping[str, tuple[torch.dtype, torch.Size]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, (_, shape) in sorted(columns.items()))


def _known_anywhere(d: Tensor) -> Tensor:
    found = distributed.all_reduce_max(torch.where(d.isnan(), -torch.inf, d))
    return torch.where(found.isinf(), torch.nan, found)


def _zero_if_known(sums: Tensor) -> Tensor:
    return torch.where(sums.isnan(), sums, 0)


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()

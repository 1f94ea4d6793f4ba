"""The views of a step, made from the table of the epoch with a few batched tensor operations."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache import distributed
from kdcache.datasets import Split
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import UsageError, memory_explained, problem
from kdcache.views.geometry import crop_flip, flip_some, random_part, take
from kdcache.views.mixes import MIXES
from kdcache.views.plan import EpochTable, Plan, Slot, share, steps

__all__ = ["Batch", "ViewMaker"]


@dataclass(frozen=True)
class Batch:
    """The views of one step: x of B samples, then the M B mixed views, slot by slot.

    Row i of ``views`` is named (``epoch``, ``positions[i % B]``, ``i // B``), slot 0 being x.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    step : int
        StoreLocation in the epoch, counted from 0.
    positions : range
        StoreLocation of each sample in the order of the epoch, B of them.
    global_positions : range
        Those of all processes that train the network together; `positions` is this one's part.
    samples, labels : Tensor of int64, shape (B,)
    views : Tensor, shape ((1 + M) B, 3, H, W)
        Pixel values 0 to 255; uint8, or float32 with mixup.
    partner_labels : Tensor of int64, shape (M B,)
    lam : Tensor of float32, shape (M B,)
        Share of the label that stays with the sample; the partner has the rest.
    random_score : Tensor of float32, shape (M B,)
    keys : ndarray of int64, shape (B,)
        Number of each x among the standard views that there can be, see `Plan.standard_keys`.
    """

    epoch: int
    step: int
    positions: range
    global_positions: range
    samples: Tensor
    labels: Tensor
    views: Tensor
    partner_labels: Tensor
    lam: Tensor
    random_score: Tensor
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def slots(self) -> int:
        """Mixed views of each sample, M."""
        return len(self.views) // len(self) - 1

    def mixed_views(self) -> Tensor:
        """The mixed views alone, (M B, 3, H, W)."""
        return self.views[len(self) :]

    def mixed_labels(self) -> Tensor:
        """Class to which the mix gives the larger share of the label: argmax of the mixed label, (M B,) int64.

        A tie goes to the lower class.
        """
        own = self.labels.repeat(self.slots)
        lower = torch.minimum(own, self.partner_labels)
        by_share = torch.where(self.lam > 0.5, own, self.partner_labels)
        return torch.where(self.lam == 0.5, lower, by_share)


class _Request(NamedTuple):
    """Images that are needed: samples, and the words of their parts where x are parts of pictures."""

    samples: Tensor
    words: np.ndarray | None


def _read(split: Split, request: _Request) -> Tensor:
    if request.words is None:
        return split.take(request.samples)
    return split.resized_crops(request.samples, request.words, random_part)


class ViewMaker:
    """Makes the views of a plan: the batches of an epoch, or any rows of one slot.

    Parameters
    ----------
    split : Split
        The training images; a batch reads its rows and their partners, each once.
    plan : Plan
    batch_size : int
        The same views come out whatever it is.
    device : torch.device
        Where the views are made; images travel there as uint8.
    """

    def __init__(self, split: Split, plan: Plan, batch_size: int, device: torch.device) -> None:
        self.split, self.plan, self.device = split, plan, device
        self.steps = steps(plan.samples, batch_size)
        least = min(map(len, self.steps))
        if least < 2 * distributed.world_size() > 2:
            allowed = f"at most {least // 2}: a step of the epoch has {least} samples, and each needs 2"
            raise UsageError(problem("processes", expected=allowed, got=distributed.world_size()))
        # Every caller walks through the epochs in order, so the last table is the one that is asked for again.
        self.table = lru_cache(maxsize=1)(plan.epoch)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Make the batches of an epoch, both counted from 0; of each, the part of this process.

        Pictures are decoded ahead, by the workers of the split.
        """
        table, rank, number = self.table(epoch), distributed.rank(), distributed.world_size()
        parts = [share(whole, rank, number) for whole in self.steps[first_step:]]
        requests = (self._request(table, _rows(positions, table.slots)) for positions in parts)
        pin = self.device.type == "cuda"
        ahead = prefetch_map(partial(_read, self.split), requests, self.split.workers, pin)
        for step, (positions, images) in enumerate(zip(parts, ahead, strict=True), start=first_step):
            yield self._batch(epoch, step, positions, images)

    def views(self, epoch: int, slot: int, positions: range) -> Tensor:
        """Make the views of one slot, slot 0 being x, at some positions: (B, 3, H, W)."""
        table = self.table(epoch)
        slots = [table.slots[slot - 1]] if slot else []
        images = _read(self.split, self._request(table, _rows(positions, slots)))
        with _room_for(len(positions)):
            return self._slots(table, positions, slots, images)[-1]

    def _batch(self, epoch: int, step: int, positions: range, images: Tensor) -> Batch:
        table, own = self.table(epoch), np.arange(positions.start, positions.stop)
        with _room_for(len(own)):
            views = torch.cat(self._slots(table, positions, table.slots, images))  # all of them float32 if any is
        samples = torch.from_numpy(table.order[own])
        partners = [table.order[slot.partner[own]] for slot in table.slots]
        partner_samples = np.concatenate(partners) if partners else np.empty(0, np.int64)
        return Batch(
            epoch=epoch,
            step=step,
            positions=positions,
            global_positions=self.steps[step],
            samples=samples.to(self.device, non_blocking=True),
            labels=self.split.labels[samples].to(self.device, non_blocking=True),
            views=views,
            partner_labels=self.split.labels[torch.from_numpy(partner_samples)].to(self.device, non_blocking=True),
            lam=self._column([slot.lam[own] for slot in table.slots]),
            random_score=self._column([slot.random_score[own] for slot in table.slots]),
            keys=self.plan.standard_keys(table, own),
        )

    def _slots(self, table: EpochTable, positions: range, slots: Sequence[Slot], images: Tensor) -> list[Tensor]:
        """Make x and the views of some slots, each (B, 3, H, W), of the images of `_rows`."""
        own, rows = np.arange(positions.start, positions.stop), _rows(positions, slots)
        standard = self._standard_views(table, rows, images)
        # A batch of whole blocks is all that there is.
        x = standard if len(rows) == len(own) else take(standard, self._tensor(np.searchsorted(rows, own)))
        views = [x]
        for slot in slots:
            second = take(standard, self._tensor(np.searchsorted(rows, slot.partner[own])))
            views.append(MIXES[slot.kind].apply(x, second, self._tensor(slot.parameters[own])))
        return views

    def _standard_views(self, table: EpochTable, rows: np.ndarray, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        if not self.plan.crop_flip:
            return images
        flip = self._tensor(table.flip[rows])
        if self.plan.padding is None:
            return flip_some(images, flip)
        return crop_flip(images, self._tensor(table.crop[rows]), flip, self.plan.padding)

    def _request(self, table: EpochTable, rows: np.ndarray) -> _Request:
        return _Request(torch.from_numpy(table.order[rows]), table.crop[rows] if self.plan.of_pictures else None)

    def _tensor(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device, non_blocking=True)

    def _column(self, slots: list[np.ndarray]) -> Tensor:
        return self._tensor(np.concatenate(slots) if slots else np.empty(0, np.float32))


def _room_for(images: int) -> AbstractContextManager[None]:
    """Explain where the memory does not suffice for the views of so many images."""
    return memory_explained(f"the views of {images} images", "a smaller --batch-size or --image-size")


def _rows(positions: range, slots: Sequence[Slot]) -> np.ndarray:
    """Find the positions whose images make the views of some slots: these and their partners, each once, rising."""
    own = np.arange(positions.start, positions.stop)
    return np.unique(np.concatenate([own, *(slot.partner[own] for slot in slots)]))

"""The views of a step, made from the epoch's table with a few batched tensor operations."""

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
from kdcache.datasets.split import UNLABELLED
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import KdcacheError, UsageError, memory_explained, problem
from kdcache.extensions import explained
from kdcache.views.geometry import crop_flip, flip_some, random_resized_box, take
from kdcache.views.mixes import find_mix
from kdcache.views.plan import EpochTable, Slot, ViewPlan, rank_part, steps

__all__ = ["Batch", "ViewMaker", "apply_mix", "hard_labels"]


@dataclass(frozen=True)
class Batch:
    """The views of one step: x of B samples, then the M B mixed views, slot by slot.

    Row i of ``views`` has the address (``epoch``, ``positions[i % B]``, ``i // B``); slot 0 is x.

    Attributes
    ----------
    epoch : int
        Counted from 0.
    step : int
        Index in the epoch, counted from 0.
    positions : range
        Index of each sample in the epoch's order, B of them.
    global_positions : range
        Positions of all processes; ``positions`` is this one's part.
    samples, labels : Tensor of int64, shape (B,)
        The label of a sample without one is -1.
    views : Tensor, shape ((1 + M) B, 3, H, W)
        Pixel values 0 to 255; uint8, or float32 with mixup.
    partner_labels : Tensor of int64, shape (M B,)
    lam : Tensor of float32, shape (M B,)
        Share of the label that the sample keeps; the partner has the rest.
    random_score : Tensor of float32, shape (M B,)
    standard_keys : ndarray of int64, shape (B,)
        Index of each x among all possible ones; see `ViewPlan.standard_keys`.
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
    standard_keys: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def slots(self) -> int:
        """Mixed views per sample, M."""
        return len(self.views) // len(self) - 1

    def mixed_views(self) -> Tensor:
        """The mixed views alone, (M B, 3, H, W)."""
        return self.views[len(self) :]

    def mixed_labels(self) -> Tensor:
        """Argmax of each mixed label, (M B,) int64, see `hard_labels`."""
        return hard_labels(self.labels.repeat(self.slots), self.partner_labels, self.lam)


def hard_labels(labels: Tensor, partner_labels: Tensor, lam: Tensor) -> Tensor:
    """Argmax of each mixed label, int64 (R,). Ties go to the lower class; it is -1 where either label is unknown.

    Parameters
    ----------
    labels, partner_labels : Tensor of int64, shape (R,)
    lam : Tensor of float32, shape (R,)
        Share of the label that belongs to ``labels``.
    """
    by_share = torch.where(lam > 0.5, labels, partner_labels)
    lower = torch.minimum(labels, partner_labels)
    return torch.where((lam == 0.5) | (lower == UNLABELLED), lower, by_share)


class _Request(NamedTuple):
    """Images to read: the samples, and for random resized crops the word of each box."""

    samples: Tensor
    words: np.ndarray | None


def _read(split: Split, request: _Request) -> Tensor:
    if request.words is None:
        return split.take(request.samples)
    return split.resized_crops(request.samples, request.words, random_resized_box)


class ViewMaker:
    """Makes the views of a plan: the batches of an epoch, or any positions of one slot.

    Parameters
    ----------
    split : Split
        The training images; a batch reads its samples and their partners, each once.
    plan : ViewPlan
    batch_size : int
        The views do not depend on it.
    device : torch.device
        Where the views are made; images are copied there as uint8.
    """

    def __init__(self, split: Split, plan: ViewPlan, batch_size: int, device: torch.device) -> None:
        self.split, self.plan, self.device = split, plan, device
        self.steps = steps(plan.samples, batch_size)
        least = min(map(len, self.steps))
        if least < 2 * distributed.world_size() > 2:
            allowed = f"at most {least // 2}: a step of the epoch has {least} samples, and each needs 2"
            raise UsageError(problem("number of processes", expected=allowed, got=distributed.world_size()))
        # Callers go through the epochs in order, so only the latest table is needed again.
        self.table = lru_cache(maxsize=1)(plan.epoch)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Make this process's part of an epoch's batches, from a step on; both are counted from 0.

        Pictures are decoded ahead by the workers of the split.
        """
        table, rank, number = self.table(epoch), distributed.rank(), distributed.world_size()
        parts = [rank_part(whole, rank, number) for whole in self.steps[first_step:]]
        requests = (self._request(table, _rows(positions, table.slots)) for positions in parts)
        pin = self.device.type == "cuda"
        ahead = prefetch_map(partial(_read, self.split), requests, self.split.workers, pin)
        for step, (positions, images) in enumerate(zip(parts, ahead, strict=True), start=first_step):
            yield self._batch(epoch, step, positions, images)

    def views(self, epoch: int, slot: int, positions: range) -> Tensor:
        """Make the views of one slot at some positions: (B, 3, H, W). Slot 0 is x."""
        table = self.table(epoch)
        slots = [table.slots[slot - 1]] if slot else []
        images = _read(self.split, self._request(table, _rows(positions, slots)))
        with _explain_memory(len(positions)):
            return self._slots(table, positions, slots, images)[-1]

    def _batch(self, epoch: int, step: int, positions: range, images: Tensor) -> Batch:
        table, own = self.table(epoch), np.arange(positions.start, positions.stop)
        with _explain_memory(len(own)):
            views = torch.cat(self._slots(table, positions, table.slots, images))  # float32 if any of them is
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
            standard_keys=self.plan.standard_keys(table, own),
        )

    def _slots(self, table: EpochTable, positions: range, slots: Sequence[Slot], images: Tensor) -> list[Tensor]:
        """Make x and the views of some slots, each (B, 3, H, W), from the images of `_rows`."""
        own, rows = np.arange(positions.start, positions.stop), _rows(positions, slots)
        standard = self._standard_views(table, rows, images)
        # A batch of whole blocks has all its partners in itself.
        x = standard if len(rows) == len(own) else take(standard, self._tensor(np.searchsorted(rows, own)))
        views = [x]
        for slot in slots:
            second = take(standard, self._tensor(np.searchsorted(rows, slot.partner[own])))
            views.append(apply_mix(slot.mix, x, second, slot.parameters[own]))
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
        return _Request(torch.from_numpy(table.order[rows]), table.crop[rows] if self.plan.random_resized else None)

    def _tensor(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device, non_blocking=True)

    def _column(self, slots: list[np.ndarray]) -> Tensor:
        return self._tensor(np.concatenate(slots) if slots else np.empty(0, np.float32))


def apply_mix(name: str, first: Tensor, second: Tensor, parameters: np.ndarray) -> Tensor:
    """Make the x' of a batch; raise `KdcacheError` if they are of a wrong shape or type."""
    mix = find_mix(name)
    with explained(f"augmentation {name}", name):
        made = mix.apply(first, second, parameters)
    if not isinstance(made, Tensor):
        raise KdcacheError(problem(f"augmentation {name}: its views", expected="a tensor", got=type(made).__name__))
    dtype = torch.float32 if mix.gives_float else torch.uint8
    if (made.dtype, made.shape, made.device) != (dtype, first.shape, first.device):
        expected, got = (
            f"{str(kind).removeprefix('torch.')} of shape {tuple(shape)} on {device}"
            for kind, shape, device in ((dtype, first.shape, first.device), (made.dtype, made.shape, made.device))
        )
        remedy = "Views are uint8, 0 to 255; the Mix of one that gives float32 in the same range says gives_float=True."
        raise KdcacheError(problem(f"augmentation {name}: its views", expected=expected, got=got, remedy=remedy))
    return made


def _explain_memory(images: int) -> AbstractContextManager[None]:
    """Explain it if there is not enough memory for the views of so many images."""
    return memory_explained(f"the views of {images} images", "a smaller --batch-size or --image-size")


def _rows(positions: range, slots: Sequence[Slot]) -> np.ndarray:
    """Positions whose images are needed for the views of some slots: themselves and their partners, sorted, unique."""
    own = np.arange(positions.start, positions.stop)
    return np.unique(np.concatenate([own, *(slot.partner[own] for slot in slots)]))

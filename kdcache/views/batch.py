"""The views of a step, made from the epoch's table with a few batched tensor operations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache import distributed
from kdcache.cards import Rendering
from kdcache.compute import to_device
from kdcache.datasets import Split
from kdcache.datasets.split import UNLABELLED
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import UsageError, memory_explained, problem
from kdcache.views.apply import apply_mix, check_sizes
from kdcache.views.geometry import crop_flip, flip_some, random_resized_box, take
from kdcache.views.plan import EpochTable, Slot, ViewPlan, rank_part, steps

__all__ = ["Batch", "Views", "hard_labels"]


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
    other_images : Tensor or None
        What `Views.of_batch` makes the views in the rendering of another network from, if it was decoded already.
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
    other_images: Tensor | None = None

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
    """Images to read: the samples, for random resized crops the word of each box, and in which renderings."""

    samples: Tensor
    words: np.ndarray | None
    renderings: tuple[Rendering | None, ...]


def _read(split: Split, request: _Request) -> list[Tensor]:
    if request.words is None:
        return split.render(request.samples, request.renderings)
    from kdcache.datasets.pictures import Crops

    return split.render(request.samples, request.renderings, Crops(request.words, random_resized_box))


class Views:
    """Makes the views of a plan: the batches of an epoch, or any positions of one slot.

    The images of the split may have another size than those of the plan, if x is a random part of a picture, or all of
    it. Each view then shows the same of the picture, and a box covers the same share of it.

    Parameters
    ----------
    split : Split
        The training images; a batch reads its samples and their partners, each once.
    plan : ViewPlan
    batch_size : int
        The views do not depend on it.
    device : torch.device
        Where the views are made; images are copied there as uint8.

    Attributes
    ----------
    other_rendering : callable
        From an epoch, the rendering in which its batches have their images too, so that pictures are decoded once for
        two networks; ``None`` for none, as by default.

    Raises
    ------
    UsageError
        If the plan has views that cannot have the size of the images.
    """

    def __init__(self, split: Split, plan: ViewPlan, batch_size: int, device: torch.device) -> None:
        self.split, self.plan, self.device, self.batch_size = split, plan, device, batch_size
        self.other_rendering: Callable[[int], Rendering | None] = lambda epoch: None
        check_sizes(plan, split.image_size)
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
        other = self.other_rendering(epoch)
        renderings = (None,) if other is None else (None, other)
        requests = (self._request(table, _rows(positions, table.slots), renderings) for positions in parts)
        pin = self.device.type == "cuda"
        ahead = prefetch_map(partial(_read, self.split), requests, self.split.workers, pin)
        for step, (positions, images) in enumerate(zip(parts, ahead, strict=True), start=first_step):
            yield self._batch(epoch, step, positions, *images)

    def views(self, epoch: int, slot: int, positions: range) -> Tensor:
        """Make the views of one slot at some positions: (B, 3, H, W). Slot 0 is x."""
        table = self.table(epoch)
        slots = [table.slots[slot - 1]] if slot else []
        rows = _rows(positions, slots)
        (images,) = _read(self.split, self._request(table, rows))
        with _explain_memory(len(positions)):
            return self._slots(table, positions, slots, rows, images)[-1]

    def of_batch(self, batch: Batch, with_mixed: bool = True) -> Tensor:
        """Make the views of a batch that another maker of the same plan made, or its x alone."""
        table, positions, images = self.table(batch.epoch), batch.positions, batch.other_images
        rows = _rows(positions, table.slots if with_mixed or images is not None else ())
        if images is None:
            (images,) = _read(self.split, self._request(table, rows))
        with _explain_memory(len(batch)):
            return torch.cat(self._slots(table, positions, table.slots if with_mixed else (), rows, images))

    def rendered(self, rendering: Rendering) -> "Views":
        """Return a maker of the same views in another rendering; this one where only clean views would differ."""
        assert self.split.pictures is not None
        current = self.split.pictures.rendering
        if self.plan.crop_flip and replace(rendering, shorter_side=current.shorter_side) == current:
            return self
        maker = Views(self.split.rendered(rendering), self.plan, self.batch_size, self.device)
        maker.table = self.table
        return maker

    def _batch(
        self, epoch: int, step: int, positions: range, images: Tensor, other_images: Tensor | None = None
    ) -> Batch:
        table, own = self.table(epoch), np.arange(positions.start, positions.stop)
        with _explain_memory(len(own)):
            slots = self._slots(table, positions, table.slots, _rows(positions, table.slots), images)
            views = torch.cat(slots)  # float32 if any of them is
        samples = torch.from_numpy(table.order[own])
        partners = [table.order[slot.partner[own]] for slot in table.slots]
        partner_samples = np.concatenate(partners) if partners else np.empty(0, np.int64)
        return Batch(
            epoch=epoch,
            step=step,
            positions=positions,
            global_positions=self.steps[step],
            samples=to_device(samples, self.device),
            labels=to_device(self.split.labels[samples], self.device),
            views=views,
            partner_labels=to_device(self.split.labels[torch.from_numpy(partner_samples)], self.device),
            lam=self._column([slot.lam[own] for slot in table.slots]),
            random_score=self._column([slot.random_score[own] for slot in table.slots]),
            standard_keys=self.plan.standard_keys(table, own),
            other_images=other_images,
        )

    def _slots(
        self, table: EpochTable, positions: range, slots: Sequence[Slot], rows: np.ndarray, images: Tensor
    ) -> list[Tensor]:
        """Make x and the views of some slots, each (B, 3, H, W), from the images of some rows, see `_rows`."""
        own = np.arange(positions.start, positions.stop)
        standard = self._standard_views(table, rows, images)
        # A batch of whole blocks has all its partners in itself.
        x = standard if len(rows) == len(own) else take(standard, to_device(np.searchsorted(rows, own), self.device))
        views = [x]
        for slot in slots:
            second = take(standard, to_device(np.searchsorted(rows, slot.partner[own]), self.device))
            views.append(apply_mix(slot.mix, x, second, slot.parameters[own], self.plan.image_size))
        return views

    def _standard_views(self, table: EpochTable, rows: np.ndarray, images: Tensor) -> Tensor:
        images = to_device(images, self.device)
        if not self.plan.crop_flip:
            return images
        flip = to_device(table.flip[rows], self.device)
        if self.plan.padding is None:
            return flip_some(images, flip)
        return crop_flip(images, to_device(table.crop[rows], self.device), flip, self.plan.padding)

    def _request(
        self, table: EpochTable, rows: np.ndarray, renderings: tuple[Rendering | None, ...] = (None,)
    ) -> _Request:
        words = table.crop[rows] if self.plan.random_resized else None
        return _Request(torch.from_numpy(table.order[rows]), words, renderings)

    def _column(self, slots: list[np.ndarray]) -> Tensor:
        return to_device(np.concatenate(slots) if slots else np.empty(0, np.float32), self.device)


def _explain_memory(images: int) -> AbstractContextManager[None]:
    """Explain it if there is not enough memory for the views of so many images."""
    return memory_explained(f"the views of {images} images", "a smaller --batch-size or --image-size")


def _rows(positions: range, slots: Sequence[Slot]) -> np.ndarray:
    """Positions whose images are needed for the views of some slots: themselves and their partners, sorted, unique."""
    own = np.arange(positions.start, positions.stop)
    return np.unique(np.concatenate([own, *(slot.partner[own] for slot in slots)]))

"""The views of images, made from the epoch's table with a few batched tensor operations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from kdcache import distributed
from kdcache.cards import Rendering
from kdcache.choices import CROPS
from kdcache.compute import to_device
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset, Split
from kdcache.datasets.adapters import as_split
from kdcache.datasets.workers import prefetch_map
from kdcache.errors import UsageError, memory_explained, names_parameters, problem
from kdcache.views.apply import apply_mix, check_sizes
from kdcache.views.batch import Batch
from kdcache.views.geometry import crop_flip, flip_some, random_resized_box, take
from kdcache.views.plan import EpochTable, Slot, ViewPlan, rank_part, steps
from kdcache.views.planning import plan_views

__all__ = ["Views"]


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

    @classmethod
    @names_parameters
    def of_images(
        cls,
        images: Any,
        aug: str = "standard",
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        candidates: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
        image_size: int | None = None,
        teacher_size: int | None = None,
        crop: str | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Make the views of images in any form, for a training loop of one's own.

        Parameters
        ----------
        images : Dataset, Split, tuple or a map-style dataset
            Images and labels, see `kdcache.datasets.adapters.as_split`.
        aug : str
            As ``--aug``: ``none``, ``standard``, ``mixup``, ``cutmix``, ``cutmix-pick``, or a sum such as
            ``cutmix+randaugment``.
        options : mapping, optional
            Options of augmentations that are not the default, such as ``{"cutmix": {"alpha": 0.2}}``.
        candidates : int, optional
            Number of x' of each sample; by default one of each kind, and two for ``cutmix-pick``.
        batch_size : int
        seed : int
            The view seed.
        image_size : int, optional
            Height and width in pixels; needed for image files.
        teacher_size : int, optional
            That of the teacher's images, where it sees random parts of pictures in another size.
        crop : str, optional
            Random crop of x: ``padded``, of the image padded by an eighth of its size, or ``resized``, a part of a
            picture. By default that of the dataset, ``resized`` for other image files, and ``padded`` for arrays.
        device : torch.device or str

        Raises
        ------
        UsageError
            If the images have another form, or the settings do not fit.
        """
        split = as_split(images, image_size)
        card = images.card if isinstance(images, Dataset) else None
        config = StudentConfig.load(
            aug=aug, augs=options or {}, candidates=candidates, batch_size=batch_size, seed=seed
        )
        padding = split.image_size // 8 if split.pictures is None else None
        if card is not None:
            padding = card.padding if split.image_size == card.image_size else card.padding and split.image_size // 8
        if crop is not None:
            padding = _padding(split, padding, crop)
        mean, size = card.mean if card else None, teacher_size or split.image_size
        plan = plan_views(config.augmentation, len(split), size, padding, seed, batch_size, mean)
        return cls(split, plan, batch_size, torch.device(device))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Make this process's part of an epoch's batches, from a step on; both are counted from 0.

        Pictures are decoded ahead by the workers of the split.
        """
        distributed.require_group()
        table, rank, number = self.table(epoch), distributed.rank(), distributed.world_size()
        parts = [rank_part(whole, rank, number) for whole in self.steps[first_step:]]
        other = self.other_rendering(epoch)
        renderings = (None,) if other is None else (None, other)
        requests = (self._request(table, _rows(positions, table.slots), renderings) for positions in parts)
        pin = self.device.type == "cuda"
        ahead = prefetch_map(partial(_read, self.split), requests, self.split.workers, pin)
        for step, (positions, images) in enumerate(zip(parts, ahead, strict=True), start=first_step):
            yield self._batch(epoch, step, positions, images, other)

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
        assert self.split.pictures is not None
        table, positions = self.table(batch.epoch), batch.positions
        images = batch.other_images if batch.other_rendering == self.split.pictures.rendering else None
        rows = _rows(positions, table.slots if with_mixed or images is not None else ())
        if images is None:
            (images,) = _read(self.split, self._request(table, rows))
        with _explain_memory(len(batch)):
            return torch.cat(self._slots(table, positions, table.slots if with_mixed else (), rows, images))

    def same_as(self, other: "Views") -> bool:
        """Whether others show the same of the same images, maybe in another rendering."""
        if other.table is self.table:  # in whichever rendering
            return True
        return other.plan == self.plan and other.split.fingerprint == self.split.fingerprint

    def rendered(self, rendering: Rendering) -> Self:
        """Return the same views in another rendering; these where only clean views would differ.

        If x is a padded crop of the clean view, all networks see the same images.
        """
        if self.split.pictures is None or self.plan.padding is not None:
            return self
        current = self.split.pictures.rendering
        if self.plan.crop_flip and replace(rendering, shorter_side=current.shorter_side) == current:
            return self
        views = type(self)(self.split.rendered(rendering), self.plan, self.batch_size, self.device)
        views.table = self.table
        return views

    def _batch(
        self, epoch: int, step: int, positions: range, images: Sequence[Tensor], other_rendering: Rendering | None
    ) -> Batch:
        table, own = self.table(epoch), np.arange(positions.start, positions.stop)
        with _explain_memory(len(own)):
            slots = self._slots(table, positions, table.slots, _rows(positions, table.slots), images[0])
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
            partners=partner_samples,
            standard_keys=self.plan.standard_keys(table, own),
            views_of=self,
            other_images=images[1] if len(images) > 1 else None,
            other_rendering=other_rendering,
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


def _padding(split: Split, padding: int | None, crop: str) -> int | None:
    """Return the padding of a random crop of a kind; ``None`` for random parts of pictures."""
    if crop not in CROPS:
        raise UsageError(problem("crop", expected=f"one of {', '.join(CROPS)}", got=crop))
    if crop == "resized":
        if split.pictures is None:
            raise UsageError(problem("crop of arrays of one size", expected="padded", got=crop))
        return None
    return padding or split.image_size // 8


def _explain_memory(images: int) -> AbstractContextManager[None]:
    """Explain it if there is not enough memory for the views of so many images."""
    return memory_explained(f"the views of {images} images", "a smaller --batch-size or --image-size")


def _rows(positions: range, slots: Sequence[Slot]) -> np.ndarray:
    """Positions whose images are needed for the views of some slots: themselves and their partners, sorted, unique."""
    own = np.arange(positions.start, positions.stop)
    return np.unique(np.concatenate([own, *(slot.partner[own] for slot in slots)]))

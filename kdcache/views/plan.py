"""The view plan: which views an epoch shows, as a table with one row per training sample.

The table of an epoch is a pure function of (plan, plan version, seed, epoch). It is drawn from the raw words of NumPy's
counter-based Philox generator, whose stream never changes, and does not depend on workers, world size or interruptions,
nor on the batch size, unless the name of a mix states one. So every view has an address, (epoch, position, slot), and
can be made again at any time. Position is the index in the epoch's order; slot 0 is x, slot m is the m-th x'.

Plans nest: order, crop and flip do not depend on the augmentation, slot m does not depend on the number of slots, and
no row depends on the total number of epochs. So students with different augmentations share the teacher's logits of x.
"""

from __future__ import annotations  # so that views can be counted without torch

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kdcache.errors import UsageError, problem

if TYPE_CHECKING:
    from kdcache.views.words import Words

__all__ = [
    "CLEAN",
    "PLAN_VERSION",
    "SAMPLES_PER_BLOCK",
    "STANDARD",
    "EpochTable",
    "Slot",
    "ViewPlan",
    "block_starts",
    "format_kind",
    "parse_kind",
    "rank_part",
    "steps",
]

PLAN_VERSION = 1
"""Incremented whenever the same plan would draw different rows."""

STANDARD, CLEAN = "standard", "clean"
"""Kinds of x: randomly cropped and flipped, or as in evaluation."""

SAMPLES_PER_BLOCK = 64
"""Samples in a block. Partners come from the same block, so a batch of whole blocks reads no other images."""

MIN_LAST_BATCH = 16
"""Samples that the last step has at least, so that eight processes get two each."""

ROWS_PER_DRAW = 2**16
"""Rows drawn at once: intermediate arrays take several times their memory."""

# Purposes of the random streams: the second word of the generator's key.
ORDER, CROP_FLIP, PARTNER, MIX, RANDOM_SCORE = range(5)


@dataclass(frozen=True)
class Slot:
    """One x' of every sample, a row per position.

    Attributes
    ----------
    mix : str
        How x' is made from x, see `kdcache.config.augs.format_mix`.
    partner : ndarray of int64, shape (N,)
        Position of the other image; the row's own where x' is made from x alone.
    parameters : ndarray, shape (N, K)
        A box, a lambda or operations, depending on the mix; see `kdcache.views.mixes`.
    lam : ndarray of float32, shape (N,)
        Share of the label that the sample keeps; its partner has the rest.
    random_score : ndarray of float32, shape (N,)
        Uniform numbers in [0, 1), the scores of the ``random`` criterion.
    """

    mix: str
    partner: np.ndarray
    parameters: np.ndarray
    lam: np.ndarray
    random_score: np.ndarray


@dataclass(frozen=True)
class EpochTable:
    """All views of one epoch, a row per position.

    Attributes
    ----------
    order : ndarray of int64, shape (N,)
        The sample at each position.
    crop : ndarray
        int16 (N, 2): row and column offset of the crop in the padded image, ``padding`` being the center. Or uint64
        (N,): the word from which `kdcache.views.geometry.random_resized_box` computes the box of a picture, whose size
        is known once it is decoded.
    flip : ndarray of bool, shape (N,)
        Whether the view is flipped horizontally.
    slots : tuple of Slot
    """

    order: np.ndarray
    crop: np.ndarray
    flip: np.ndarray
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class ViewPlan:
    """Everything that the view tables of a run depend on.

    Parameters
    ----------
    samples : int
        Number of training samples, N, at least 3.
    image_size : int
        Side of the images, in pixels.
    padding : int or None
        Zeros added on each side before the crop, in pixels; ``None`` for random resized crops of pictures of any size.
    crop_flip : bool
        Whether x is cropped and flipped at random.
    seed : int
        The view seed.
    mixes : tuple of str
        How each x' of a sample is made, see `kdcache.config.augs.format_mix`.

    Raises
    ------
    UsageError
        If there are too few samples to give every slot a different partner.
    """

    samples: int
    image_size: int
    padding: int | None
    crop_flip: bool
    seed: int
    mixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = max(3, self.slots + 1)
        if self.samples < least:
            raise UsageError(problem("training samples", expected=f"at least {least}", got=self.samples))

    @property
    def slots(self) -> int:
        """Number of x' per sample, M."""
        return len(self.mixes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name of the view in each slot, x first. Plans that share a kind and the seed share its views."""
        mixed = (format_kind(mix, slot) for slot, mix in enumerate(self.mixes, start=1))
        return (STANDARD if self.crop_flip else CLEAN, *mixed)

    def with_last_kind(self, kind: str) -> ViewPlan:
        """Return the plan whose last slot has a certain kind; since plans nest, the slots before it do not matter."""
        mix, slot = parse_kind(kind)
        return replace(self, crop_flip=kind != CLEAN, mixes=(mix,) * slot)

    @property
    def random_resized(self) -> bool:
        """Whether x is a random resized crop."""
        return self.crop_flip and self.padding is None

    @property
    def standard_views(self) -> int:
        """Number of distinct x per sample, V: 162 for padding 4, a crop at each offset, flipped or not.

        For random resized crops, one per 64-bit word.
        """
        if not self.crop_flip:
            return 1
        return 2**64 if self.padding is None else 2 * (2 * self.padding + 1) ** 2

    def standard_keys(self, table: EpochTable, positions: np.ndarray) -> np.ndarray:
        """Index of the x of some positions among all N V possible ones: int64, ``sample * V + view``.

        Random resized crops have none: -1.
        """
        return self._keys(table.order[positions], table.crop[positions], table.flip[positions])

    def clean_keys(self) -> np.ndarray:
        """Index of each sample's clean view, as in `standard_keys`: the center crop, not flipped."""
        return self._keys(np.arange(self.samples), self._center(), np.zeros(self.samples, bool))

    def _keys(self, samples: np.ndarray, crop: np.ndarray, flip: np.ndarray) -> np.ndarray:
        if not self.crop_flip:
            return samples
        if self.padding is None:
            return np.full(len(samples), -1)
        top, left = crop.astype(np.int64).T
        return samples * self.standard_views + (top * (2 * self.padding + 1) + left) * 2 + flip

    def _center(self) -> np.ndarray:
        return np.full((self.samples, 2), self.padding or 0, np.int16)

    def epoch(self, epoch: int) -> EpochTable:
        """Draw the table of an epoch, counted from 0."""
        crop, flip = self._center(), np.zeros(self.samples, bool)
        if self.crop_flip:
            words = self._words(CROP_FLIP, epoch)
            crop, flip = self._crops(words), (words & np.uint64(1)).astype(bool)
        order = np.argsort(self._words(ORDER, epoch), kind="stable")
        return EpochTable(order, crop, flip, slots=self._slots(epoch))

    def _crops(self, words: Words) -> np.ndarray:
        """Take each row's crop from its word: 16 bits for each offset; the lowest bit is the flip's."""
        if self.padding is None:
            return words
        crop = np.empty((self.samples, 2), np.int16)
        for axis, shift in enumerate((48, 32)):
            crop[:, axis] = _bounded(words >> np.uint64(shift), 2 * self.padding + 1)
        return crop

    def _slots(self, epoch: int) -> tuple[Slot, ...]:
        slots = []
        for slot, (mix, partner) in enumerate(zip(self.mixes, self._partners(epoch), strict=True)):
            parameters, lam, alone = self._draw(mix, epoch, slot)
            random_score = (self._words(RANDOM_SCORE, epoch, slot) >> np.uint64(40)) * np.float64(2.0**-24)
            other = np.where(alone, np.arange(self.samples), partner)
            slots.append(Slot(mix, other, parameters, lam, random_score.astype(np.float32)))
        return tuple(slots)

    def _draw(self, mix: str, epoch: int, slot: int) -> tuple[np.ndarray, ...]:
        """Draw the parameters and lambdas of a slot, and which of its x' are made from x alone."""
        from kdcache.views.mixes import draw_rows, find_mix  # which import torch

        stream, batch_size = self._stream(MIX, epoch, slot), find_mix(mix).batch_size
        batches = steps(self.samples, batch_size) if batch_size else None
        draws = self.samples if batches is None else len(batches)
        counts = [min(ROWS_PER_DRAW, draws - start) for start in range(0, draws, ROWS_PER_DRAW)]
        drawn = [draw_rows(mix, stream.random_raw(2 * count).reshape(-1, 2), self.image_size) for count in counts]
        columns = tuple(np.concatenate(column) for column in zip(*drawn, strict=True))
        if batches is None:
            return columns
        return tuple(np.repeat(column, [len(batch) for batch in batches], axis=0) for column in columns)

    def _partners(self, epoch: int) -> Iterator[np.ndarray]:
        """For each slot, the partners' positions: s further in the block, cyclically, s differing between slots."""
        starts = block_starts(self.samples)
        lengths = np.diff(starts, append=self.samples)
        taken: list[np.ndarray] = []
        positions = np.arange(self.samples)
        start, length = np.repeat(starts, lengths), np.repeat(lengths, lengths)
        for slot in range(self.slots):
            words = self._words(PARTNER, epoch, slot, len(starts)) >> np.uint64(32)
            shift = (words * (lengths - 1 - slot).astype(np.uint64) >> np.uint64(32)).astype(np.int64) + 1
            for earlier in np.sort(taken, axis=0) if taken else []:
                shift += shift >= earlier  # the shift-th of the unused ones
            taken.append(shift)
            yield start + (positions - start + np.repeat(shift, lengths)) % length

    def _words(self, purpose: int, epoch: int, slot: int = 0, count: int | None = None) -> Words:
        return self._stream(purpose, epoch, slot).random_raw(self.samples if count is None else count)

    def _stream(self, purpose: int, epoch: int, slot: int) -> np.random.Philox:
        key = np.array([self.seed, purpose], np.uint64)
        counter = np.array([0, slot, epoch, PLAN_VERSION], np.uint64)
        return np.random.Philox(key=key, counter=counter)


def format_kind(mix: str, slot: int) -> str:
    """Name the kind of view in a slot, as in the names of stored tables.

    Parameters
    ----------
    mix : str
        `STANDARD` or `CLEAN` in slot 0. In other slots the name of a mix, which states each option that is not the
        default (`kdcache.config.augs.format_mix`): views that differ have different kinds.
    slot : int
    """
    return f"{mix}-{slot}" if slot else mix


def parse_kind(kind: str) -> tuple[str, int]:
    """Parse the result of `format_kind` into the mix and the slot; any other text is a ``ValueError``.

    The name of a mix may contain letters, digits, ``-`` and ``_``, ``=``, ``.`` and ``,`` for options, and the ``:`` of
    an address.
    """
    if kind in (STANDARD, CLEAN):
        return kind, 0
    found = re.fullmatch(r"([a-zA-Z0-9][\w:=.,-]*)-([1-9]\d{0,3})", kind, re.ASCII)
    if found is None:
        raise ValueError(f"not a kind of view: {kind}")
    return found[1], int(found[2])


def _bounded(words: Words, count: int) -> np.ndarray:
    """Map the lowest 16 bits of each word to 0 .. count - 1; off uniform by 2^-16 at most."""
    return (words & np.uint64(0xFFFF)) * np.uint64(count) >> np.uint64(16)


def block_starts(samples: int) -> np.ndarray:
    """First position of each block; a last block with fewer than `SAMPLES_PER_BLOCK` samples joins the one before."""
    return np.arange(max(1, samples // SAMPLES_PER_BLOCK)) * SAMPLES_PER_BLOCK


def steps(samples: int, batch_size: int) -> list[range]:
    """Positions of each step of an epoch; a last batch that is too small joins the one before.

    Too small is less than half a batch and less than `MIN_LAST_BATCH`, whatever the world size, which may change when
    a run is resumed. No sample is dropped, padded or repeated.
    """
    starts = list(range(0, samples, batch_size))
    if len(starts) > 1 and samples - starts[-1] < max(2, min(MIN_LAST_BATCH, batch_size // 2)):
        starts.pop()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], samples], strict=True)]


def rank_part(positions: range, rank: int, world_size: int) -> range:
    """Positions of a step that belong to a rank: the rank-th of nearly equal contiguous parts."""
    start, stop = (positions.start + part * len(positions) // world_size for part in (rank, rank + 1))
    return range(start, stop)

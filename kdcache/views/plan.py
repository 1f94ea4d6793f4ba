"""The view plan: which views an epoch shows, one row of a table per training sample.

The table of an epoch is a pure function of (plan, plan version, seed, epoch). It is made from the raw words of NumPy's
counter-based Philox generator, whose stream never changes, and does not know the batch size, the number of workers or
ranks, or whether the run was interrupted. So every view has a name, (epoch, position, slot), and can be made again
at any time. Position is the place in the epoch's order; slot 0 is x, slot m the m-th x'.

Plans nest: order, crop and flip do not depend on the augmentation, slot m does not depend on how many slots there are,
and no row depends on the total number of epochs. Students of different augmentations so share the answers to x.
"""

from __future__ import annotations  # so that views can be counted without torch

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kdcache.errors import UsageError, problem

if TYPE_CHECKING:
    from kdcache.views.mixes import Mix, Words

__all__ = [
    "BLOCK",
    "CLEAN",
    "PLAN_VERSION",
    "STANDARD",
    "EpochTable",
    "Plan",
    "Slot",
    "block_starts",
    "format_kind",
    "parse_kind",
    "share",
    "steps",
]

PLAN_VERSION = 1
"""Raised whenever the same plan would draw other rows."""

STANDARD, CLEAN = "standard", "clean"
"""Kinds of x: cropped and flipped at random, or as in evaluation."""

BLOCK = 64
"""Samples of a block. Partners are found within a block, so a batch of whole blocks loads nothing but its own rows."""

LEAST = 16
"""Samples of the last step, so that eight processes have two each."""

SLICE = 2**16
"""Rows that are drawn at once."""

# What a stream of random words is for; the second word of the generator's key.
ORDER, CROP_FLIP, SHIFT, MIX, LOT = range(5)


@dataclass(frozen=True)
class Slot:
    """One x' of every sample; rows are positions.

    Attributes
    ----------
    kind : str
        How x' is made of x, a key of `kdcache.views.mixes.MIXES`.
    partner : ndarray of int64, shape (N,)
        Position of the other image, never the row's own; the row's own where the kind takes no other.
    parameters : ndarray, shape (N, K)
        What the kind needs: a box, a lambda or a seed, see `kdcache.views.mixes`.
    lam : ndarray of float32, shape (N,)
        Share of the label that the sample keeps.
    random_score : ndarray of float32, shape (N,)
        A uniform number in [0, 1) by which the `random` criterion picks.
    """

    kind: str
    partner: np.ndarray
    parameters: np.ndarray
    lam: np.ndarray
    random_score: np.ndarray


@dataclass(frozen=True)
class EpochTable:
    """All views of one epoch; rows are positions.

    Attributes
    ----------
    order : ndarray of int64, shape (N,)
        The sample at each position.
    crop : ndarray
        int16 (N, 2), the offset of the crop in the padded image, rows and columns, of which ``padding`` is the middle;
        or uint64 (N,), the word from which `kdcache.views.geometry.random_part` finds the part of a picture that x
        is, as soon as the size of the picture is known.
    flip : ndarray of bool, shape (N,)
        Whether the view is mirrored left to right.
    slots : tuple of Slot
    """

    order: np.ndarray
    crop: np.ndarray
    flip: np.ndarray
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Plan:
    """What the view tables of a run are a function of.

    Parameters
    ----------
    samples : int
        Training samples N, at least 3.
    image_size : int
        Side of the images, in pixels.
    padding : int or None
        Zeros added at each side before the crop, in pixels; ``None`` where x is a random part of a picture of any size.
    crop_flip : bool
        Whether x is cropped and flipped at random.
    seed : int
        The view seed.
    mixes : tuple of str
        Kind of each x' of a sample, keys of `kdcache.views.mixes.MIXES`.

    Raises
    ------
    UsageError
        Where there are too few samples to give every slot a partner of its own.
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
        """How many x' a sample has, M."""
        return len(self.mixes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name what each slot shows, x first. Plans that share a kind and the seed share its views."""
        mixed = (format_kind(mix, slot) for slot, mix in enumerate(self.mixes, start=1))
        return (STANDARD if self.crop_flip else CLEAN, *mixed)

    def ending_with(self, kind: str) -> Plan:
        """Make the plan whose last slot shows a kind, whatever slots there are before it: plans nest."""
        mix, slot = parse_kind(kind)
        return replace(self, crop_flip=kind != CLEAN, mixes=(mix,) * slot)

    @property
    def of_pictures(self) -> bool:
        """Whether x is a random part of a picture."""
        return self.crop_flip and self.padding is None

    @property
    def standard_views(self) -> int:
        """How many x a sample can have, V: 162 for padding 4, a crop at each offset, mirrored or not.

        Of parts of pictures there are about as many as words, 2^64.
        """
        if not self.crop_flip:
            return 1
        return 2**64 if self.padding is None else 2 * (2 * self.padding + 1) ** 2

    def standard_keys(self, table: EpochTable, positions: np.ndarray) -> np.ndarray:
        """Number the x of some positions among the N V that there can be: int64, ``sample * V + view``.

        Those that are parts of pictures have no numbers: -1.
        """
        return self._keys(table.order[positions], table.crop[positions], table.flip[positions])

    def clean_keys(self) -> np.ndarray:
        """Number the clean view of each sample as `standard_keys` does: the middle crop, not mirrored."""
        return self._keys(np.arange(self.samples), self._middle(), np.zeros(self.samples, bool))

    def _keys(self, samples: np.ndarray, crop: np.ndarray, flip: np.ndarray) -> np.ndarray:
        if not self.crop_flip:
            return samples
        if self.padding is None:
            return np.full(len(samples), -1)
        top, left = crop.astype(np.int64).T
        return samples * self.standard_views + (top * (2 * self.padding + 1) + left) * 2 + flip

    def _middle(self) -> np.ndarray:
        return np.full((self.samples, 2), self.padding or 0, np.int16)

    def epoch(self, epoch: int) -> EpochTable:
        """Draw the table of an epoch, counted from 0."""
        crop, flip = self._middle(), np.zeros(self.samples, bool)
        if self.crop_flip:
            words = self._words(CROP_FLIP, epoch)
            crop, flip = self._crops(words), (words & np.uint64(1)).astype(bool)
        order = np.argsort(self._words(ORDER, epoch), kind="stable")
        return EpochTable(order, crop, flip, slots=self._slots(epoch))

    def _crops(self, words: Words) -> np.ndarray:
        """Take the crop of each row from its word: 16 bits for each offset, the lowest one is left to the flip."""
        if self.padding is None:
            return words
        crop = np.empty((self.samples, 2), np.int16)
        for axis, shift in enumerate((48, 32)):
            crop[:, axis] = _share_of(words >> np.uint64(shift), 2 * self.padding + 1)
        return crop

    def _slots(self, epoch: int) -> tuple[Slot, ...]:
        slots = []
        for slot, (kind, partner) in enumerate(zip(self.mixes, self._partners(epoch), strict=True)):
            parameters, lam = self._draw(kind, epoch, slot)
            random_score = (self._words(LOT, epoch, slot) >> np.uint64(40)) * np.float64(2.0**-24)
            other = partner if _find_mix(kind).takes_partner else np.arange(self.samples)
            slots.append(Slot(kind, other, parameters, lam, random_score.astype(np.float32)))
        return tuple(slots)

    def _draw(self, kind: str, epoch: int, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the parameters of a slot in slices: what is needed on the way takes several times their room."""
        stream = self._stream(MIX, epoch, slot)
        counts = [min(SLICE, self.samples - start) for start in range(0, self.samples, SLICE)]
        drawn = [_find_mix(kind).draw(stream.random_raw(2 * count).reshape(-1, 2), self.image_size) for count in counts]
        parameters, lam = (np.concatenate(column) for column in zip(*drawn, strict=True))
        return parameters, lam

    def _partners(self, epoch: int) -> Iterator[np.ndarray]:
        """For each slot, the position s places further round in the row's block, s differing between the slots."""
        starts = block_starts(self.samples)
        lengths = np.diff(starts, append=self.samples)
        taken: list[np.ndarray] = []
        positions = np.arange(self.samples)
        start, length = np.repeat(starts, lengths), np.repeat(lengths, lengths)
        for slot in range(self.slots):
            words = self._words(SHIFT, epoch, slot, len(starts)) >> np.uint64(32)
            shift = (words * (lengths - 1 - slot).astype(np.uint64) >> np.uint64(32)).astype(np.int64) + 1
            for earlier in np.sort(taken, axis=0) if taken else []:
                shift += shift >= earlier  # the shift-th of those that are left
            taken.append(shift)
            yield start + (positions - start + np.repeat(shift, lengths)) % length

    def _words(self, purpose: int, epoch: int, slot: int = 0, count: int | None = None) -> Words:
        return self._stream(purpose, epoch, slot).random_raw(self.samples if count is None else count)

    def _stream(self, purpose: int, epoch: int, slot: int) -> np.random.Philox:
        key = np.array([self.seed, purpose], np.uint64)
        counter = np.array([0, slot, epoch, PLAN_VERSION], np.uint64)
        return np.random.Philox(key=key, counter=counter)


def format_kind(mix: str, slot: int) -> str:
    """Name the kind of view that a slot shows; part of the names of stored tables.

    Parameters
    ----------
    mix : str
        `STANDARD` or `CLEAN` in slot 0. In other slots the name of a mix, which states each parameter that is not the
        default: views that differ have different kinds.
    slot : int
    """
    return f"{mix}-{slot}" if slot else mix


def parse_kind(kind: str) -> tuple[str, int]:
    """Find the mix and the slot of a kind, as `format_kind` was given them; any other text is a ``ValueError``.

    The name of a mix may contain letters, digits, ``-`` and ``_``, and ``=``, ``.`` and ``,`` for parameters.
    """
    if kind in (STANDARD, CLEAN):
        return kind, 0
    found = re.fullmatch(r"([a-zA-Z0-9][\w=.,-]*)-([1-9]\d{0,3})", kind, re.ASCII)
    if found is None:
        raise ValueError(f"not a kind of view: {kind}")
    return found[1], int(found[2])


def _find_mix(name: str) -> Mix:
    from kdcache.views.mixes import MIXES  # which imports torch

    return MIXES[name]


def _share_of(words: Words, count: int) -> np.ndarray:
    """Choose one of `count` by the lowest 16 bits of each word; it is off uniform by 2^-16 at most."""
    return (words & np.uint64(0xFFFF)) * np.uint64(count) >> np.uint64(16)


def block_starts(samples: int) -> np.ndarray:
    """First position of each block; a last block of fewer than `BLOCK` samples joins the one before."""
    return np.arange(max(1, samples // BLOCK)) * BLOCK


def steps(samples: int, batch_size: int) -> list[range]:
    """Positions of each step of an epoch; a last batch that is too short joins the one before.

    Too short is less than half a batch and less than `LEAST`: several processes share it, and may be of another number
    when a run is gone on with. Nothing is dropped, padded or repeated.
    """
    starts = list(range(0, samples, batch_size))
    if len(starts) > 1 and samples - starts[-1] < max(2, min(LEAST, batch_size // 2)):
        starts.pop()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], samples], strict=True)]


def share(positions: range, rank: int, ranks: int) -> range:
    """Positions of a step that fall to one of several ranks: the rank-th of nearly equal neighbouring parts."""
    start, stop = (positions.start + place * len(positions) // ranks for place in (rank, rank + 1))
    return range(start, stop)

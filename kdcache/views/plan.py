"""The view plan: which views an epoch shows, one row of a table per training sample.

The table of an epoch is a pure function of (plan, plan version, seed, epoch). It is made from the raw words of NumPy's
counter-based Philox generator, whose stream never changes, and does not know the batch size, the number of workers or
ranks, or whether the run was interrupted. So every view has a name, (epoch, position, slot), and can be made again
at any time. Position is the place in the epoch's order; slot 0 is x, slot m the m-th x'.

Plans nest: order, crop and flip do not depend on the augmentation, slot m does not depend on how many slots there are,
and no row depends on the total number of epochs. Students of different augmentations so share the answers to x.
"""

from dataclasses import dataclass, replace

import numpy as np

from kdcache.errors import UsageError, fault
from kdcache.views.mix import MIXES, Words

__all__ = ["BLOCK", "PLAN_VERSION", "EpochTable", "Plan", "Slot", "block_starts", "share", "steps"]

PLAN_VERSION = 1
"""Raised whenever the same plan would draw other rows."""

BLOCK = 64
"""Samples of a block. Partners are found within a block, so a batch of whole blocks loads nothing but its own rows."""

LEAST = 16
"""Samples of the last step, so that eight processes have two each."""

# What a stream of random words is for; the second word of the generator's key.
ORDER, CROP_FLIP, SHIFT, MIX, LOT = range(5)


@dataclass(frozen=True)
class Slot:
    """One x' of every sample; rows are positions.

    Attributes
    ----------
    kind : str
        How x' is made of x, a key of `kdcache.views.mix.MIXES`.
    partner : ndarray of int64, shape (N,)
        Position of the other image, never the row's own; the row's own where the kind takes no other.
    parameters : ndarray, shape (N, K)
        What the kind needs: a box, a lambda or a seed, see `kdcache.views.mix`.
    kept : ndarray of float32, shape (N,)
        Share of the label that the sample keeps.
    lot : ndarray of float32, shape (N,)
        A uniform number in [0, 1) by which the `random` criterion picks.
    """

    kind: str
    partner: np.ndarray
    parameters: np.ndarray
    kept: np.ndarray
    lot: np.ndarray


@dataclass(frozen=True)
class EpochTable:
    """All views of one epoch; rows are positions.

    Attributes
    ----------
    order : ndarray of int64, shape (N,)
        The sample at each position.
    crop : ndarray of int16, shape (N, 2)
        Offset of the crop in the padded image, rows and columns; ``padding`` is the middle.
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
    padding : int
        Zeros added at each side before the crop, in pixels.
    crop_flip : bool
        Whether x is cropped and flipped at random.
    seed : int
        The view seed.
    mixes : tuple of str
        Kind of each x' of a sample, keys of `kdcache.views.mix.MIXES`.

    Raises
    ------
    UsageError
        Where there are too few samples to give every slot a partner of its own.
    """

    samples: int
    image_size: int
    padding: int
    crop_flip: bool
    seed: int
    mixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = max(3, self.slots + 1)
        if self.samples < least:
            raise UsageError(fault("training samples", allowed=f"at least {least}", given=self.samples))

    @property
    def slots(self) -> int:
        """How many x' a sample has, M."""
        return len(self.mixes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name what each slot shows, x first. Plans that share a kind and the seed share its views."""
        mixed = (f"{mix}-{slot}" for slot, mix in enumerate(self.mixes, start=1))
        return ("standard" if self.crop_flip else "clean", *mixed)

    def ending_with(self, kind: str) -> "Plan":
        """Make the plan whose last slot shows a kind, whatever slots there are before it: plans nest."""
        mix, _, slot = kind.partition("-")
        return replace(self, crop_flip=kind != "clean", mixes=(mix,) * int(slot or 0))

    @property
    def standard_views(self) -> int:
        """How many x a sample can have, V: 162 for padding 4, a crop at each offset, mirrored or not."""
        return 2 * (2 * self.padding + 1) ** 2 if self.crop_flip else 1

    def standard_keys(self, table: "EpochTable", positions: np.ndarray) -> np.ndarray:
        """Number the x of some positions among the N V that there can be: int64, ``sample * V + view``."""
        return self._keys(table.order[positions], table.crop[positions], table.flip[positions])

    def clean_keys(self) -> np.ndarray:
        """Number the clean view of each sample as `standard_keys` does: the middle crop, not mirrored."""
        middle = np.full((self.samples, 2), self.padding, np.int16)
        return self._keys(np.arange(self.samples), middle, np.zeros(self.samples, bool))

    def _keys(self, samples: np.ndarray, crop: np.ndarray, flip: np.ndarray) -> np.ndarray:
        if not self.crop_flip:
            return samples
        top, left = crop.astype(np.int64).T
        return samples * self.standard_views + (top * (2 * self.padding + 1) + left) * 2 + flip

    def epoch(self, epoch: int) -> EpochTable:
        """Draw the table of an epoch, counted from 0."""
        words = self._words(CROP_FLIP, epoch)
        crop = np.full((self.samples, 2), self.padding, np.int16)
        flip = np.zeros(self.samples, bool)
        if self.crop_flip:
            # One word a row: 16 bits for each offset, one for the flip. An offset is off uniform by 2^-16 at most.
            offsets = np.uint64(2 * self.padding + 1)
            for axis, shift in enumerate((48, 32)):
                crop[:, axis] = ((words >> np.uint64(shift)) & np.uint64(0xFFFF)) * offsets >> np.uint64(16)
            flip = (words & np.uint64(1)).astype(bool)
        return EpochTable(
            order=np.argsort(self._words(ORDER, epoch), kind="stable"), crop=crop, flip=flip, slots=self._slots(epoch)
        )

    def _slots(self, epoch: int) -> tuple[Slot, ...]:
        slots = []
        for slot, (kind, partner) in enumerate(zip(self.mixes, self._partners(epoch), strict=True)):
            words = self._words(MIX, epoch, slot, 2 * self.samples).reshape(-1, 2)
            parameters, kept = MIXES[kind].draw(words, self.image_size)
            lot = (self._words(LOT, epoch, slot) >> np.uint64(40)) * np.float64(2.0**-24)
            other = partner if MIXES[kind].takes_partner else np.arange(self.samples)
            slots.append(Slot(kind, other, parameters, kept, lot.astype(np.float32)))
        return tuple(slots)

    def _partners(self, epoch: int) -> list[np.ndarray]:
        """For each slot, the position s places further round in the row's block, s differing between the slots."""
        starts = block_starts(self.samples)
        lengths = np.diff(starts, append=self.samples)
        taken: list[np.ndarray] = []
        partners = []
        positions = np.arange(self.samples)
        start, length = np.repeat(starts, lengths), np.repeat(lengths, lengths)
        for slot in range(self.slots):
            words = self._words(SHIFT, epoch, slot, len(starts)) >> np.uint64(32)
            shift = (words * (lengths - 1 - slot).astype(np.uint64) >> np.uint64(32)).astype(np.int64) + 1
            for earlier in np.sort(taken, axis=0) if taken else []:
                shift += shift >= earlier  # the shift-th of those that are left
            taken.append(shift)
            partners.append(start + (positions - start + np.repeat(shift, lengths)) % length)
        return partners

    def _words(self, purpose: int, epoch: int, slot: int = 0, count: int | None = None) -> Words:
        key = np.array([self.seed, purpose], np.uint64)
        counter = np.array([0, slot, epoch, PLAN_VERSION], np.uint64)
        return np.random.Philox(key=key, counter=counter).random_raw(self.samples if count is None else count)


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

"""AutoAugment, RandAugment and TrivialAugment: which operations, how strong, for each row of the view table.

A row holds, for each step, the number of the operation and its level; a negative level is the same change in the other
direction. The spaces and policies are torchvision's, which are those of the papers.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kdcache.views.mixes import Mix
from kdcache.views.operations import BLEND_UNIT, FIXED_POINT_BITS, OPERATIONS, VALUES, apply_operations
from kdcache.views.words import Words, below, high, low, next_words

__all__ = [
    "AUTO",
    "POLICIES",
    "RAND",
    "WIDE",
    "Magnitudes",
    "make_autoaugment",
    "make_randaugment",
    "make_trivialaugment",
]

Values = tuple[int, ...]

SIGNED = OPERATIONS[1:10]
"""Operations with a direction: geometric ones, and blends."""

LEVELLED = OPERATIONS[1:12]
"""Operations with a level."""

_IS_SIGNED, _HAS_LEVEL = (np.isin(OPERATIONS, names) for names in (SIGNED, LEVELLED))

ONE = 2**FIXED_POINT_BITS

OFFSETS = [2, 5]
"""Which values of a geometric operation are lengths. Other operations have none there."""


class Magnitudes(NamedTuple):
    """How strong each operation is at each level, linear in the level.

    Attributes
    ----------
    top : int
        The highest level; the lowest is 0.
    shear : Fraction
        Pixels per pixel at the highest level.
    translate : Fraction
        At the highest level; a fraction of the side, or pixels if it is larger than 1.
    degrees : int
        Rotation at the highest level.
    blend : Fraction
        Largest distance of the factor of a blend from 1.
    bits : int
        Number of bits that posterize removes at the highest level.
    """

    top: int
    shear: Fraction
    translate: Fraction
    degrees: int
    blend: Fraction
    bits: int

    def values(self, operation: str, level: int, height: int, width: int) -> Values:
        """Describe an operation on images of some size by integers for `kdcache.views.operations`.

        Geometric operations are the six numbers of an affine map from the centers of pixels to where they are taken
        from, in parts of 2^-16. Blends are a factor in thousandths, posterize a mask, solarize a threshold.
        """
        share = Fraction(level, self.top)
        match operation:
            case "shear-x":
                return (ONE, round(share * self.shear * ONE), 0, 0, ONE, 0)
            case "shear-y":
                return (ONE, 0, 0, round(share * self.shear * ONE), ONE, 0)
            case "translate-x":
                return (ONE, 0, -self._pixels(share, width) * ONE, 0, ONE, 0)
            case "translate-y":
                return (ONE, 0, 0, 0, ONE, -self._pixels(share, height) * ONE)
            case "rotate":
                return _rotation(share * self.degrees, height, width)
            case "brightness" | "color" | "contrast" | "sharpness":
                return (int((1 + share * self.blend) * BLEND_UNIT),)
            case "posterize":
                return (256 - 2 ** round(share * self.bits),)
            case "solarize":
                return (math.ceil((1 - share) * 255),)
        return ()

    def _pixels(self, share: Fraction, side: int) -> int:
        return int(share * self.translate * (1 if self.translate > 1 else side))  # toward zero


def _rotation(degrees: Fraction, height: int, width: int) -> Values:
    """Rotate about the center of the image, counterclockwise. Cosine and sine are rounded to 2^-16."""
    angle = math.radians(degrees)
    cos, sin = round(math.cos(angle) * ONE), round(math.sin(angle) * ONE)
    return (cos, -sin, (width * (ONE - cos) + height * sin) // 2, sin, cos, (height * (ONE - cos) - width * sin) // 2)


AUTO = Magnitudes(9, Fraction(3, 10), Fraction(150, 331), 30, Fraction(9, 10), 4)
RAND = AUTO._replace(top=30)
WIDE = Magnitudes(30, Fraction(99, 100), Fraction(32), 135, Fraction(99, 100), 6)


@cache
def _table(magnitudes: Magnitudes, height: int, width: int) -> np.ndarray:
    """Values of each operation and level, int64 (operations, levels, VALUES); negative levels count from the end."""
    table = np.zeros((len(OPERATIONS), 2 * magnitudes.top + 1, VALUES), np.int64)
    for row, operation in enumerate(OPERATIONS):
        for level in range(-magnitudes.top if operation in SIGNED else 0, magnitudes.top + 1):
            values = magnitudes.values(operation, level, height, width)
            table[row, level, : len(values)] = values
    return table


@cache
def _scaled_table(magnitudes: Magnitudes, size: int, side: int) -> np.ndarray:
    """Values for square images of some side that do what those of `_table` do for images of `size`."""
    table = _table(magnitudes, size, size).copy()
    table[..., OFFSETS] = (2 * table[..., OFFSETS] * side + size) // (2 * size)
    return table


def _mix(magnitudes: Magnitudes, draw: Callable[[Words, int], tuple[np.ndarray, np.ndarray]]) -> Mix:
    def apply(first: Tensor, second: Tensor, parameters: np.ndarray) -> Tensor:
        return _apply(_table(magnitudes, *first.shape[2:]), first, parameters)

    def apply_scaled(first: Tensor, second: Tensor, parameters: np.ndarray, size: int) -> Tensor:
        return _apply(_scaled_table(magnitudes, size, first.shape[-1]), first, parameters)

    return Mix(draw, apply, apply_scaled=apply_scaled)


def _apply(table: np.ndarray, images: Tensor, rows: np.ndarray) -> Tensor:
    """Apply the operations of each row, one step after the other."""
    for step in range(0, rows.shape[1], 2):
        operations, levels = rows[:, step : step + 2].T
        images = apply_operations(images, operations, table[operations, levels])
    return images


def _rows(steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Make rows of operations, levels and whether each is negative: int16 (N, 2 steps), and lambda, 1."""
    columns = []
    for operations, levels, negative in steps:
        signs = np.where(negative & _IS_SIGNED[operations], -1, 1)
        columns += [operations, np.where(_HAS_LEVEL[operations], signs * levels, 0)]
    return np.stack(columns, axis=1).astype(np.int16), np.ones(len(columns[0]), np.float32)


def make_trivialaugment() -> Mix:
    """One operation of any strength: TrivialAugment, wide (Müller and Hutter, 2021, arXiv:2103.10158)."""

    def draw(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
        operations = below(high(words[:, 0]), len(_UNIFORM))
        levels = below(low(words[:, 0]), WIDE.top + 1)
        return _rows([(operations, levels, _bit(words[:, 1], 0))])

    return _mix(WIDE, draw)


def make_randaugment(number: int, magnitude: int) -> Mix:
    """Some operations of the same strength: RandAugment (Cubuk et al., 2020, arXiv:1909.13719).

    Parameters
    ----------
    number : int
        Operations per image.
    magnitude : int
        Level, 0 to 30.
    """

    def draw(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
        levels = np.full(len(words), magnitude)
        steps = []
        for step in range(number):
            if step % 2 == 0 and step:
                words = next_words(words)
            word = words[:, step % 2]
            steps.append((below(high(word), len(_UNIFORM)), levels, _bit(word, 0)))
        return _rows(steps)

    return _mix(RAND, draw)


_UNIFORM = OPERATIONS[:-1]
"""RandAugment and TrivialAugment draw from all operations but invert."""


def make_autoaugment(policy: str) -> Mix:
    """One of 25 learned pairs of operations: AutoAugment (Cubuk et al., 2019, arXiv:1805.09501).

    Parameters
    ----------
    policy : str
        ``cifar10``, ``imagenet``, or ``auto``: that of CIFAR-10 for images of up to 64 pixels.
    """

    def draw(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = POLICIES[("cifar10" if size <= 64 else "imagenet") if policy == "auto" else policy]
        chosen = below(high(words[:, 0]), len(pairs))
        steps = []
        for step, half in enumerate((low(words[:, 0]), high(words[:, 1]))):
            names, tenths, levels = zip(*(pair[step] for pair in pairs), strict=True)
            used = below(half, 10) < np.array(tenths)[chosen]
            operations = np.array([OPERATIONS.index(name) for name in names])[chosen]
            steps.append((np.where(used, operations, 0), np.array(levels)[chosen], _bit(words[:, 1], step)))
        return _rows(steps)

    return _mix(AUTO, draw)


def _bit(words: Words, number: int) -> np.ndarray:
    return (words >> np.uint64(number) & np.uint64(1)).astype(bool)


def _policy(text: str) -> tuple[tuple[tuple[str, int, int], tuple[str, int, int]], ...]:
    """Parse a policy: in each line two operations, each with tenths of probability and level."""
    pairs = []
    for line in text.strip().splitlines():
        first, tenths, level, second, tenths2, level2 = line.split()
        pairs.append(((first, int(tenths), int(level)), (second, int(tenths2), int(level2))))
    return tuple(pairs)


POLICIES = {
    "cifar10": _policy("""
        invert 1 0  contrast 2 6
        rotate 7 2  translate-x 3 9
        sharpness 8 1  sharpness 9 3
        shear-y 5 8  translate-y 7 9
        auto-contrast 5 0  equalize 9 0
        shear-y 2 7  posterize 3 7
        color 4 3  brightness 6 7
        sharpness 3 9  brightness 7 9
        equalize 6 0  equalize 5 0
        contrast 6 7  sharpness 6 5
        color 7 7  translate-x 5 8
        equalize 3 0  auto-contrast 4 0
        translate-y 4 3  sharpness 2 6
        brightness 9 6  color 2 8
        solarize 5 2  invert 0 0
        equalize 2 0  auto-contrast 6 0
        equalize 2 0  equalize 6 0
        color 9 9  equalize 6 0
        auto-contrast 8 0  solarize 2 8
        brightness 1 3  color 7 0
        solarize 4 5  auto-contrast 9 0
        translate-y 9 9  translate-y 7 9
        auto-contrast 9 0  solarize 8 3
        equalize 8 0  invert 1 0
        translate-y 7 9  auto-contrast 9 0
    """),
    "imagenet": _policy("""
        posterize 4 8  rotate 6 9
        solarize 6 5  auto-contrast 6 0
        equalize 8 0  equalize 6 0
        posterize 6 7  posterize 6 6
        equalize 4 0  solarize 2 4
        equalize 4 0  rotate 8 8
        solarize 6 3  equalize 6 0
        posterize 8 5  equalize 10 0
        rotate 2 3  solarize 6 8
        equalize 6 0  posterize 4 6
        rotate 8 8  color 4 0
        rotate 4 9  equalize 6 0
        equalize 0 0  equalize 8 0
        invert 6 0  equalize 10 0
        color 6 4  contrast 10 8
        rotate 8 8  color 10 2
        color 8 8  solarize 8 7
        sharpness 4 7  invert 6 0
        shear-x 6 5  equalize 10 0
        color 4 0  equalize 6 0
        equalize 4 0  solarize 2 4
        solarize 6 5  auto-contrast 6 0
        invert 6 0  equalize 10 0
        color 6 4  contrast 10 8
        equalize 8 0  equalize 6 0
    """),
}
"""AutoAugment's pairs: for each operation, the tenths of its probability, and its level of `AUTO`."""

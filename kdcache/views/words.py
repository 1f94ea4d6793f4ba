"""Random words: how integers are taken from them. Exact on every machine."""

from typing import Any

import numpy as np

__all__ = ["Words", "below", "high", "low", "next_words"]

Words = np.ndarray[Any, np.dtype[np.uint64]]


def high(words: Words) -> Words:
    """Upper 32 bits of each word."""
    return words >> np.uint64(32)


def low(words: Words) -> Words:
    """Lower 32 bits of each word."""
    return words & np.uint64(0xFFFFFFFF)


def below(halves: Words, count: int | np.ndarray) -> np.ndarray:
    """Map 32 random bits to 0 .. count - 1, int64; off uniform by count * 2^-32 at most."""
    return (halves * np.asarray(count, np.uint64) >> np.uint64(32)).astype(np.int64)


def next_words(words: Words) -> Words:
    """Derive further words: a step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))

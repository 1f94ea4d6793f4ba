"""Beta(a, a), the distribution of lambda, from a table of quantiles: exact on every machine."""

import importlib.resources
import json
from functools import cache

import numpy as np

from kdcache.views.words import Words

__all__ = ["beta_lambdas"]

BITS = 24
"""lambda is a multiple of 2^-24, which float32 holds exactly."""


def beta_lambdas(uniform: Words, bits: int, alpha: float) -> np.ndarray:
    """Map uniform integers of so many bits to lambda from Beta(alpha, alpha): float64 (N,), in [0, 1]."""
    if alpha == 1:
        return uniform * np.float64(2.0**-bits)
    quantiles = _quantiles()[alpha]
    fraction_bits = bits - (len(quantiles) - 1).bit_length() + 1
    index, fraction = (
        (uniform >> np.uint64(fraction_bits)).astype(np.int64),
        (uniform & np.uint64(2**fraction_bits - 1)).astype(np.int64),
    )
    lower, upper = quantiles[index], quantiles[index + 1]
    return (lower + ((upper - lower) * fraction >> fraction_bits)) * 2.0**-BITS


@cache
def _quantiles() -> dict[float, np.ndarray]:
    """Quantiles of Beta(a, a) in parts of 2^-24, by a: int64 (intervals + 1,), evenly spaced in probability.

    The file has the lower half; the distribution is symmetric. ``data/make_beta_quantiles.py`` writes it.
    """
    text = (importlib.resources.files("kdcache.data") / "beta_quantiles.json").read_text("utf-8")
    halves = {float(alpha): np.array(half) for alpha, half in json.loads(text).items()}
    return {alpha: np.concatenate([half, 2**BITS - half[-2::-1]]) for alpha, half in halves.items()}

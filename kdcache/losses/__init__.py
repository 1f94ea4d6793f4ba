"""Losses and the figures drawn from logits and features. Arithmetic is in float32 or wider, whatever comes in."""

from kdcache.losses.logits import cross_entropy, decoupled, entropy, kd, kld, mixed_cross_entropy
from kdcache.losses.objective import Mixed, Objective, Part, Plain
from kdcache.losses.parts import PARTS, Setting, make_parts

__all__ = [
    "PARTS",
    "Mixed",
    "Objective",
    "Part",
    "Plain",
    "Setting",
    "cross_entropy",
    "decoupled",
    "entropy",
    "kd",
    "kld",
    "make_parts",
    "mixed_cross_entropy",
]

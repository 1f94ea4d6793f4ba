"""Losses and the figures drawn from logits. Arithmetic is in float32 or wider, whatever comes in."""

from kdcache.losses.logits import cross_entropy, entropy, kd, kld, mixed_cross_entropy
from kdcache.losses.objectives import OBJECTIVES, CrossEntropy, Distillation, Mixed, Objective, Plain

__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "Distillation",
    "Mixed",
    "Objective",
    "Plain",
    "cross_entropy",
    "entropy",
    "kd",
    "kld",
    "mixed_cross_entropy",
]

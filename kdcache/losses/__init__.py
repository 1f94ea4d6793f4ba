"""Losses as pure functions of logits and features, and the objective that training minimizes."""

from kdcache.losses.base import DistillLoss, LossContext, ViewOutputs
from kdcache.losses.features import at_loss, cc_loss, fitnet_loss, nst_loss, pkt_loss, rkd_loss, sp_loss, vid_loss
from kdcache.losses.logits import cross_entropy, dkd_loss, entropy, kd_loss, kl_divergence, mixed_cross_entropy
from kdcache.losses.objective import Objective, build_losses, build_objective

__all__ = [
    "DistillLoss",
    "LossContext",
    "Objective",
    "ViewOutputs",
    "at_loss",
    "build_losses",
    "build_objective",
    "cc_loss",
    "cross_entropy",
    "dkd_loss",
    "entropy",
    "fitnet_loss",
    "kd_loss",
    "kl_divergence",
    "mixed_cross_entropy",
    "nst_loss",
    "pkt_loss",
    "rkd_loss",
    "sp_loss",
    "vid_loss",
]

"""Losses as pure functions of logits and features, and the objective that training minimizes."""

from kdcache.losses.base import DistillLoss, LossContext, ViewOutputs
from kdcache.losses.crld import crld_loss
from kdcache.losses.dist import dist_loss
from kdcache.losses.features import (
    at_loss,
    cc_loss,
    embed_loss,
    fitnet_loss,
    nst_loss,
    pkt_loss,
    rkd_loss,
    sp_loss,
    vid_loss,
)
from kdcache.losses.logits import (
    balanced_class_weights,
    cross_entropy,
    entropy,
    kd_loss,
    kl_divergence,
    labelled_share,
    mixed_cross_entropy,
    standardize,
)
from kdcache.losses.mlkd import mlkd_loss, mlkd_strong_loss
from kdcache.losses.objective import Objective, build_losses, build_objective
from kdcache.losses.target_class import dkd_loss, nkd_loss, ofa_loss, rld_loss
from kdcache.losses.temperature import ttm_loss, wttm_loss

__all__ = [
    "DistillLoss",
    "LossContext",
    "Objective",
    "ViewOutputs",
    "at_loss",
    "balanced_class_weights",
    "build_losses",
    "build_objective",
    "cc_loss",
    "crld_loss",
    "cross_entropy",
    "dist_loss",
    "dkd_loss",
    "embed_loss",
    "entropy",
    "fitnet_loss",
    "kd_loss",
    "kl_divergence",
    "labelled_share",
    "mixed_cross_entropy",
    "mlkd_loss",
    "mlkd_strong_loss",
    "nkd_loss",
    "nst_loss",
    "ofa_loss",
    "pkt_loss",
    "rkd_loss",
    "rld_loss",
    "sp_loss",
    "standardize",
    "ttm_loss",
    "vid_loss",
    "wttm_loss",
]

"""Cross-view consistency: the student on each view of an image against the teacher on both."""

from torch import Tensor

from kdcache.config.losses import CRLDOptions
from kdcache.losses.base import LossWithOptions, ViewOutputs
from kdcache.losses.logits import cross_entropy, kl_divergence, log_softmax

__all__ = ["CrossViewKD", "crld_loss"]


def crld_loss(
    weak: tuple[Tensor, Tensor],
    strong: tuple[Tensor, Tensor],
    labels: Tensor,
    options: CRLDOptions | None = None,
    labelled_share: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, distillation within each view, and distillation across the views of an image.

    Zhang et al., "Cross-View Consistency Regularisation for Knowledge Distillation", 2024, arXiv:2412.16493.

    Parameters
    ----------
    weak, strong : tuple of Tensor, shape (B, C)
        Logits of the student and of the teacher for x, and for x'.
    labels : Tensor of int64, shape (B,)
    options : CRLDOptions, optional
        A row counts within the views where the teacher is sure of x, and across them where it is sure of x'.
    labelled_share : Tensor, shape (), optional
        See `cross_entropy`.

    Returns
    -------
    Tensor, shape ()
    """
    options = options or CRLDOptions()

    def distilled(student: Tensor, teacher: Tensor) -> Tensor:
        return options.temperature**2 * kl_divergence(student, teacher, options.temperature)

    def labelled(student: Tensor) -> Tensor:
        return cross_entropy(student, labels, labelled_share=labelled_share)

    within = distilled(*weak) + distilled(*strong)
    across = distilled(strong[0], weak[1]) + distilled(weak[0], strong[1])
    return (
        options.ce_weight * (labelled(weak[0]) + labelled(strong[0]))
        + options.within_weight * (confident_rows(weak[1], options.weak_threshold) * within).mean()
        + options.cross_weight * (confident_rows(strong[1], options.strong_threshold) * across).mean()
    )


def confident_rows(teacher: Tensor, threshold: float) -> Tensor:
    """1 where the teacher's largest probability, at temperature 1, reaches a threshold, else 0; shape (B,)."""
    probability = log_softmax(teacher).exp().amax(1)
    return (probability >= threshold).to(probability.dtype)


class CrossViewKD(LossWithOptions[CRLDOptions]):
    """`crld_loss`."""

    options_class = CRLDOptions

    def forward(self, x: ViewOutputs, mixed: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        return crld_loss(x.logits(), mixed.logits(), x.labels, self.options, x.labelled_share)

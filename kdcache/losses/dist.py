"""DIST: correlations between teacher and student in place of a divergence."""

from torch import Tensor

from kdcache.config.losses import DISTOptions
from kdcache.losses.base import LossWithOptions, ViewOutputs
from kdcache.losses.logits import log_softmax

__all__ = ["DIST", "dist_loss"]

_EPSILON = 1e-8


def dist_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """Correlate the softened probabilities of student and teacher, within each row and within each class.

    Huang et al., "Knowledge Distillation from A Stronger Teacher", 2022, arXiv:2205.10536.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C)
    temperature : float
    beta, gamma : float
        Weights of the relation between the classes of a row, and of that between the rows of a class.

    Returns
    -------
    Tensor, shape ()
        The squared temperature times the sum of 1 minus each mean correlation.
    """
    q, p = (log_softmax(logits, temperature).exp() for logits in (student, teacher))
    return temperature**2 * (beta * (1 - _correlation(q, p)) + gamma * (1 - _correlation(q.T, p.T)))


def _correlation(one: Tensor, two: Tensor) -> Tensor:
    """Mean of Pearson's correlation over the rows. The constant counts: norms of probabilities are small."""
    one, two = (values - values.mean(1, keepdim=True) for values in (one, two))
    return ((one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1) + _EPSILON)).mean()


class DIST(LossWithOptions[DISTOptions]):
    """`dist_loss`."""

    options_class = DISTOptions

    def forward(self, views: ViewOutputs) -> Tensor:
        """See `DistillLoss`."""
        options = self.options
        return dist_loss(*views.logits(), options.temperature, options.beta, options.gamma)

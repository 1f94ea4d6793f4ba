"""The training objective: a weighted sum of losses, each on the views that it is declared to act on."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from kdcache.choices import LOSSES, import_object
from kdcache.compute import random_weights
from kdcache.config import StudentConfig
from kdcache.losses.base import DistillLoss, LossContext, ViewOutputs
from kdcache.models import Network

__all__ = ["Objective", "build_losses", "build_objective"]


class Objective(nn.Module):
    """A weighted sum of losses, each a mean over its own rows.

    With ``ce`` and ``kd`` it is Equation 1 on x, and distillation alone on x' (Section 3.2). Cross-entropy by itself
    trains on x' with mixed labels where there are mixed views, and not on x.

    Parameters
    ----------
    weights : mapping of str to float
        Weight of each loss, by its name in `kdcache.choices.LOSSES`.
    losses : mapping of str to DistillLoss
        The same names.
    """

    def __init__(self, weights: Mapping[str, float], losses: Mapping[str, DistillLoss]) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.losses = nn.ModuleDict(losses)
        self._warm_ups = {name: loss.warm_up for name, loss in losses.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses, in the order of the sum."""
        return tuple(self.weights)

    def trains_on_x(self, mixing: bool) -> bool:
        """Whether x goes through the student too when there are mixed views."""
        return not mixing or self.weights.keys() != {"ce"}

    def forward(self, x: ViewOutputs | None, mixed: ViewOutputs | None) -> dict[str, Tensor]:
        """Compute each loss of a step times its weight, shape (); `total` is what is minimized.

        Parameters
        ----------
        x, mixed : ViewOutputs or None
            ``None`` where the student is not trained on such views.
        """
        found = {}
        for name, weight in self.weights.items():
            loss = _on_views(self.losses[name], LOSSES[name].acts_on, x, mixed)
            if loss.shape != ():
                raise ValueError(f"loss {name} returned a tensor of shape {tuple(loss.shape)}, expected ()")
            found[name] = weight * loss
        return found

    def total(self, losses: Mapping[str, Tensor], epoch: int) -> Tensor:
        """Sum up the losses of a step, those in their warm-up with the part of it that has passed.

        Parameters
        ----------
        losses : mapping of str to Tensor
            What `forward` returned.
        epoch : int
            Counted from 0.
        """
        now = epoch + 1
        warmed = [
            loss if now >= (warm_up := self._warm_ups[name]) else now / warm_up * loss for name, loss in losses.items()
        ]
        return torch.stack(warmed).sum()


def _on_views(loss: nn.Module, acts_on: str, x: ViewOutputs | None, mixed: ViewOutputs | None) -> Tensor:
    """Apply a loss to the views that it acts on, weighting each mean by this process's share of the rows."""
    trained_on = [views for views in (x, mixed) if views is not None]
    # Cross-entropy alone is trained on mixed views without x.
    calls = {"x": [trained_on[:1]], "each": [[views] for views in trained_on], "pairs": [trained_on]}[acts_on]
    terms: list[Tensor] = [views[0].process_weight * loss(*views) for views in calls]
    return sum(terms[1:], terms[0])


def build_losses(names: Iterable[str], context: LossContext) -> dict[str, DistillLoss]:
    """Build losses by name, their initial weights drawn from the context's seed."""
    with random_weights(context.seed):
        return {name: import_object(LOSSES[name].implementation)(context) for name in names}


def build_objective(config: StudentConfig, student: Network, teacher: Network | None, labels: Tensor) -> Objective:
    """Build the objective that a config names.

    Parameters
    ----------
    config : StudentConfig
    student : Network
    teacher : Network or None
        ``None`` in a run without a teacher.
    labels : Tensor of int64, shape (N,)
        Labels of the training set.
    """
    networks = [student, teacher] if teacher is not None and config.needs_features else []
    shapes = [network.feature_shapes() for network in networks] or [(), ()]
    context = LossContext(shapes[0], shapes[1], labels, config.temperature, config.seed, config.losses)
    return Objective(config.loss_weights, build_losses(config.loss_weights, context))

"""The training objective: a weighted sum of losses, each on the views that it is declared to act on."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdcache.choices import LOSSES
from kdcache.compute import random_weights
from kdcache.config import StudentConfig
from kdcache.datasets import Dataset
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.extensions import call, explained, import_object, is_address
from kdcache.losses.base import DistillLoss, LossContext, ViewOutputs
from kdcache.losses.logits import balanced_class_weights
from kdcache.models import Network

__all__ = ["Objective", "build_losses", "build_objective", "check_labels"]


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
        self.losses = nn.ModuleDict({_key(name): loss for name, loss in losses.items()})
        self._unchecked = set(filter(is_address, losses))
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
            calls = _views_of(LOSSES[name].acts_on, x, mixed)
            with explained(f"loss {name}", name):
                values = [self.losses[_key(name)](*views) for views in calls]
            for value, views in zip(values, calls, strict=True):
                _check_value(name, value)
                if name in self._unchecked:
                    _check_gradient(name, value, views)
            self._unchecked.discard(name)
            # A mean over this process's rows counts by its share of the rows of all processes.
            terms = [views[0].process_weight * value for value, views in zip(values, calls, strict=True)]
            found[name] = weight * sum(terms[1:], terms[0])
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


def _views_of(acts_on: str, x: ViewOutputs | None, mixed: ViewOutputs | None) -> list[list[ViewOutputs]]:
    """List the arguments of each call of a loss."""
    trained_on = [views for views in (x, mixed) if views is not None]
    # Cross-entropy alone is trained on mixed views without x.
    return {"x": [trained_on[:1]], "each": [[views] for views in trained_on], "pairs": [trained_on]}[acts_on]


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, Tensor) or value.shape != ():
        got = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise KdcacheError(problem(f"loss {name}: what it returns", expected="a tensor of shape ()", got=got))


def _check_gradient(name: str, value: Tensor, calls: Sequence[ViewOutputs]) -> None:
    """Check that a loss depends on the student's outputs for all views that it is declared to act on."""
    for views in calls:
        known = (views.student, views.kl, views.student_vectors, *views.student_features)
        outputs = [output for output in known if output is not None and output.requires_grad]
        if not outputs:  # nothing is trained
            continue
        reached = value.requires_grad and any(
            gradient is not None
            for gradient in torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
        )
        if not reached:
            kind = "x" if views.lam is None else "x'"
            expected = f"a loss that depends on the student's outputs for {kind}"
            raise KdcacheError(problem(f"loss {name}", expected=expected, got="one that does not"))


def _key(name: str) -> str:
    """Name a loss in a ``ModuleDict``, whose keys may have no dots."""
    return name.replace(".", "/")


def check_labels(config: StudentConfig, data: Dataset) -> None:
    """Refuse cross-entropy where no training image has a label.

    Raises
    ------
    UsageError
    """
    if data.num_unlabelled == len(data.train) and config.loss_weights.get("ce"):
        remedy = "Give --alpha 1 with --loss kd, or add ce:0 to another loss."
        raise UsageError(problem("weight of cross-entropy", expected="0 without labels", got="more", remedy=remedy))


def build_losses(names: Iterable[str], context: LossContext) -> dict[str, DistillLoss]:
    """Build losses by name, their initial weights drawn from the context's seed."""
    with random_weights(context.seed):
        return {name: _build_loss(LOSSES[name].implementation, context) for name in names}


def _build_loss(implementation: str, context: LossContext) -> DistillLoss:
    if is_address(implementation):
        return call("loss", implementation, (DistillLoss, "a kdcache.losses.DistillLoss"), context)
    loss: DistillLoss = import_object(implementation)(context)
    return loss


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
    networks = [] if teacher is None else [student, teacher]
    shapes = [network.feature_shapes() if config.needs_features else () for network in networks] or [(), ()]
    widths = [network.linear_head().in_features if config.needs_vectors else 0 for network in networks] or [0, 0]
    context = LossContext(
        student_shapes=shapes[0],
        teacher_shapes=shapes[1],
        labels=labels,
        temperature=config.temperature,
        seed=config.seed,
        options=config.losses,
        label_smoothing=config.label_smoothing,
        class_weights=balanced_class_weights(labels, student.num_classes) if config.balances_classes else None,
        student_width=widths[0],
        teacher_width=widths[1],
    )
    return Objective(config.loss_weights, build_losses(config.loss_weights, context))

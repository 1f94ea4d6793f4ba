"""A last layer in closed form: the linear discriminant of the vectors of labelled images.

It makes a teacher of a network that has no classes, or others: one that was trained without labels, or to match texts.
"""

import torch
from torch import Tensor

from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.models import Network

__all__ = ["LinearDiscriminant", "fit_head"]

IMAGES_AT_ONCE = 1024


class LinearDiscriminant:
    """Linear discriminant analysis of vectors that come in parts: Gaussian classes with one covariance.

    Logits are the logarithms of each class's density times its share of the vectors, without what all classes have in
    common. The covariance is shrunk towards a multiple of the identity by the oracle approximating estimate (Chen,
    Wiesel, Eldar and Hero, 2010, arXiv:0907.4698, Equation 23), so that fewer vectors than dimensions are enough.

    Parameters
    ----------
    classes : int
        C.
    width : int
        D.
    """

    def __init__(self, classes: int, width: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.sums = torch.zeros(classes, width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors (B, D) with labels (B,)."""
        vectors = vectors.cpu().double()
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.sums.index_add_(0, labels, vectors)
        self.products += vectors.T @ vectors

    def solve(self) -> tuple[Tensor, Tensor]:
        """Compute the layer: its weight (C, D) and bias (C,), float32.

        Raises
        ------
        UsageError
            If a class has no vector, or there are not more vectors than classes.
        KdcacheError
            If the vectors of each class are all the same, or not finite.
        """
        count = self.counts.sum()
        if bool((self.counts == 0).any()) or count <= len(self.counts):
            got = f"{int(count)} images of {int((self.counts > 0).sum())} classes"
            expected = f"images of all {len(self.counts)} classes, and more than one of some"
            raise UsageError(problem("images to fit a last layer to", expected=expected, got=got))
        means = self.sums / self.counts[:, None]
        covariance = (self.products - means.T @ self.sums) / (count - len(self.counts))
        width, trace, squares = len(covariance), covariance.trace(), covariance.square().sum()
        if not trace > 0 or not trace.isfinite():
            got = "the same vector for each" if trace <= 0 else "vectors that are not finite"
            raise KdcacheError(problem("images of a class", expected="vectors that differ", got=got))
        spread = (count + 1 - 2 / width) * (squares - trace.square() / width)
        ratio = ((1 - 2 / width) * squares + trace.square()) / spread
        shrinkage = ratio.nan_to_num(nan=0.0).clamp(0, 1)  # of a single dimension there is none
        shrunk = (1 - shrinkage) * covariance + shrinkage * trace / width * torch.eye(width, dtype=torch.float64)
        weight = torch.linalg.solve(shrunk, means.T).T
        bias = (self.counts / count).log() - (weight * means).sum(1) / 2
        return weight.float(), bias.float()


def fit_head(network: Network, split: Split, compute: Compute) -> None:
    """Give a network the `LinearDiscriminant` of the clean views of labelled images as its last layer.

    Parameters
    ----------
    network : Network
        Its last layer must be linear.
    split : Split
        In the rendering of the network.
    compute : Compute

    Raises
    ------
    UsageError, KdcacheError
        See `Network.linear_head` and `LinearDiscriminant.solve`.
    """
    head, teacher = network.to(compute.device).linear_head(), Teacher(network, compute)
    if head.bias is None:
        raise UsageError(problem(f"last layer of {network.name}", expected="one with a bias", got="none"))
    discriminant = LinearDiscriminant(network.num_classes, head.in_features)
    for samples in torch.arange(len(split)).split(IMAGES_AT_ONCE):
        discriminant.add(teacher.vectors(split.take(samples).to(compute.device)), split.labels[samples])
    weight, bias = discriminant.solve()
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)

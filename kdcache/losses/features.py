"""Losses that compare inner tensors of student and teacher: pure functions of one pair of maps or vectors.

Each follows the paper it names, in the form that RepDistiller gave it, whose weights the recipes of this field quote.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["attention", "congruence", "distribution", "hint", "relations", "selectivity", "similarity", "variational"]

_EPSILON = 1e-7


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors)


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps to the size of the smaller."""
    size = min(student.shape[-1], teacher.shape[-1])
    return tuple(  # type: ignore[return-value]
        maps if maps.shape[-1] == size else functional.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)
    )


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: squared difference of the normalised maps of mean activation energy.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), with p = 2.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C, H, W)
        C and the size may differ: the larger map is pooled.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _same_size(*_wide(student, teacher))
    one, two = (functional.normalize(maps.pow(2).mean(1).flatten(1)) for maps in (student, teacher))
    return (one - two).pow(2).mean()


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving: squared difference of the row-normalised similarities of the samples of the batch.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation" (2019).

    Parameters
    ----------
    student, teacher : Tensor, shape (B, ...)

    Returns
    -------
    Tensor, shape ()
    """
    one, two = (functional.normalize(flat @ flat.T) for flat in (x.flatten(1) for x in _wide(student, teacher)))
    return (one - two).pow(2).mean()


def selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """Neuron selectivity transfer: maximum mean discrepancy of the channels' maps, with a squared kernel.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (2017).

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C, H, W)
        C and the size may differ: the larger map is pooled.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _same_size(*_wide(student, teacher))
    one, two = (functional.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.transpose(1, 2)).pow(2).mean()

    return kernel(two, two).detach() + kernel(one, one) - 2 * kernel(one, two)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNet: mean squared difference, the student's tensor being regressed to the teacher's shape.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015).

    Parameters
    ----------
    student, teacher : Tensor
        Of one shape.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _wide(student, teacher)
    return functional.mse_loss(student, teacher)


def relations(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relational: differences of the distances and of the angles between the samples of the batch.

    Park et al., "Relational Knowledge Distillation" (2019).

    Parameters
    ----------
    student, teacher : Tensor, shape (B, D)
        D may differ.
    distance, angle : float
        Weights of the two parts.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _wide(student, teacher)
    far = functional.smooth_l1_loss(_distances(student), _distances(teacher))
    wide = functional.smooth_l1_loss(_angles(student), _angles(teacher))
    return distance * far + angle * wide


def _distances(vectors: Tensor) -> Tensor:
    """Distances between all rows, on a scale on which those that are not 0 are 1 on the mean."""
    squares = vectors.pow(2).sum(1)
    squared = (squares[:, None] + squares[None] - 2 * vectors @ vectors.T).clamp(min=1e-12)
    distances = squared.sqrt() * (1 - torch.eye(len(vectors), device=vectors.device, dtype=vectors.dtype))
    return distances / (distances.sum() / distances.count_nonzero())  # a mask would make the host wait for a GPU


def _angles(vectors: Tensor) -> Tensor:
    directions = functional.normalize(vectors[None] - vectors[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def distribution(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic transfer: divergence of the samples' similarities, taken as probabilities.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer" (2018).

    Parameters
    ----------
    student, teacher : Tensor, shape (B, D)
        D may differ.

    Returns
    -------
    Tensor, shape ()
    """
    q, p = (_neighbours(vectors) for vectors in _wide(student, teacher))
    return (p * ((p + _EPSILON) / (q + _EPSILON)).log()).mean()


def _neighbours(vectors: Tensor) -> Tensor:
    directions = vectors / (vectors.norm(dim=1, keepdim=True) + _EPSILON)
    near = (directions @ directions.T + 1) / 2
    return near / near.sum(1, keepdim=True)


def congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Correlation congruence: products of the differences of neighbouring samples of the batch.

    Peng et al., "Correlation Congruence for Knowledge Distillation" (2019).

    Parameters
    ----------
    student, teacher : Tensor, shape (B, D)
        Embeddings of one width.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _wide(student, teacher)
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()


def variational(predicted: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Variational information: negative log-likelihood of the teacher's map under a Gaussian, without its constant.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer" (2019).

    Parameters
    ----------
    predicted, teacher : Tensor, shape (B, C, H, W)
        Mean that is regressed from the student's map; the size may differ, the larger is pooled.
    variance : Tensor, shape (C,)
        Of each channel, positive.

    Returns
    -------
    Tensor, shape ()
    """
    predicted, teacher, variance = _wide(*_same_size(predicted, teacher), variance)
    variance = variance[:, None, None]
    return 0.5 * ((predicted - teacher).pow(2) / variance + variance.log()).mean()

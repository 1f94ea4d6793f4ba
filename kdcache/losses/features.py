"""Losses on features: pure functions of one pair of feature maps or vectors.

Each follows the paper it names, in the form that RepDistiller gave it, since published recipes quote its weights.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["at_loss", "cc_loss", "embed_loss", "fitnet_loss", "nst_loss", "pkt_loss", "rkd_loss", "sp_loss", "vid_loss"]

_EPSILON = 1e-7
_MIN_DISTANCE = 1e-12


def _at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors)


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps to the size of the smaller one."""
    size = min(student.shape[-1], teacher.shape[-1])
    return tuple(  # type: ignore[return-value]
        maps if maps.shape[-1] == size else functional.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)
    )


def at_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: squared difference of the normalized spatial attention maps.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017, arXiv:1612.03928, with p = 2.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C, H, W)
        C and the size may differ; the larger map is pooled.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _same_size(*_at_least_float32(student, teacher))
    one, two = (functional.normalize(maps.pow(2).mean(1).flatten(1)) for maps in (student, teacher))
    return (one - two).pow(2).mean()


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity preservation: squared difference of the row-normalized similarity matrices of the batch.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", 2019, arXiv:1907.09682.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, ...)

    Returns
    -------
    Tensor, shape ()
    """
    one, two = (
        functional.normalize(flat @ flat.T) for flat in (x.flatten(1) for x in _at_least_float32(student, teacher))
    )
    return (one - two).pow(2).mean()


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Neuron selectivity transfer: maximum mean discrepancy of the channels' maps, with a squared kernel.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C, H, W)
        C and the size may differ; the larger map is pooled.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _same_size(*_at_least_float32(student, teacher))
    one, two = (functional.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.transpose(1, 2)).pow(2).mean()

    return kernel(two, two).detach() + kernel(one, one) - 2 * kernel(one, two)


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNets hint: mean squared error between the student's regressed features and the teacher's.

    Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, arXiv:1412.6550.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, C, H, W)
        If sizes differ, the larger map is pooled.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _same_size(*_at_least_float32(student, teacher))
    return functional.mse_loss(student, teacher)


def embed_loss(student: Tensor, teacher: Tensor, distance: str = "cosine") -> Tensor:
    """Distance of the student's projected vectors from the teacher's.

    As mean squared error it is the hint of FitNets (see `fitnet_loss`) on vectors; as cosine distance, what AM-RADIO
    takes for vectors that summarize an image: Ranzinger et al., "AM-RADIO: Agglomerative Vision Foundation Model",
    2024, arXiv:2312.06709.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, D)
    distance : str
        ``cosine``: 1 minus the cosine of the angle between the vectors. ``mse``: the mean of squared differences.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _at_least_float32(student, teacher)
    if distance == "mse":
        return functional.mse_loss(student, teacher)
    return 1 - functional.cosine_similarity(student, teacher).mean()


def rkd_loss(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relational distillation: Huber loss of the distances and of the angles between the samples of the batch.

    Park et al., "Relational Knowledge Distillation", 2019, arXiv:1904.05068.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, D)
        D may differ.
    distance, angle : float
        Weights of the two terms.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _at_least_float32(student, teacher)
    distance_term = functional.smooth_l1_loss(_distances(student), _distances(teacher))
    angle_term = functional.smooth_l1_loss(_angles(student), _angles(teacher))
    return distance * distance_term + angle * angle_term


def _distances(vectors: Tensor) -> Tensor:
    """Pairwise distances of the rows, divided by the mean of those that are not 0."""
    squares = vectors.pow(2).sum(1)
    squared = (squares[:, None] + squares[None] - 2 * vectors @ vectors.T).clamp(min=1e-12)
    distances = squared.sqrt() * (1 - torch.eye(len(vectors), device=vectors.device, dtype=vectors.dtype))
    # A mask would make the host wait for a GPU. A single row has no distance.
    return distances / (distances.sum() / distances.count_nonzero().clamp(min=1)).clamp(min=_MIN_DISTANCE)


def _angles(vectors: Tensor) -> Tensor:
    directions = functional.normalize(vectors[None] - vectors[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: KL divergence of the batch's similarities, read as probabilities.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018,
    arXiv:1803.10837.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, D)
        D may differ.

    Returns
    -------
    Tensor, shape ()
    """
    q, p = (_similarity_distribution(vectors) for vectors in _at_least_float32(student, teacher))
    return (p * ((p + _EPSILON) / (q + _EPSILON)).log()).mean()


def _similarity_distribution(vectors: Tensor) -> Tensor:
    directions = vectors / (vectors.norm(dim=1, keepdim=True) + _EPSILON)
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Correlation congruence: products of the differences of neighboring samples of the batch.

    Peng et al., "Correlation Congruence for Knowledge Distillation", 2019, arXiv:1904.01802.

    Parameters
    ----------
    student, teacher : Tensor, shape (B, D)
        Embeddings of one width.

    Returns
    -------
    Tensor, shape ()
    """
    student, teacher = _at_least_float32(student, teacher)
    difference = (student - teacher).abs()
    if len(difference) < 2:
        return 0.0 * difference.sum()  # it has no neighbor
    return (difference[:-1] * difference[1:]).sum(1).mean()


def vid_loss(predicted: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Variational information distillation: Gaussian negative log-likelihood of the teacher's map, up to a constant.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", 2019, arXiv:1904.05835.

    Parameters
    ----------
    predicted, teacher : Tensor, shape (B, C, H, W)
        The mean is regressed from the student's map. If sizes differ, the larger map is pooled.
    variance : Tensor, shape (C,)
        Of each channel, positive.

    Returns
    -------
    Tensor, shape ()
    """
    predicted, teacher, variance = _at_least_float32(*_same_size(predicted, teacher), variance)
    variance = variance[:, None, None]
    return 0.5 * ((predicted - teacher).pow(2) / variance + variance.log()).mean()

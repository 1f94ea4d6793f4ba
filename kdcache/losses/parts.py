"""The losses of a sum besides cross-entropy and distillation: what each reads, trains and remembers."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.losses import features
from kdcache.losses.crd import ContrastMemory
from kdcache.losses.logits import decoupled
from kdcache.losses.objective import Part, Plain

__all__ = ["PARTS", "Setting", "make_parts"]

EMBEDDING = 128
"""Width of the embeddings of CRD and of correlation congruence."""

NEGATIVES = 16_384
"""Negatives of CRD for each sample."""


class Setting(NamedTuple):
    """What a loss is made for.

    Attributes
    ----------
    student, teacher : tuple of tuple of int
        Shapes of the features of one image, first to last, without the batch; empty where no loss reads them.
    labels : Tensor of int64, shape (N,)
        Of the training samples.
    temperature : float
        tau.
    seed : int
        Of what a loss draws.
    """

    student: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[int, ...], ...]
    labels: Tensor
    temperature: float
    seed: int


class Decoupled(Part):
    """`decoupled`, with the published weights 1 and 8."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.temperature = setting.temperature

    def forward(self, plain: Plain) -> Tensor:
        """See `Part`."""
        assert plain.teacher is not None
        return decoupled(plain.teacher, plain.student, plain.labels, self.temperature)


class OfMaps(Part):
    """A pure function of each pair of maps between the first and the vector, added up."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, plain: Plain) -> Tensor:
        """See `Part`."""
        pairs = zip(plain.student_features[1:-1], plain.teacher_features[1:-1], strict=False)
        return torch.stack([self.loss(student, teacher) for student, teacher in pairs]).sum()


class OfOne(Part):
    """A pure function of one pair of features: -2 is the last map, -1 the vector."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], place: int) -> None:
        super().__init__()
        self.loss, self.place = loss, place

    def forward(self, plain: Plain) -> Tensor:
        """See `Part`."""
        return self.loss(plain.student_features[self.place], plain.teacher_features[self.place])


class Hint(Part):
    """`features.hint` on the middle map, which a convolution takes from the student's shape to the teacher's."""

    PLACE = 2

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        (inputs, size, _), (outputs, wanted, _) = setting.student[self.PLACE], setting.teacher[self.PLACE]
        convolution: nn.Module
        if size == 2 * wanted:
            convolution = nn.Conv2d(inputs, outputs, 3, 2, padding=1)
        elif 2 * size == wanted:
            convolution = nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1)
        else:
            convolution = nn.Conv2d(inputs, outputs, 1 + max(size - wanted, 0))
        self.regress = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, plain: Plain) -> Tensor:
        """See `Part`."""
        return features.hint(self.regress(plain.student_features[self.PLACE]), plain.teacher_features[self.PLACE])


class Congruence(Part):
    """`features.congruence` of trained linear embeddings of both vectors."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        widths = (math.prod(of[-1]) for of in (setting.student, setting.teacher))
        self.student, self.teacher = (nn.Linear(width, EMBEDDING) for width in widths)

    def forward(self, plain: Plain) -> Tensor:
        """See `Part`."""
        return features.congruence(self.student(plain.student_features[-1]), self.teacher(plain.teacher_features[-1]))


class Variational(Part):
    """`features.variational` of each pair of inner maps: trained means, and a trained variance for each channel."""

    VARIANCE, LEAST = 5.0, 1e-5

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        shapes = list(zip(setting.student[1:-1], setting.teacher[1:-1], strict=False))
        self.means = nn.ModuleList(self._regressor(student[0], teacher[0]) for student, teacher in shapes)
        start = math.log(math.exp(self.VARIANCE - self.LEAST) - 1)
        self.spreads = nn.ParameterList(torch.full((teacher[0],), start) for _, teacher in shapes)

    @staticmethod
    def _regressor(inputs: int, outputs: int) -> nn.Module:
        widths = pairwise((inputs, outputs, outputs, outputs))
        first, second, third = (nn.Conv2d(narrow, wide, 1, bias=False) for narrow, wide in widths)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, plain: Plain) -> Tensor:
        """See `Part`."""
        pairs = zip(plain.student_features[1:-1], plain.teacher_features[1:-1], strict=False)
        losses = []
        for mean, spread, (student, teacher) in zip(self.means, self.spreads, pairs, strict=True):
            losses.append(features.variational(mean(student), teacher, functional.softplus(spread) + self.LEAST))
        return torch.stack(losses).sum()


class Contrast(Part):
    """Contrastive representation distillation, see `ContrastMemory`.

    Negatives are drawn with replacement and uniformly from the samples of other classes, by hashing (seed, epoch,
    sample, number): the same whatever the batch, in one step on the device.
    """

    order: Tensor
    begin: Tensor
    count: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.seed = setting.seed
        widths = (math.prod(of[-1]) for of in (setting.student, setting.teacher))
        self.student, self.teacher = (nn.Linear(width, EMBEDDING) for width in widths)
        self.memory = ContrastMemory(len(setting.labels), EMBEDDING)
        count = torch.bincount(setting.labels)
        self.register_buffer("order", setting.labels.argsort(stable=True), persistent=False)
        self.register_buffer("begin", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def forward(self, plain: Plain) -> Tensor:
        """See `Part`."""
        student = functional.normalize(self.student(plain.student_features[-1]))
        teacher = functional.normalize(self.teacher(plain.teacher_features[-1]))
        return self.memory(student, teacher, plain.samples, self.negatives(plain.samples, plain.labels, plain.epoch))

    def negatives(self, samples: Tensor, labels: Tensor, epoch: int, number: int = NEGATIVES) -> Tensor:
        """Draw samples of other classes: int64 (B, K)."""
        words = _hash(torch.arange(number, device=samples.device), samples[:, None], epoch, self.seed)
        begin, count = self.begin[labels][:, None], self.count[labels][:, None]
        place = (words >> 33 & 0x3FFFFFFF) * (len(self.order) - count) >> 30
        return self.order[place + count * (place >= begin)]


def _hash(first: Tensor, *numbers: Tensor | int) -> Tensor:
    """Mix whole numbers into 64 random-looking bits, element by element: multiply, and fold the high bits back."""
    mixed = first
    for number in (0, *numbers):
        mixed = (mixed ^ number) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
        mixed = (mixed ^ (mixed >> 29 & 0x7FFFFFFFF)) * 0x369DEA0F31A53F85
        mixed = mixed ^ (mixed >> 32 & 0xFFFFFFFF)
    return mixed


PARTS: dict[str, Callable[[Setting], Part]] = {
    "dkd": Decoupled,
    "crd": Contrast,
    "sp": lambda setting: OfOne(features.similarity, -2),
    "at": lambda setting: OfMaps(features.attention),
    "fitnet": Hint,
    "rkd": lambda setting: OfOne(features.relations, -1),
    "pkt": lambda setting: OfOne(features.distribution, -1),
    "cc": Congruence,
    "vid": Variational,
    "nst": lambda setting: OfMaps(features.selectivity),
}
"""What makes each loss that acts on x alone."""


def make_parts(names: Iterable[str], setting: Setting) -> dict[str, Part]:
    """Make the losses of a sum that are not ``ce`` or ``kd``; their weights are drawn from the setting's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(setting.seed)
        return {name: PARTS[name](setting) for name in names if name in PARTS}

"""Residual networks for small images."""

from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from kdcache.models.base import FeatureNet, init_convolutions, pool

__all__ = ["NETWORKS", "ResNet"]


class _Block(nn.Module):
    """Basic block: two 3x3 convolutions with a shortcut, ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Identity()
            if (inputs, stride) == (outputs, 1)
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)  # in place: saves 1.3 % of a ResNet20 step on a CPU
        return self.relu(out)


class ResNet(FeatureNet):
    """A residual network for CIFAR.

    He et al., "Deep Residual Learning for Image Recognition" (2016, arXiv:1512.03385), section 4.2.

    Parameters
    ----------
    depth : int
        Layers with weights: 6n + 2 for n blocks in each of the three stages.
    widths : tuple of int
        Channels of the stem and of the three stages. The "x4" networks of Tian et al., "Contrastive Representation
        Distillation" (2020, arXiv:1910.10699), widen the stages by 4 and the stem by 2.
    num_classes : int
        Width of the logits.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                _Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range((depth - 2) // 6 - 1))
            )
            for (inputs, outputs), stride in zip(pairwise(widths), (1, 2, 2), strict=True)
        )
        self.fc = nn.Linear(widths[-1], num_classes)
        init_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        """The layer ``fc``."""
        return self.fc

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs of the stem and the three stages, after ReLU, and the pooled vector."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return [*maps, pool(maps[-1])]


_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)

NETWORKS = {
    "resnet8": partial(ResNet, 8, _NARROW),
    "resnet14": partial(ResNet, 14, _NARROW),
    "resnet20": partial(ResNet, 20, _NARROW),
    "resnet32": partial(ResNet, 32, _NARROW),
    "resnet44": partial(ResNet, 44, _NARROW),
    "resnet56": partial(ResNet, 56, _NARROW),
    "resnet110": partial(ResNet, 110, _NARROW),
    "resnet8x4": partial(ResNet, 8, _WIDE),
    "resnet32x4": partial(ResNet, 32, _WIDE),
}

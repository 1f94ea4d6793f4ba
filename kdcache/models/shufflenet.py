"""The two ShuffleNets, for small images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, channel_shuffle

from kdcache.models.base import FeatureNet

__all__ = ["NETWORKS", "ShuffleV1", "ShuffleV2"]

_STEM = 24


class _BlockV1(nn.Module):
    """Grouped convolutions whose channels are shuffled between; halving blocks append their pooled input."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        made = outputs - inputs if stride == 2 else outputs
        hidden = made // 4
        # Grouping the few channels of the stem would leave too little to each group.
        self.groups = 1 if inputs == _STEM else groups
        self.conv1 = nn.Conv2d(inputs, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, made, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(self.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        if self.stride == 2:
            # Means of what is activated stay as they are. Activated after, bn3 would be given a gradient that is not
            # contiguous, for which torch takes fifteen times as long on a processor.
            return torch.cat([self.relu(out), avg_pool2d(x, 3, 2, padding=1)], 1)
        return self.relu(out + x)


class ShuffleV1(FeatureNet):
    """ShuffleNet: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network" (2018).

    Parameters
    ----------
    groups : int
    widths : tuple of int
        Channels of the three stages.
    num_classes : int
        Width of the logits.

    Notes
    -----
    As Tian et al., "Contrastive Representation Distillation" (2020), use it for 32x32: the stem is a 1x1 convolution
    that keeps the size.
    """

    def __init__(self, groups: int, widths: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        inputs = _STEM
        for width, count in zip(widths, (4, 8, 4), strict=True):
            rest = (_BlockV1(width, width, 1, groups) for _ in range(count - 1))
            stages.append(nn.Sequential(_BlockV1(inputs, width, 2, groups), *rest))
            inputs = width
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, num_classes)

    @property
    def head(self) -> nn.Linear:
        """The layer ``linear``."""
        return self.linear

    def features(self, images: Tensor) -> list[Tensor]:
        """The stem and the three stages, all activated, and the pooled vector."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return [*maps, self.pool(maps[-1])]


class _BlockV2(nn.Module):
    """Half of the channels pass, the others are filtered; then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(out)))))
        out = self.relu(self.bn3(self.conv3(out)))
        return channel_shuffle(torch.cat([passed, out], 1), 2)


class _HalvingV2(nn.Module):
    """Both halves of the outputs are made of all inputs, at half the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        left = self.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu(self.bn3(self.conv3(x)))))
        right = self.relu(self.bn5(self.conv5(right)))
        return channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleV2(FeatureNet):
    """ShuffleNetV2: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (2018).

    Parameters
    ----------
    widths : tuple of int
        Channels of the three stages, and the length of the vector.
    num_classes : int
        Width of the logits.

    Notes
    -----
    As Tian et al., "Contrastive Representation Distillation" (2020), use it for 32x32: the stem is a 1x1 convolution
    that keeps the size.
    """

    def __init__(self, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        inputs = _STEM
        for width, count in zip(widths, (3, 7, 3), strict=False):
            stages.append(nn.Sequential(_HalvingV2(inputs, width), *(_BlockV2(width) for _ in range(count))))
            inputs = width
        self.layer1, self.layer2, self.layer3 = stages
        self.conv2 = nn.Conv2d(inputs, widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)

    @property
    def head(self) -> nn.Linear:
        """The layer ``linear``."""
        return self.linear

    def features(self, images: Tensor) -> list[Tensor]:
        """The stem and the three stages, all activated, and the pooled vector."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return [*maps, self.pool(self.relu(self.bn2(self.conv2(maps[-1]))))]


NETWORKS: dict[str, Callable[[int], FeatureNet]] = {
    "ShuffleV1": partial(ShuffleV1, 3, (240, 480, 960)),
    "ShuffleV2": partial(ShuffleV2, (116, 232, 464, 1024)),
}

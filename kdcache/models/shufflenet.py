"""ShuffleNet V1 and V2, for small images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, channel_shuffle

from kdcache.models.base import FeatureNet, pool

__all__ = ["NETWORKS", "ShuffleV1", "ShuffleV2"]

_STEM = 24


class _BlockV1(nn.Module):
    """Grouped convolutions with a channel shuffle between; with stride 2, the pooled input is concatenated."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        made = outputs - inputs if stride == 2 else outputs
        hidden = made // 4
        # The stem has too few channels for groups.
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
            # ReLU before the concatenation: x is not negative already, and a ReLU after it would hand bn3 a gradient
            # that is not contiguous, which takes torch fifteen times as long on a CPU.
            return torch.cat([self.relu(out), avg_pool2d(x, 3, 2, padding=1)], 1)
        return self.relu(out + x)


class ShuffleV1(FeatureNet):
    """ShuffleNet: Zhang et al., "ShuffleNet" (2018, arXiv:1707.01083).

    Parameters
    ----------
    groups : int
    widths : tuple of int
        Channels of the three stages.
    num_classes : int
        Width of the logits.

    Notes
    -----
    As Tian et al., "Contrastive Representation Distillation" (2020, arXiv:1910.10699), use it for 32x32: the stem is a
    1x1 convolution with stride 1.
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
        """Outputs of the stem and the three stages, after ReLU, and the pooled vector."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return [*maps, pool(maps[-1])]


class _BlockV2(nn.Module):
    """Stride 1: half of the channels pass through convolutions, then all are shuffled."""

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


class _DownsamplingV2(nn.Module):
    """Stride 2: two branches of convolutions read all channels; their outputs are concatenated and shuffled."""

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
    """ShuffleNet V2: Ma et al., "Practical Guidelines for Efficient CNN Architecture Design" (2018, arXiv:1807.11164).

    Parameters
    ----------
    widths : tuple of int
        Channels of the three stages, and of the vector before the classifier.
    num_classes : int
        Width of the logits.

    Notes
    -----
    As Tian et al., "Contrastive Representation Distillation" (2020, arXiv:1910.10699), use it for 32x32: the stem is a
    1x1 convolution with stride 1.
    """

    def __init__(self, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        inputs = _STEM
        for width, count in zip(widths, (3, 7, 3), strict=False):
            stages.append(nn.Sequential(_DownsamplingV2(inputs, width), *(_BlockV2(width) for _ in range(count))))
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
        """Outputs of the stem and the three stages, after ReLU, and the pooled vector."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return [*maps, pool(self.relu(self.bn2(self.conv2(maps[-1]))))]


NETWORKS: dict[str, Callable[[int], FeatureNet]] = {
    "ShuffleV1": partial(ShuffleV1, 3, (240, 480, 960)),
    "ShuffleV2": partial(ShuffleV2, (116, 232, 464, 1024)),
}

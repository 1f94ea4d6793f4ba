"""ResNet50 for small images."""

from functools import partial

from torch import Tensor, nn

from kdcache.models.base import FeatureNet, init_convolutions, pool

__all__ = ["NETWORKS", "BottleneckResNet"]

_EXPANSION = 4


class _Block(nn.Module):
    """Bottleneck block: 1x1, 3x3 and 1x1 convolution with a shortcut, ReLU after the sum."""

    def __init__(self, inputs: int, hidden: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * hidden
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if (inputs, stride) != (outputs, 1):
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class BottleneckResNet(FeatureNet):
    """A residual network of bottleneck blocks.

    He et al., "Deep Residual Learning for Image Recognition" (2016, arXiv:1512.03385), section 4.1.

    Parameters
    ----------
    blocks : tuple of int
        Number of blocks in each of the four stages.
    num_classes : int
        Width of the logits.

    Notes
    -----
    For small images, the stem is a 3x3 convolution with stride 1, without pooling.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        inputs = 64
        for hidden, count, stride in zip((64, 128, 256, 512), blocks, (1, 2, 2, 2), strict=True):
            outputs = _EXPANSION * hidden
            rest = (_Block(outputs, hidden, 1) for _ in range(count - 1))
            stages.append(nn.Sequential(_Block(inputs, hidden, stride), *rest))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(inputs, num_classes)
        init_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        """The layer ``linear``."""
        return self.linear

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs of the stem and the four stages, after ReLU, and the pooled vector."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(stage(maps[-1]))
        return [*maps, pool(maps[-1])]


NETWORKS = {"ResNet50": partial(BottleneckResNet, (3, 4, 6, 3))}

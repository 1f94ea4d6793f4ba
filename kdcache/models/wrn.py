"""Wide residual networks."""

from collections import OrderedDict
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from kdcache.models.base import FeatureNet, init_convolutions, pool

__all__ = ["NETWORKS", "WideResNet"]


class _Block(nn.Module):
    """Pre-activation block: two 3x3 convolutions with a shortcut, ReLU before each, none after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        out += shortcut  # in place, as in a ResNet
        return out


class WideResNet(FeatureNet):
    """A wide residual network: Zagoruyko and Komodakis, "Wide Residual Networks" (2016, arXiv:1605.07146).

    Parameters
    ----------
    depth : int
        Layers with weights: 6n + 4 for n blocks in each of the three stages.
    widening : int
        Factor on the 16, 32 and 64 channels of the stages; the stem has 16.
    num_classes : int
        Width of the logits.
    """

    def __init__(self, depth: int, widening: int, num_classes: int) -> None:
        super().__init__()
        widths = (16, 16 * widening, 32 * widening, 64 * widening)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            _stage(inputs, outputs, stride, (depth - 4) // 6)
            for (inputs, outputs), stride in zip(pairwise(widths), (1, 2, 2), strict=True)
        )
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[-1], num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def head(self) -> nn.Linear:
        """The layer ``fc``."""
        return self.fc

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs of the stem and the three stages, before the next ReLU, and the pooled vector."""
        maps = [self.conv1(images)]
        for stage in (self.block1, self.block2, self.block3):
            maps.append(stage(maps[-1]))
        return [*maps, pool(self.relu(self.bn1(maps[-1])))]


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    layer = nn.Sequential(_Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))
    return nn.Sequential(OrderedDict(layer=layer))  # published checkpoints call it "block1.layer.0..."


NETWORKS = {
    "wrn_16_1": partial(WideResNet, 16, 1),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_1": partial(WideResNet, 40, 1),
    "wrn_40_2": partial(WideResNet, 40, 2),
}

"""MobileNetV2 at half width, for small images."""

from functools import partial
from typing import cast

from torch import Tensor, nn

from kdcache.models.base import FeatureNet, init_convolutions, init_linear, pool

__all__ = ["NETWORKS", "MobileNetV2"]

# For each group: channels at full width, blocks, stride of the first block. In the original, group 1 has stride 2.
_GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_EXPOSED = (1, 2, 4, 6)
_VECTOR = 1280
_EXPANSION = 6


class _Block(nn.Module):
    """Inverted residual block: expand, depthwise convolution, linear projection; a shortcut if the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential(
            *_with_norm_and_relu(nn.Conv2d(inputs, hidden, 1, bias=False)),
            *_with_norm_and_relu(nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (inputs, stride) == (outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if self.shortcut else self.conv(x)


class MobileNetV2(FeatureNet):
    """MobileNetV2: Sandler et al., "Inverted Residuals and Linear Bottlenecks" (2018, arXiv:1801.04381).

    Parameters
    ----------
    width : float
        Factor on the channels, except for the 1280 of the vector before the classifier.
    num_classes : int
        Width of the logits.

    Notes
    -----
    As Tian et al., "Contrastive Representation Distillation" (2020, arXiv:1910.10699), use it for 32x32: with ReLU
    instead of ReLU6, and one stride of 2 less.
    """

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*_with_norm_and_relu(nn.Conv2d(3, channels, 3, 2, padding=1, bias=False)))
        self.blocks = nn.ModuleList()
        for place, (full, count, stride) in enumerate(_GROUPS):
            group = nn.Sequential()
            for step in [stride] + [1] * (count - 1):
                group.append(_Block(channels, int(full * width), step, _EXPANSION if place else 1))
                channels = int(full * width)
            self.blocks.append(group)
        self.conv2 = nn.Sequential(*_with_norm_and_relu(nn.Conv2d(channels, _VECTOR, 1, bias=False)))
        self.classifier = nn.Sequential(nn.Linear(_VECTOR, num_classes))
        init_convolutions(self)
        init_linear(self.head)

    @property
    def head(self) -> nn.Linear:
        """The layer ``classifier.0``."""
        return cast(nn.Linear, self.classifier[0])

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs of the stem, after ReLU, and of groups 1, 2, 4 and 6, which end linearly, and the pooled vector."""
        x = self.conv1(images)
        maps = [x]
        for place, group in enumerate(self.blocks):
            x = group(x)
            if place in _EXPOSED:
                maps.append(x)
        return [*maps, pool(self.conv2(x))]


def _with_norm_and_relu(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)


NETWORKS = {"MobileNetV2": partial(MobileNetV2, 0.5)}

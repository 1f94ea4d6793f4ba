"""VGG networks with batch normalization, for small images."""

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from kdcache.models.base import FeatureNet, init_convolutions, init_linear, pool

__all__ = ["NETWORKS", "VGG"]


class VGG(FeatureNet):
    """A VGG network: Simonyan and Zisserman, "Very Deep Convolutional Networks" (2015, arXiv:1409.1556).

    Parameters
    ----------
    convolutions : tuple of int
        Number of 3x3 convolutions in each of the five blocks.
    num_classes : int
        Width of the logits.

    Notes
    -----
    One linear layer replaces the original's three. Max pooling follows each of the first three blocks, and the fourth
    for images of at least 64 pixels, so that the last block sees 4x4 maps for both 32 and 64 pixels.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(inputs, outputs, count)
            for (inputs, outputs), count in zip(pairwise((3, 64, 128, 256, 512, 512)), convolutions, strict=True)
        )
        self.classifier = nn.Linear(512, num_classes)
        init_convolutions(self)
        init_linear(self.classifier)

    @property
    def head(self) -> nn.Linear:
        """The layer ``classifier``."""
        return self.classifier

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs of the five blocks, after ReLU and before max pooling, and the pooled vector."""
        maps = [self.block0(images)]
        for block in (self.block1, self.block2, self.block3):
            maps.append(block(max_pool2d(maps[-1], 2)))
        large = images.shape[-1] >= 64
        maps.append(self.block4(max_pool2d(maps[-1], 2) if large else maps[-1]))
        return [*maps, pool(maps[-1])]


def _block(inputs: int, outputs: int, count: int) -> nn.Sequential:
    widths = pairwise([inputs] + [outputs] * count)
    layers = [(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)) for i, o in widths]
    return nn.Sequential(*(layer for triple in layers for layer in triple))


NETWORKS = {
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
}

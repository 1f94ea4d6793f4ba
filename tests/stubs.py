"""A network for tests in which any will do."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.models import Network
from kdcache.models.base import FeatureNet, pool


class Stub(FeatureNet):
    """A network that takes milliseconds, with the features that losses read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 3, 2, padding=1)
        self.third, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def features(self, images: Tensor) -> list[Tensor]:
        maps = [self.first(images)]
        for layer in (self.second, self.third, self.third):
            maps.append(layer(functional.leaky_relu(maps[-1])))
        return [*maps, pool(maps[-1])]


def stub(seed: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        normalization = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        return Network(Stub(), name="stub", num_classes=4, image_size=32, **normalization)

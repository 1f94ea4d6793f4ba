"""What the networks have in common: the protocol for features, and initial weights."""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

__all__ = ["FeatureNet", "init_convolutions", "init_linear", "pool"]


class FeatureNet(nn.Module):
    """A network that exposes feature maps and ends with one linear layer.

    A subclass defines `features` and `head`. No later layer may overwrite the exposed tensors in place.
    """

    @property
    def head(self) -> nn.Linear:
        """The linear classifier, whose name in ``state_dict()`` is that of the published checkpoints."""
        raise NotImplementedError

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute the features, first to last.

        Parameters
        ----------
        images : Tensor
            Normalized images, shape (B, 3, H, W), H and W at least 32.

        Returns
        -------
        list of Tensor
            Maps of shape (B, C_i, H_i, W_i), then the vectors (B, D) that the classifier reads.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, num_classes) for normalized `images` (B, 3, H, W)."""
        return self.head(self.features(images)[-1])


def pool(maps: Tensor) -> Tensor:
    """Global average pooling: maps (B, C, H, W) become vectors (B, C)."""
    return adaptive_avg_pool2d(maps, 1).flatten(1)


def init_convolutions(net: nn.Module) -> None:
    """Initialize the weights of every convolution from N(0, 2 / (k * k * output channels)), and biases with zero.

    He et al., "Delving Deep into Rectifiers" (2015, arXiv:1502.01852), fan-out mode.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear(layer: nn.Linear) -> None:
    """Initialize the weights of a linear layer from N(0, 0.01**2), and its bias with zero."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)

"""What every network has in common: the feature protocol and the initial convolution weights."""

from torch import Tensor, nn

__all__ = ["FeatureNet", "init_convolutions", "init_linear"]


class FeatureNet(nn.Module):
    """A network which exposes its inner maps, and ends with one linear layer.

    A subclass defines `features` and `head`. The exposed tensors are never overwritten by later layers.

    Attributes
    ----------
    pool : Module
        Takes the means of maps (B, C, H, W): vectors (B, C).
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    @property
    def head(self) -> nn.Linear:
        """The linear classifier, by whatever name the published checkpoints give it in ``state_dict()``."""
        raise NotImplementedError

    def features(self, images: Tensor) -> list[Tensor]:
        """Every exposed tensor, first to last.

        Parameters
        ----------
        images : Tensor
            Normalised images, shape (B, 3, H, W), H and W 32 or more.

        Returns
        -------
        list of Tensor
            Maps of shape (B, C_i, H_i, W_i), and last the vectors (B, D) which the classifier reads.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) for normalised `images` (B, 3, H, W)."""
        return self.head(self.features(images)[-1])


def init_convolutions(net: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / (k * k * output channels)), with zero bias.

    He et al., "Delving Deep into Rectifiers" (2015), the variant which keeps the gradients' scale.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear(layer: nn.Linear) -> None:
    """Draw a linear layer's weights from N(0, 0.01**2), with zero bias."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)

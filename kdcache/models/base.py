"""What the networks have in common: the protocol for features, and initial weights."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

__all__ = ["FeatureNet", "init_convolutions", "init_linear", "load_state", "pool", "state_versions"]


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


def state_versions(module: nn.Module) -> dict[str, Any]:
    """Versions of a module and those in it, which torch keeps beside a state dict."""
    versions: dict[str, Any] = vars(module.state_dict())["_metadata"]
    return versions


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], versions: Mapping[str, Any] | None = None, strict: bool = True
) -> Any:
    """Load tensors into a module.

    Parameters
    ----------
    module : Module
    state : mapping of str to Tensor
    versions : mapping, optional
        The versions of its modules that wrote them, which some need to convert tensors, and MNASNet to load any; by
        default the present ones.
    strict : bool

    Returns
    -------
    missing_keys, unexpected_keys : list of str
    """
    given = OrderedDict(state)
    vars(given)["_metadata"] = dict(state_versions(module) if versions is None else versions)
    return module.load_state_dict(given, strict=strict)

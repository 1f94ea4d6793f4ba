"""A function as a network, such as a model of another framework or an inference session."""

from collections.abc import Callable

from torch import Tensor, nn

from kdcache.errors import UsageError, problem
from kdcache.models.network import Network

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "FunctionBody", "wrap_function"]

PIXEL_MEAN, PIXEL_STD = (0.0,) * 3, (1 / 255,) * 3
"""A normalization that leaves pixels from 0 to 255 as they are."""


class FunctionBody(nn.Module):
    """Calls a function; it has no weights."""

    precision = "float32"
    """Of the images; a teacher calls it without autocast."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, C) of images (B, 3, H, W)."""
        return self.function(images.contiguous())


def wrap_function(
    function: Callable[[Tensor], Tensor],
    *,
    fingerprint: str,
    num_classes: int,
    image_size: int,
    mean: tuple[float, ...] = PIXEL_MEAN,
    std: tuple[float, ...] = PIXEL_STD,
) -> Network:
    """Make a teacher of a function.

    Parameters
    ----------
    function : callable
        Computes logits, (B, C) on the same device, from images: float32 (B, 3, H, W). Each row must depend on its image
        alone.
    fingerprint : str
        Identifies what the function computes, such as the name and version of its model. Stored logits are found by it.
    num_classes : int
        C.
    image_size : int
        H = W, in pixels.
    mean, std : tuple of float
        Normalization of red, green and blue, on a scale of 0 to 1. By default images have pixels from 0 to 255.

    Raises
    ------
    UsageError
        If it is no function, or has no fingerprint.
    """
    if not callable(function):
        raise UsageError(problem("teacher", expected="a function", got=type(function).__name__))
    if not fingerprint:
        raise UsageError(problem("fingerprint of the function", expected="text that identifies it", got="none"))
    name = f"function:{fingerprint}"
    return Network(
        FunctionBody(function), name=name, num_classes=num_classes, image_size=image_size, mean=mean, std=std
    )

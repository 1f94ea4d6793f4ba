"""The networks, by name, each with the pixel normalisation that belongs to it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdcache.choices import IMAGE_SIZES, MAX_CLASSES
from kdcache.errors import UsageError, problem
from kdcache.models import bottleneck, mobilenet, resnet, shufflenet, vgg, wrn
from kdcache.models.base import FeatureNet
from kdcache.models.external import SOURCES, FeatureExtractor, make, outline

__all__ = ["REGISTRY", "FeatureNet", "Network", "build", "names", "tensors_of"]

#: From a network's name to what builds its body for a number of classes.
REGISTRY: dict[str, Callable[[int], FeatureNet]] = {
    **resnet.NETWORKS,
    **wrn.NETWORKS,
    **vgg.NETWORKS,
    **bottleneck.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet.NETWORKS,
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(REGISTRY)


class Network(nn.Module):
    """A network for pixel values, with everything needed to use it right.

    Parameters
    ----------
    body : Module
        The network proper, for normalised images; it is put to channels-last memory format.
    name : str
        What `build` made the body from.
    num_classes : int
        Width of the logits.
    image_size : int
        Height and width of the images that the network is made for.
    mean, std : tuple of float
        Each channel's normalisation on a scale of 0 to 1.
    feature_names : tuple of str
        The modules whose outputs are features, for a body that is no `FeatureNet`.

    Notes
    -----
    The normalisation is no part of ``state_dict()``: that holds the body alone, under ``body.``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        name: str,
        num_classes: int,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        feature_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.body = body.to(memory_format=torch.channels_last)
        self.name = name
        self.num_classes = num_classes
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.feature_names = feature_names
        self._extractor: FeatureExtractor | None = None
        scale = [1 / (255 * s) for s in self.std]
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        # As often as the widest row has pixels: rows are normalised in half the time of pixels.
        self.register_buffer("scale", torch.tensor(scale * IMAGE_SIZES[1], dtype=torch.float32), persistent=False)
        self.register_buffer("shift", torch.tensor(shift * IMAGE_SIZES[1], dtype=torch.float32), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """What the body reads, in float32 and channels-last, from pixels 0..255 of shape (B, 3, H, W)."""
        pixels = images.to(self.scale.dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        rows = pixels.flatten(2)
        width = rows.shape[2]
        return torch.addcmul(self.shift[:width], rows, self.scale[:width]).view_as(pixels).permute(0, 3, 1, 2)

    def features(self, images: Tensor) -> list[Tensor]:
        """Inner tensors for pixel values, first to last; the last one is the vector that the classifier reads."""
        return self.with_features(images)[1]

    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and features in one forward.

        Parameters
        ----------
        images : Tensor
            Pixels 0..255, shape (B, 3, H, W).

        Returns
        -------
        logits : Tensor, shape (B, num_classes)
        features : list of Tensor
            Maps (B, C_i, H_i, W_i), those that the network exposes or that were named, and last the vectors (B, D).
        """
        normalised = self.normalize(images)
        if isinstance(self.body, FeatureNet):
            features = self.body.features(normalised)
            return self.body.head(features[-1]), features
        self.check_features()
        assert self._extractor is not None
        return self._extractor(normalised, self.training)

    @torch.no_grad()
    def feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the features of one image, without the batch; the network stays as it was."""
        was_training = self.training
        self.eval()
        image = torch.zeros(1, 3, self.image_size, self.image_size, device=self.scale.device)
        shapes = tuple(tuple(feature.shape[1:]) for feature in self.features(image))
        self.train(was_training)
        return shapes

    def check_features(self) -> None:
        """Make sure that the named features are there; a `UsageError` says which are not."""
        if self._extractor is None and not isinstance(self.body, FeatureNet):
            self._extractor = FeatureExtractor(self.body, self.feature_names)

    def forward(self, images: Tensor) -> Tensor:
        """Logits for pixel values.

        Parameters
        ----------
        images : Tensor
            Pixels 0..255, shape (B, 3, H, W), uint8 or floating.

        Returns
        -------
        Tensor
            Logits (B, num_classes): float32, or autocast's type under autocast.
        """
        logits: Tensor = self.body(self.normalize(images))
        return logits


def build(
    name: str,
    *,
    num_classes: int,
    image_size: int = 32,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    seed: int | None = None,
    feature_names: tuple[str, ...] = (),
) -> Network:
    """Build a network with fresh weights.

    Parameters
    ----------
    name : str
        One of `names`, ``torchvision:NAME``, ``timm:NAME``, or ``python:module:callable``, which is called with
        ``num_classes`` and must have been trusted (`kdcache.models.external.trust`).
    num_classes : int
        Width of the logits.
    image_size : int
        Height and width of the images, within `kdcache.choices.IMAGE_SIZES`.
    mean, std : tuple of float
        Normalisation of the three channels on a scale of 0 to 1. The defaults depend on no data set: they take the
        pixels to -1..1.
    seed : int, optional
        Makes the weights a function of this number alone, torch's global generators staying as they were. Without
        it the weights come from torch's global generator.
    feature_names : tuple of str
        Modules of a network from elsewhere whose outputs are its features.

    Raises
    ------
    UsageError
        For an unknown name or a value out of range, all problems together.
    """
    numbers = (*mean, *std)
    demands = [
        *_demands(name, num_classes, image_size),
        (
            len(mean) == len(std) == 3 and all(map(math.isfinite, numbers)) and min(std) > 0,
            problem("normalisation", expected="three finite means and three positive stds", got=(mean, std)),
        ),
    ]
    if problems := [message for met, message in demands if not met]:
        raise UsageError(*problems)
    from_elsewhere = _source(name) in SOURCES
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        body = make(name, num_classes, image_size) if from_elsewhere else REGISTRY[name](num_classes)
    return Network(
        body,
        name=name,
        num_classes=num_classes,
        image_size=image_size,
        mean=mean,
        std=std,
        feature_names=tuple(feature_names),
    )


def tensors_of(name: str, num_classes: int, image_size: int) -> dict[str, Tensor] | None:
    """Tell which tensors a network's state has, without taking memory for them.

    Parameters
    ----------
    name : str
        As in `build`.
    num_classes, image_size : int

    Returns
    -------
    dict of str to Tensor or None
        On torch's ``meta`` device, where tensors have types and shapes but no content. ``None`` for the few networks
        that cannot be made there, and for ``python:`` code, which need not know of devices.
    """
    demands = _demands(name, num_classes, image_size)
    if problems := [message for met, message in demands if not met]:
        raise UsageError(*problems)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        body = outline(name, num_classes, image_size) if _source(name) in SOURCES else REGISTRY[name](num_classes)
    return body.state_dict() if body else None


def _source(name: str) -> str:
    return name.partition(":")[0]


def _demands(name: str, num_classes: int, image_size: int) -> list[tuple[bool, str]]:
    known, (least, most) = name in REGISTRY or _source(name) in SOURCES, IMAGE_SIZES
    return [
        (known, problem("network name", expected=", ".join(REGISTRY), got=name)),
        (
            1 <= num_classes <= MAX_CLASSES,
            problem("number of classes", expected=f"1 to {MAX_CLASSES}", got=num_classes),
        ),
        (least <= image_size <= most, problem("image size", expected=f"{least} to {most}", got=image_size)),
    ]

"""A network for pixel values: its body, and the normalization that belongs to it."""

import torch
from torch import Tensor, nn

from kdcache.cards import Rendering, check_normalization
from kdcache.choices import IMAGE_SIZES
from kdcache.errors import UsageError, problem
from kdcache.models.base import FeatureNet
from kdcache.models.external import FeatureExtractor
from kdcache.models.modes import evaluating

__all__ = ["Network"]


class Network(nn.Module):
    """A network for pixel values.

    Parameters
    ----------
    body : Module
        The network for normalized images.
    name : str
        The name from which `kdcache.models.build` made the body.
    num_classes : int
        Width of the logits.
    image_size : int
        Height and width of the images that the network is made for.
    mean, std : tuple of float
        Normalization of each channel on a scale of 0 to 1.
    feature_names : tuple of str
        Modules whose outputs are the features, for a body that is not a `FeatureNet`.
    channels_last : bool
        Whether body and images have the channels-last memory format: faster, where the code of the body allows it.

    Attributes
    ----------
    rendering : Rendering
        How pictures become its images. A new network takes the whole shorter side.

    Notes
    -----
    The normalization is not in ``state_dict()``, which holds the body alone, under ``body.``.
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
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.body = body.to(memory_format=torch.channels_last) if channels_last else body
        self._channels_last = channels_last
        self.name = name
        self.num_classes = num_classes
        self.rendering = Rendering(image_size, image_size)
        self.feature_names = feature_names
        self._extractor: FeatureExtractor | None = None
        self._has_linear_head = False  # or not known yet
        self.set_normalization(mean, std)

    @property
    def image_size(self) -> int:
        """Height and width of its images, in pixels."""
        return self.rendering.image_size

    @property
    def is_native(self) -> bool:
        """Whether torch computes it, in the precision of the caller: no ONNX file, and no function."""
        return getattr(self.body, "precision", None) is None

    def set_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Replace the normalization of each channel."""
        self.mean = check_normalization(f"mean of the network {self.name}", mean, is_divisor=False)
        self.std = check_normalization(f"std of the network {self.name}", std, is_divisor=True)
        scale = [1 / (255 * s) for s in self.std]
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        # Repeated to the width of the largest image: normalizing rows takes half the time of normalizing pixels.
        self.register_buffer("scale", torch.tensor(scale * IMAGE_SIZES[1], dtype=torch.float32), persistent=False)
        self.register_buffer("shift", torch.tensor(shift * IMAGE_SIZES[1], dtype=torch.float32), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize pixels 0..255 of shape (B, 3, H, W): float32, in the memory format of the body."""
        pixels = images.to(self.scale.dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        rows = pixels.flatten(2)
        width = rows.shape[2]
        normalized = torch.addcmul(self.shift[:width], rows, self.scale[:width]).view_as(pixels).permute(0, 3, 1, 2)
        return normalized if self._channels_last else normalized.contiguous()

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of pixels 0..255, see `with_features`."""
        return self.with_features(images)[1]

    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute logits and features in one forward pass.

        Parameters
        ----------
        images : Tensor
            Pixels 0..255, shape (B, 3, H, W).

        Returns
        -------
        logits : Tensor, shape (B, num_classes)
        features : list of Tensor
            Maps (B, C_i, H_i, W_i), first to last, then the vectors (B, D) that the classifier reads.
        """
        normalized = self.normalize(images)
        if isinstance(self.body, FeatureNet):
            features = self.body.features(normalized)
            return self.body.head(features[-1]), features
        self.check_features()
        assert self._extractor is not None
        return self._extractor(normalized)

    @torch.no_grad()
    def linear_head(self) -> nn.Linear:
        """Find the linear layer that computes the logits of the vectors, see `with_features`.

        Raises
        ------
        UsageError
            If the logits are computed in another way.
        """
        if isinstance(self.body, FeatureNet):
            return self.body.head
        self.check_features()
        assert self._extractor is not None
        self._has_linear_head = self._has_linear_head or self._computes_linear_head(self._extractor)
        if not self._has_linear_head:
            what = f"logits of {self.name}"
            raise UsageError(problem(what, expected="a linear layer of a vector for each image", got="another layer"))
        return self._extractor.last_linear

    def _computes_linear_head(self, extractor: FeatureExtractor) -> bool:
        """Whether the logits of two images are what the last linear layer computes of their vectors."""
        head = extractor.last_linear
        ramp = torch.linspace(0, 255, 3 * self.image_size**2, device=self.scale.device)
        images = torch.stack([ramp, ramp.flip(0)]).view(2, 3, self.image_size, self.image_size)
        with evaluating(self):
            logits, (*_, vectors) = self.with_features(images)
        is_vector = vectors.shape[1:] == (head.in_features,)
        return is_vector and extractor.ends_linear and head(vectors).allclose(logits, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the features of one image, without the batch dimension. The network is not changed."""
        image = torch.zeros(1, 3, self.image_size, self.image_size, device=self.scale.device)
        with evaluating(self):
            return tuple(tuple(feature.shape[1:]) for feature in self.features(image))

    def check_features(self) -> None:
        """Check that the named features exist.

        Raises
        ------
        UsageError
            If one does not.
        """
        if not self.is_native:
            raise UsageError(problem(f"features of {self.name}", expected="a network of torch", got="another"))
        if self._extractor is None and not isinstance(self.body, FeatureNet):
            with evaluating(self):
                self._extractor = FeatureExtractor(self.body, self.feature_names)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Parameters
        ----------
        images : Tensor
            Pixels 0..255, shape (B, 3, H, W), uint8 or floating.

        Returns
        -------
        Tensor
            Logits (B, num_classes): float32, or under autocast its dtype.
        """
        logits: Tensor = self.body(self.normalize(images))
        return logits

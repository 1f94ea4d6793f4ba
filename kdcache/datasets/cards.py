"""What is known of each dataset before it is read. Nothing here imports torch."""

from dataclasses import dataclass

from kdcache.errors import UsageError, fault
from kdcache.words import FOLDER

__all__ = ["CARDS", "Card", "card_of"]

_FOLDER_SIZE = 64


@dataclass(frozen=True)
class Card:
    """A dataset's facts.

    Parameters
    ----------
    name : str
        A key of `CARDS`, or ``folder:PATH``.
    classes : int or None
        Number of classes; ``None`` if only reading can tell.
    image_size : int
        Height and width of the images as they are trained on, in pixels.
    padding : int
        Zero pixels on each side before the random crop.
    mean, std : tuple of float
        Of each channel (red, green, blue) over the training images, in units of the full intensity 255.
    source, licence : str
        Where it comes from, and on what terms.
    """

    name: str
    classes: int | None
    image_size: int
    padding: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    licence: str


_FASHION = "https://github.com/zalandoresearch/fashion-mnist"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_UNSTATED = "not stated by its authors"

#: The datasets that kdcache knows by name. Fashion-MNIST: statistics of the images zero-padded to 32x32.
CARDS = {
    card.name: card
    for card in (
        Card("fashion-mini", 10, 32, 4, (0.2176,) * 3, (0.3303,) * 3, _FASHION, "MIT"),
        Card("fashion-mnist", 10, 32, 4, (0.2190,) * 3, (0.3318,) * 3, _FASHION, "MIT"),
        Card("cifar10", 10, 32, 4, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _CIFAR, _UNSTATED),
        Card("cifar100", 100, 32, 4, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), _CIFAR, _UNSTATED),
    )
}

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def card_of(name: str, image_size: int | None = None) -> Card:
    """Find the card of a dataset by its name, reading no data.

    Parameters
    ----------
    name : str
        A key of `CARDS`, or ``folder:PATH``, which gets ImageNet's statistics and an eighth of its size as padding.
    image_size : int, optional
        Height and width in pixels to which a folder's images are brought, 64 by default. Every other dataset has a
        size of its own.

    Raises
    ------
    UsageError
        If the name is unknown, or the size does not fit the dataset.
    """
    if name in CARDS:
        card = CARDS[name]
        if image_size not in (None, card.image_size):
            raise UsageError(fault(f"image size of {name}", allowed=card.image_size, given=image_size))
        return card
    path = name.removeprefix(FOLDER)
    if path in ("", name):
        raise UsageError(fault("unknown dataset", allowed=", ".join((*CARDS, f"{FOLDER}PATH")), given=repr(name)))
    size = _FOLDER_SIZE if image_size is None else image_size
    if size < 1:
        raise UsageError(fault(f"image size of {name}", allowed="1 pixel or more", given=size))
    return Card(name, None, size, size // 8, _IMAGENET_MEAN, _IMAGENET_STD, path, "the user's own")

"""What is known of each dataset before it is read. Nothing here imports torch."""

from dataclasses import dataclass, replace

from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX
from kdcache.errors import UsageError, problem

__all__ = ["CARDS", "Card", "card_of", "sized"]

_FOLDER_SIZE = 64


@dataclass(frozen=True)
class Card:
    """A dataset's facts.

    Parameters
    ----------
    name : str
        A key of `CARDS`, ``folder:PATH`` or ``hdf5:FILE``.
    classes : int or None
        Number of classes; ``None`` if only reading can tell.
    image_size : int
        Height and width of the images as they are trained on, in pixels.
    padding : int or None
        Zero pixels on each side before the random crop; ``None`` where x is a random part of the picture, of 8 to 100 %
        of its area and an aspect ratio of 3/4 to 4/3, resized (RandomResizedCrop, Szegedy et al. 2015).
    mean, std : tuple of float
        Of each channel (red, green, blue) over the training images, in units of the full intensity 255.
    source, licence : str
        Where it comes from, and on what terms.
    folders : tuple of str
        Where it may lie below the data root.
    counts : tuple of int or None
        Training and test images of the whole set; ``None`` if only reading can tell.
    shorter_side : int or None
        Pixels to which the shorter side of a picture is brought before the central square is cut out, which is the
        clean view; ``None`` is `image_size`.
    """

    name: str
    classes: int | None
    image_size: int
    padding: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    licence: str
    folders: tuple[str, ...] = ()
    counts: tuple[int, int] | None = None
    shorter_side: int | None = None

    @property
    def evaluation(self) -> str:
        """Say how a picture becomes a clean view."""
        return f"shorter side to {self.shorter_side or self.image_size}, central {self.image_size}x{self.image_size}"

    @property
    def training(self) -> str:
        """Say how a picture becomes x."""
        if self.padding is None:
            return f"8 to 100 % of the picture resized to {self.image_size}x{self.image_size}, flip"
        return f"crop of the clean view padded by {self.padding}, flip"


_FASHION = "https://github.com/zalandoresearch/fashion-mnist"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_IMAGENET = "https://image-net.org"
_UNSTATED = "not stated by its authors"
_RESEARCH = "ImageNet's terms: non-commercial research and education"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INNER, _OUTER = 224, 256

#: The datasets that kdcache knows by name. Fashion-MNIST: statistics of the images zero-padded to 32x32.
CARDS = {
    card.name: card
    for card in (
        Card("fashion-mini", 10, 32, 4, (0.2176,) * 3, (0.3303,) * 3, _FASHION, "MIT", counts=(6000, 10000)),
        Card(
            *("fashion-mnist", 10, 32, 4, (0.2190,) * 3, (0.3318,) * 3, _FASHION, "MIT"),
            folders=("FashionMNIST/raw",),
            counts=(60000, 10000),
        ),
        Card(
            *("cifar10", 10, 32, 4, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _CIFAR, _UNSTATED),
            folders=("cifar-10-batches-py",),
            counts=(50000, 10000),
        ),
        Card(
            *("cifar100", 100, 32, 4, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), _CIFAR, _UNSTATED),
            folders=("cifar-100-python",),
            counts=(50000, 10000),
        ),
        Card(
            *("tiny-imagenet", 200, 64, 8, _IMAGENET_MEAN, _IMAGENET_STD, _TINY, _RESEARCH),
            folders=("tiny-imagenet-200", "tiny-imagenet", "tinyimagenet"),
            counts=(100000, 10000),
        ),
        Card(
            *("imagenet", None, _INNER, None, _IMAGENET_MEAN, _IMAGENET_STD, _IMAGENET, _RESEARCH),
            folders=("imagenet", "ILSVRC2012"),
            counts=(1281167, 50000),
            shorter_side=_OUTER,
        ),
    )
}


def card_of(name: str, image_size: int | None = None) -> Card:
    """Find the card of a dataset by its name, reading no data.

    Parameters
    ----------
    name : str
        A key of `CARDS`, or ``folder:PATH``, which gets ImageNet's statistics and an eighth of its size as padding.
    image_size : int, optional
        Height and width in pixels to which the pictures of a folder or of ImageNet are brought. Every other dataset
        has a size of its own.

    Raises
    ------
    UsageError
        If the name is unknown, or the size does not fit the dataset.
    """
    if name in CARDS:
        return sized(CARDS[name], image_size)
    path = name.removeprefix(FOLDER_PREFIX)
    if path in ("", name):
        known = ", ".join((*CARDS, f"{FOLDER_PREFIX}PATH", f"{HDF5_PREFIX}FILE"))
        raise UsageError(problem("unknown dataset", expected=known, got=repr(name)))
    card = Card(name, None, _FOLDER_SIZE, _FOLDER_SIZE // 8, _IMAGENET_MEAN, _IMAGENET_STD, path, "the user's own")
    return sized(card, image_size, pictures=True)


def sized(card: Card, image_size: int | None, pictures: bool = False) -> Card:
    """Give a card another image size, where the dataset consists of pictures that can be brought to any.

    Parameters
    ----------
    card : Card
    image_size : int, optional
        By default that of the card.
    pictures : bool
        Whether it is known to consist of such pictures; a set whose x are parts of pictures does in any case.

    Raises
    ------
    UsageError
        If it does not, or the size is none.
    """
    if image_size in (None, card.image_size):
        return card
    if card.padding is not None and not pictures:
        raise UsageError(problem(f"image size of {card.name}", expected=card.image_size, got=image_size))
    if image_size < 1:
        raise UsageError(problem(f"image size of {card.name}", expected="1 pixel or more", got=image_size))
    if card.padding is not None:
        return replace(card, image_size=image_size, padding=image_size // 8)
    return replace(card, image_size=image_size, shorter_side=image_size * _OUTER // _INNER)

"""Labeled images, read by name. Importing this package does not import torch."""

from kdcache.cards import CARDS, Card, card_of
from kdcache.datasets.custom import ImageData
from kdcache.datasets.reading import list_available, load, read, without_bad_images
from kdcache.datasets.split import Dataset, Split

__all__ = [
    "CARDS",
    "Card",
    "Dataset",
    "ImageData",
    "Split",
    "card_of",
    "list_available",
    "load",
    "read",
    "without_bad_images",
]

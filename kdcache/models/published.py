"""Published checkpoints of other projects: their tensors, and what they state about the network."""

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from kdcache.cards import Rendering
from kdcache.choices import INTERPOLATIONS
from kdcache.errors import UsageError, problem
from kdcache.models.class_order import NameList
from kdcache.models.layouts import Entries, State, is_plain
from kdcache.models.plain_data import PlainArray
from kdcache.models.weights_file import SAVE_STATE, read_document

__all__ = [
    "KNOWN_ACCURACY",
    "TRANSFORMING",
    "CleanCrop",
    "Normalization",
    "Published",
    "clean_crop_of",
    "name_lists",
    "read",
    "stated_by",
]

KNOWN_ACCURACY = {
    ("cifar100", "wrn_40_2"): 75.61,
    ("cifar100", "resnet56"): 72.34,
    ("cifar100", "resnet110"): 74.31,
    ("cifar100", "resnet32x4"): 79.42,
    ("cifar100", "vgg13"): 74.64,
    ("cifar100", "ResNet50"): 79.34,
}
"""Top-1 accuracy in % of the teachers published with Tian et al., "Contrastive Representation Distillation" (2020)."""

log = logging.getLogger("kdcache")

MAX_DEPTH = 4
"""Levels of dictionaries that are searched for tensors and facts."""

# DenseNets of before torch 0.4, torchvision's published ones among them, have names that modules may no longer have.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

TRANSFORMING = ("torchvision:googlenet", "torchvision:inception_v3")
"""Networks whose weights torchvision published for -1..1; with them it turns on ``transform_input``, which converts."""


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel on a scale of 0 to 1, and in words where they are stated."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


class CleanCrop(NamedTuple):
    """The clean view that a network is evaluated on.

    Attributes
    ----------
    shares : mapping of int or None to Fraction or float
        By image size, ``None`` for any other: the share of the shorter side that the images show.
    interpolation : str
        Of resizing, one of `kdcache.choices.INTERPOLATIONS`.
    source : str
        In words, where they are stated.
    """

    shares: Mapping[int | None, Fraction | float]
    interpolation: str
    source: str

    def rendering(self, image_size: int) -> Rendering:
        """How pictures become images of this size."""
        share = self.shares.get(image_size, self.shares[None])
        return Rendering(image_size, math.floor(image_size / share), self.interpolation)


class Published(NamedTuple):
    """The content of a published checkpoint.

    Attributes
    ----------
    entries : Entries
        The tensors of each dictionary in the file, see `kdcache.models.layouts`.
    accuracy : float or None
        Top-1 accuracy in percent, if it is stated.
    normalization : Normalization or None
        If it is stated.
    name_lists : tuple of NameList
        What may be the names of the classes, in the order of the logits.
    clean_crop : CleanCrop or None
        If it is stated.
    """

    entries: Entries
    accuracy: float | None = None
    normalization: Normalization | None = None
    name_lists: tuple[NameList, ...] = ()
    clean_crop: CleanCrop | None = None


def read(path: Path) -> Published:
    """Read a checkpoint in the format of safetensors or ``torch.save``.

    Parameters
    ----------
    path : Path
        Its tensors may be at the top level or in dictionaries below it.

    Raises
    ------
    UsageError
        If the file is missing, damaged, has no tensors, or contains code.
    """
    document = read_document(path)
    entries = dict(_entries(document, "", MAX_DEPTH))
    if not entries:
        arrays = any(isinstance(value, PlainArray) for facts in _facts(document) for value in facts.values())
        names = ", ".join(name for name in document if isinstance(name, str))
        got = "arrays of NumPy" if arrays else names[:80] or "none"
        raise UsageError(problem(f"weights {path}", expected="tensors by name", got=got, remedy=SAVE_STATE))
    tensors = [tensor for entry in entries.values() for tensor in entry.values() if is_plain(tensor)]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if (stated := sum(held.values())) > path.stat().st_size:
        raise UsageError(problem(f"weights {path}: bytes of tensors", expected=path.stat().st_size, got=stated))
    card = {**document, **_files_beside(path)}
    accuracy, normalization = _accuracy(document.get("accuracy")), _normalization(card, "the checkpoint")
    return Published(entries, accuracy, normalization, name_lists(card), _clean_crop(card, "the checkpoint"))


def _entries(node: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, State]]:
    """List the dictionaries that hold tensors by name, with the path of keys that leads to each."""
    tensors = State(
        (_DENSENET.sub(r"\1\2", name), value)
        for name, value in node.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    )
    if tensors:
        versions = getattr(node, "_metadata", None)  # where torch keeps them
        if isinstance(versions, dict):
            tensors.versions = {module: facts for module, facts in versions.items() if isinstance(facts, dict)}
        yield path, tensors
    for name, value in node.items():
        if isinstance(name, str) and isinstance(value, Mapping) and depth:
            yield from _entries(value, f"{path}.{name}" if path else name, depth - 1)


def _files_beside(path: Path) -> dict[str, Any]:
    """Read what projects on the Hugging Face Hub put beside their weights."""
    found: dict[str, Any] = {}
    if path.stem in ("model", "pytorch_model"):
        for name in ("config.json", "preprocessor_config.json"):
            file = path.parent / name
            try:
                content = json.loads(file.read_text("utf-8-sig")) if file.is_file() else {}
            except (OSError, ValueError, RecursionError):
                continue
            found[name] = content
    return found


def _facts(node: object, depth: int = MAX_DEPTH) -> Iterator[Mapping[Any, Any]]:
    """List the dictionaries and namespaces of a document, outermost first."""
    mapping = node if isinstance(node, Mapping) else getattr(node, "__dict__", None)
    if not isinstance(mapping, Mapping):
        return
    yield mapping
    if depth:
        for value in mapping.values():
            if not isinstance(value, Tensor | PlainArray):
                yield from _facts(value, depth - 1)


def _values(value: object) -> list[Any]:
    if isinstance(value, PlainArray):
        return value.values or []
    if isinstance(value, Tensor):  # of a module that normalizes, in which case it is float32
        few = is_plain(value) and value.numel() <= 3
        return [round(each, 6) for each in value.flatten().tolist()] if few else []
    return list(value) if isinstance(value, list | tuple) else []


def stated_by(body: nn.Module) -> Normalization | None:
    """Find the normalization that the library of a network states for it, as timm does."""
    return _normalization(_configurations(body), "the library of the network")


def clean_crop_of(body: nn.Module) -> CleanCrop | None:
    """Find the clean view that the library of a network states for it, as timm does."""
    return _clean_crop(_configurations(body), "the library of the network")


def _configurations(body: nn.Module) -> dict[str, Any]:
    return {name: getattr(body, name, None) for name in ("pretrained_cfg", "default_cfg")}


def _clean_crop(document: Mapping[Any, Any], source: str) -> CleanCrop | None:
    """Find a clean view as timm states it: the share for each size, and how pictures are resized."""
    for facts in _facts(document):
        shares: dict[int | None, Any] = {None: facts.get("crop_pct")}
        if size := _values(facts.get("test_input_size")):
            shares[size[-1]] = facts.get("test_crop_pct", shares[None])
        how = facts.get("interpolation")
        if how not in INTERPOLATIONS or not all(_is_share(share) for share in shares.values()):
            continue
        if facts.get("crop_mode", "center") != "center":
            log.info("clean view: %s states the crop mode %s, which is not used", source, facts["crop_mode"])
            return None
        return CleanCrop(shares, how, source)
    return None


def _is_share(value: object) -> bool:
    return isinstance(value, float | int) and 0.5 <= value <= 1


def _normalization(document: Mapping[Any, Any], source: str) -> Normalization | None:
    for facts in _facts(document):
        stems = [key.removesuffix("mean") for key in facts if isinstance(key, str) and key.endswith("mean")]
        for stem in sorted(stems, key=len):
            mean, std = (_values(facts.get(f"{stem}{name}")) for name in ("mean", "std"))
            if len(mean) == len(std) == 3 and all(isinstance(value, float | int) for value in mean + std):
                scale = 255 if max(map(abs, mean)) > 1 else 1  # some projects normalize pixels 0..255
                means, stds = ([value / scale for value in values] for values in (mean, std))
                if all(0 <= value <= 1 for value in means) and all(0 < value <= 1 for value in stds):
                    return Normalization(tuple(means), tuple(stds), source)
    return None


def name_lists(document: Mapping[Any, Any]) -> tuple[NameList, ...]:
    """List what may be the names of classes, in the order of the logits."""
    items = ((str(key), value) for facts in _facts(document) for key, value in facts.items())
    return tuple((key, names) for key, value in items if (names := _texts(_values(value)) or _in_order(value)))


def _in_order(found: object) -> tuple[str, ...]:
    """Sort names by their indices from 0 or 1, which may be text, and keys or values; nothing if these are others."""
    if not isinstance(found, Mapping):
        return ()
    for pairs in (found.items(), [(index, name) for name, index in found.items()]):
        with suppress(ValueError, TypeError, RuntimeError):  # of a tensor too
            names = {int(index): name for index, name in pairs}
            start = min(names, default=0)
            texts = _texts([names[index] for index in sorted(names)])
            if texts and start in (0, 1) and sorted(names) == list(range(start, start + len(found))):
                return texts
    return ()


def _texts(values: list[Any]) -> tuple[str, ...]:
    return tuple(values) if len(values) > 1 and all(isinstance(value, str) for value in values) else ()


def _accuracy(value: object) -> float | None:
    if isinstance(value, Tensor):
        value = value.item() if is_plain(value) and value.numel() == 1 else None
    if not isinstance(value, int | float | np.floating) or not math.isfinite(value):
        return None
    return float(value) if 0 <= value <= 100 else None

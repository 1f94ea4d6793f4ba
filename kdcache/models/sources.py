"""Where weights come from: a file, a network of kdcache, or what torchvision and timm publish."""

import importlib.resources
import logging
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from kdcache.choices import SHIPPED
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.models import checkpoint, external
from kdcache.models.hub import HUB_PREFIX, locate, network_of
from kdcache.models.layouts import State
from kdcache.models.published import (
    TRANSFORMING,
    CleanCrop,
    Normalization,
    Published,
    clean_crop_of,
    name_lists,
    read,
    stated_by,
)

__all__ = ["locate_named", "read_torchvision", "read_weights", "shipped_teacher"]

PRETRAINED = "pretrained"
"""Stands for the weights that timm loads for a network by default."""

log = logging.getLogger("kdcache")

_HASH = re.compile(r"-([0-9a-f]{8,})\.")


def shipped_teacher() -> Path:
    """Path of the teacher that comes with kdcache."""
    return Path(str(importlib.resources.files("kdcache.data") / "fashion-mini-teacher.safetensors"))


def read_weights(weights: str, model: str | None, image_size: int, may_download: bool = True) -> Published:
    """Read weights for a network: a file, or what the library of the network publishes, which is downloaded.

    Parameters
    ----------
    weights : str
        A file of kdcache or of another project, `SHIPPED`, a name in torchvision such as ``IMAGENET1K_V1`` or
        ``DEFAULT``, or for a network of timm `PRETRAINED` or the tag of its weights; or ``timm:NAME.TAG``, or
        ``hf-hub:ORG/NAME`` for a repository of the Hugging Face Hub.
    model : str or None
        Name of the network; ``None`` if the weights are to tell.
    image_size : int
        To which timm adapts the weights of networks with a fixed image size.
    may_download : bool
        Whether the user asked for what may have to be downloaded.

    Raises
    ------
    UsageError
        If there are no such weights, the file cannot be read, or it would have to be downloaded and may not.
    KdcacheError
        If the download fails.
    """
    weights, model = locate_named(weights, model, may_download)
    source, _, name = (model or "").partition(":")
    path = shipped_teacher() if weights == SHIPPED else Path(weights)
    if checkpoint.is_kdcache_file(path):
        return _read_own(path)
    if source == "torchvision":
        return read_torchvision(str(model), weights, may_download)
    if source == "timm" and not path.exists():
        return _read_timm(name, weights, image_size, may_download)
    if not path.exists():
        remedy = "Networks of torchvision and timm alone have published weights with names, such as IMAGENET1K_V1."
        raise UsageError(problem(f"weights {weights}", expected="a file", got="nothing", remedy=remedy))
    return read(path)


def locate_named(weights: str, model: str | None, may_download: bool = True) -> tuple[str, str | None]:
    """Turn ``timm:NAME.TAG`` into the tag, and ``hf-hub:NAME`` into the file; both may name the network.

    Returns
    -------
    weights : str
        Other weights as they are.
    model : str or None
        Name of the network, if it is given or the weights name it.

    Raises
    ------
    UsageError, KdcacheError
        As `read_weights` does.
    """
    if weights.startswith(HUB_PREFIX):
        file = locate(weights, may_download)
        return str(file), model or network_of(file)
    if weights.startswith("timm:"):
        architecture, _, tag = weights.partition(".")
        if model is not None and model.partition(".")[0] != architecture:
            raise UsageError(
                problem(f"weights {weights}", expected=f"those of {model}", got="those of another network")
            )
        return tag or PRETRAINED, model or architecture
    return weights, model


def _read_own(path: Path) -> Published:
    state, stated = checkpoint.read(path)
    names = (("class_names", stated.class_names),) if stated.class_names else ()
    normalization, rendering = Normalization(stated.mean, stated.std, f"{path}"), stated.rendering
    share = Fraction(rendering.image_size, rendering.shorter_side)
    crop = CleanCrop({None: share}, rendering.interpolation, f"{path}")
    return Published({"": State(state)}, normalization=normalization, name_lists=names, clean_crop=crop)


def read_torchvision(model: str, weights: str, may_download: bool = True) -> Published:
    """Read weights of a network of torchvision: a file, or those that torchvision publishes, which are downloaded.

    A file that has the name of published weights, as in torch's cache folder, is taken for these.

    Parameters
    ----------
    model : str
        ``torchvision:NAME``.
    weights : str
        A file, or a name in torchvision, such as ``IMAGENET1K_V1`` or ``DEFAULT``.
    may_download : bool

    Raises
    ------
    UsageError
        If there are no such weights, or the file cannot be read.
    KdcacheError
        If the download fails.
    """
    from torchvision.models import get_model_weights

    path = Path(weights)
    try:
        known: Mapping[str, Any] = get_model_weights(model.removeprefix("torchvision:")).__members__
    except ValueError:
        known = {}
    chosen = next((each for each in known.values() if path.name == _file_name(each.url)), None)
    if not path.exists():
        chosen = known.get(weights)
        if chosen is None:
            expected = f"a file, or one of {', '.join(known)}" if known else "a file"
            raise UsageError(problem(f"weights of {model}", expected=expected, got=weights))
        path = _cached(chosen.url)
        if not path.exists():
            _require_download(weights, model, may_download)
            log.info("downloading weights %s of %s from %s", weights, model, chosen.url)
            _download(chosen.url, path, _copy(weights, model))
    found = read(path)
    if chosen is None:
        return found
    transforms = chosen.transforms()
    means, stds = (0.5,) * 3, (0.5,) * 3
    if model not in TRANSFORMING:
        means, stds = tuple(transforms.mean), tuple(transforms.std)
    accuracy = chosen.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    source = f"torchvision for {chosen}"
    names = ("categories", tuple(chosen.meta.get("categories", ())))
    share = Fraction(transforms.crop_size[0], transforms.resize_size[0])
    return found._replace(
        accuracy=accuracy,
        normalization=Normalization(means, stds, source),
        name_lists=(names,),
        clean_crop=CleanCrop({None: share}, transforms.interpolation.value, source),
    )


def _read_timm(name: str, weights: str, image_size: int, may_download: bool) -> Published:
    """Read weights that timm publishes, converted by timm's own code; it downloads them unless it has them."""
    timm = external.import_timm(name)
    model, architecture = f"timm:{name}", name.partition(".")[0]
    tags = {full.partition(".")[2]: full for full in timm.list_models(f"{architecture}.*", pretrained=True)}
    chosen = name if weights == PRETRAINED else tags.get(weights)
    if chosen is None or not tags:
        expected = f"a file, or one of {', '.join((PRETRAINED, *tags))}" if tags else "a file"
        raise UsageError(problem(f"weights of {model}", expected=expected, got=weights))
    _require_download(weights, model, may_download)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    log.info("loading weights %s of %s, which are downloaded if this machine does not have them", weights, model)
    hub.setLevel(logging.ERROR)  # the error says what its warnings of each attempt say
    try:
        body = external.build_timm(chosen, None, image_size, pretrained=True)
    except UsageError:
        raise
    except Exception as error:  # the network is down, the disk is full, or timm has no weights under this name
        what = f"could not download weights {weights} of {model}"
        raise KdcacheError(problem(what, got=first_line(error), remedy=_copy(weights, model))) from error
    finally:
        hub.setLevel(level)
    facts = {"pretrained_cfg": getattr(body, "pretrained_cfg", None)}
    stated = stated_by(body)
    tag = getattr(body, "pretrained_cfg", {}).get("tag")
    source, crop = f"timm for {architecture}.{tag}", clean_crop_of(body)
    return Published(
        {"": State(body.state_dict())},
        normalization=stated and stated._replace(source=source),
        name_lists=name_lists(facts),
        clean_crop=crop and crop._replace(source=source),
    )


def _require_download(weights: str, model: str, may_download: bool) -> None:
    if not may_download:
        what = f"weights {weights} of {model}, which a file named, would be downloaded"
        raise UsageError(problem(what, remedy="Add --download, or name them on the command line."))


def _file_name(url: str) -> str:
    return Path(urlparse(url).path).name


def _cached(url: str) -> Path:
    """Path of a downloaded file in torch's cache folder."""
    return Path(torch.hub.get_dir(), "checkpoints", _file_name(url))


def _copy(weights: str, model: str) -> str:
    """Say what to do instead of a download."""
    return (
        f"Without a network connection, copy a file of weights of {model} to this machine, and give its path instead "
        f"of {weights}; with weights of another network, name that with --model."
    )


def _download(url: str, path: Path, remedy: str) -> None:
    checksum = _HASH.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), checksum[1] if checksum else None, progress=False)
    except Exception as error:  # the network is down, or the disk is full
        raise KdcacheError(problem(f"could not download {url}", got=first_line(error), remedy=remedy)) from error

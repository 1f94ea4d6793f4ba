"""Trained networks, loaded for some data: from a file of kdcache, a published checkpoint, torchvision or timm."""

import logging
from pathlib import Path
from typing import NamedTuple

from kdcache import models
from kdcache.cards import check_normalization
from kdcache.choices import SHIPPED
from kdcache.datasets import Dataset
from kdcache.errors import UsageError, problem
from kdcache.extensions import trust
from kdcache.models import Network, checkpoint, published
from kdcache.models.class_order import (
    NATURAL,
    check_class_names,
    find_class_names,
    natural_order,
    read_class_order,
    reorder_classes,
)
from kdcache.models.onnx_body import SOURCE as ONNX
from kdcache.models.onnx_body import class_names_of, read_onnx_body, takes_pixels
from kdcache.models.published import Normalization, Published
from kdcache.models.sources import locate_named, read_weights, shipped_teacher
from kdcache.models.weights import load_into, most_similar_network, start_from_them
from kdcache.models.weights_file import is_onnx_file
from kdcache.models.wrapped import PIXEL_MEAN, PIXEL_STD

__all__ = ["Found", "find_network", "normalize", "set_rendering", "trained_network"]

SIZES_REMEDY = "A size for each network needs x that are random parts of pictures, see docs/data.md."

log = logging.getLogger("kdcache")


class Found(NamedTuple):
    """A trained network, its published top-1 accuracy in percent, if it is known, and how it was loaded, in words."""

    network: Network
    accuracy: float | None
    origin: dict[str, str]


def trained_network(weights: Path, data: Dataset, role: str = "teacher") -> Network:
    """Load a network from its file, for some data; `role` is what messages call it.

    Raises
    ------
    UsageError
        If it has another number of classes, other classes or another order of them, or another image size.
    """
    network = checkpoint.load(weights)
    expected = {"number of classes": data.num_classes, "image size": data.image_size}
    found = {"number of classes": network.num_classes, "image size": network.image_size}
    problems = [
        problem(
            f"{role} {weights}: {what}",
            expected=f"{expected[what]}, as in {data.card.name}",
            got=found[what],
            remedy=start_from_them(weights) if what == "number of classes" else SIZES_REMEDY,
        )
        for what in expected
        if expected[what] != found[what]
    ]
    if problems:
        raise UsageError(*problems)
    if names := checkpoint.metadata(weights).get("class_names"):
        check_class_names(names, data.class_names, f"{role} {weights}", start_from_them(weights))
    return network


def find_network(
    weights: str | Path,
    data: Dataset,
    model: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    entry: str | None = None,
    class_order: str | None = None,
) -> Found:
    """Load a trained network for some data from a file of kdcache, a published checkpoint, or torchvision's weights.

    What is chosen, assumed or left out on the way is logged.

    Parameters
    ----------
    weights : str or Path
        A file, or a name, see `kdcache.models.sources.read_weights`.
    data : Dataset
    model : str, optional
        Name of the network; by default the one that the file names, or that its tensors fit.
    mean, std : tuple of float, optional
        Normalization; by default that of the weights, of the network's library, or of the data.
    entry : str, optional
        Name of the tensors to load, if the file has several networks; averaged (EMA) weights by default.
    class_order : str, optional
        Order of the classes in the weights, see `kdcache.models.class_order.read_class_order`; by default that of the
        data.

    Returns
    -------
    Found

    Raises
    ------
    UsageError
        If the file cannot be read, or does not fit the network or the data.
    """
    named = str(weights)
    located, model = locate_named(named, model)
    weights = shipped_teacher() if located == SHIPPED else located
    if checkpoint.is_kdcache_file(Path(weights)):
        given = {"--mean": mean, "--std": std, "--weights-entry": entry, "--class-order": class_order}
        if options := ", ".join(option for option, value in given.items() if value is not None):
            remedy = "Leave the options out."
            raise UsageError(problem(f"{options}: {weights}, a file of kdcache, states this itself", remedy=remedy))
        network = trained_network(Path(weights), data)
        if model not in (None, network.name):
            raise UsageError(problem(f"--model for {weights}", expected=network.name, got=model))
        return Found(network, None, {"weights": named})
    if is_onnx_file(Path(weights)):
        if any(option is not None for option in (model, entry, class_order)):
            expected = "no --model, --weights-entry and --class-order"
            raise UsageError(problem(f"ONNX file {weights}", expected=expected, got="one of them"))
        return _of_onnx(Path(weights), data, mean, std)
    stated = read_weights(str(weights), model, data.image_size)
    name = model or most_similar_network(stated.entries)
    if name is None:
        remedy = "Name the network with --model."
        raise UsageError(problem(f"weights {weights}", expected="the tensors of a known network", remedy=remedy))
    for option, values in {"--mean": mean, "--std": std}.items():
        if values is not None:
            check_normalization(option, values, is_divisor=option == "--std")
    trust(name)
    network = models.build(
        name,
        num_classes=data.num_classes,
        image_size=data.image_size,
        mean=mean or data.card.mean,
        std=std or data.card.std,
        seed=0,
    )
    origin = {
        "weights": named,
        "entry": load_into(network, stated.entries, weights, entry),
        "normalization": normalize(network, stated, data, mean, std),
        "clean view": set_rendering(network, stated, data),
        "class order": class_order or "that of the data",
    }
    if stated.normalization is None and mean is None and name in published.TRANSFORMING:
        log.warning("if %s was trained with transform_input, add --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5", name)
    _order_classes(network, stated, data, weights, class_order)
    return Found(network, published.KNOWN_ACCURACY.get((data.card.name, name)) or stated.accuracy, origin)


def _of_onnx(weights: Path, data: Dataset, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Found:
    """Make a network of an ONNX file, which is run by onnxruntime."""
    body = read_onnx_body(weights, data.num_classes, data.image_size)
    if names := class_names_of(body):
        check_class_names(names, data.class_names, f"weights {weights}")
    pixels = takes_pixels(body)
    if pixels and (mean or std):
        what = f"--mean and --std: {weights} takes pixels, and normalizes them itself"
        raise UsageError(problem(what, remedy="Leave the options out."))
    for option, values in {"--mean": mean, "--std": std}.items():
        if values is not None:
            check_normalization(option, values, is_divisor=option == "--std")
    network = Network(
        body,
        name=f"{ONNX}:{len(body.file)}",
        num_classes=data.num_classes,
        image_size=data.image_size,
        mean=PIXEL_MEAN if pixels else mean or data.card.mean,
        std=PIXEL_STD if pixels else std or data.card.std,
    )
    network.rendering = data.card.rendering
    source = "the file" if pixels else "--mean and --std" if mean and std else f"the data, {data.card.name}"
    log.info("normalization: mean %s, std %s, from %s", network.mean, network.std, source)
    if body.gives_probabilities:
        log.info("%s gives probabilities: their logarithms are taken as logits", weights)
    return Found(network, None, {"weights": str(weights), "normalization": source})


def normalize(
    network: Network,
    stated: Published,
    data: Dataset,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> str:
    """Give a network the normalization that is stated first: by the user, its weights, its library, the data.

    Returns what states it.
    """
    known = stated.normalization or published.stated_by(network.body)
    found = known or Normalization(data.card.mean, data.card.std, f"the data, {data.card.name}")
    network.set_normalization(mean or found.mean, std or found.std)
    given = [option for option, values in {"--mean": mean, "--std": std}.items() if values is not None]
    source = " and ".join([*given, found.source][:2])
    if len(given) < 2:
        log.info("normalization: mean %s, std %s, from %s", network.mean, network.std, source)
    return source


def set_rendering(network: Network, stated: Published, data: Dataset) -> str:
    """Give a network the interpolation and the clean view that are stated first: by its weights, its library, the data.

    If x are padded crops of the clean view, it has that of the data. Returns what states it.
    """
    network.rendering = own = data.card.rendering
    crop = stated.clean_crop or published.clean_crop_of(network.body)
    if crop is None or data.card.padding is not None:
        return f"the data, {data.card.name}"
    network.rendering = crop.rendering(own.image_size)
    if network.rendering != own:
        log.info("clean view: %s, from %s", network.rendering.evaluation, crop.source)
    return crop.source


def _order_classes(network: Network, stated: Published, data: Dataset, where: object, class_order: str | None) -> None:
    """Bring the classes of a network into the order of the data."""
    names = data.class_names
    in_weights = find_class_names(stated.name_lists, names)
    if class_order is not None:
        positions = read_class_order(class_order, names)
        in_file = [""] * len(names)
        for label, position in enumerate(positions):
            in_file[position] = names[label]
        if in_weights:
            check_class_names(in_weights, in_file, f"weights {where}", "Correct --class-order.")
        reorder_classes(network, positions)
    elif in_weights:
        remedy = (
            "If they are the same in another order, give it with --class-order. If not: kdcache teacher-train "
            f"--init {where}."
        )
        check_class_names(in_weights, names, f"weights {where}", remedy)
    elif list(names) == sorted(names) != natural_order(names):
        log.warning(
            "the classes of the weights are taken to be in alphabetical order, such as 1, 10, 2; "
            "if they are in the order of numbers, as timm sorts them, add --class-order %s",
            NATURAL,
        )

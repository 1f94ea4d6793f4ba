"""Initial weights from a trained network, whose classes may be others."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache import tensor_files
from kdcache.datasets import Dataset
from kdcache.errors import UsageError, abbreviated, problem
from kdcache.models.class_order import find_class_names, same_classes
from kdcache.models.layouts import COUNTER, State
from kdcache.models.load import normalize, set_rendering
from kdcache.models.network import Network
from kdcache.models.published import Published
from kdcache.models.registry import build, expected_state
from kdcache.models.sources import read_weights
from kdcache.models.weights import find_tensors, load_tensors, most_similar_network, report_others

__all__ = ["InitialWeights", "head_of", "start_from"]

MAX_TENSORS_LISTED = 3

log = logging.getLogger("kdcache")


class InitialWeights(NamedTuple):
    """The weights that a network starts from: a digest of its tensors and normalization, without a new head.

    And how it sees pictures: its normalization, and its rendering, whose size is that of the data.
    """

    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int
    interpolation: str


def start_from(
    network: Network,
    weights: str | Path,
    data: Dataset,
    may_download: bool,
    option: str = "--init",
    new_head: str | None = None,
) -> InitialWeights:
    """Give a network the weights and the normalization of a trained one. The head stays as it is for other classes.

    What was taken, and what not, is logged.

    Parameters
    ----------
    network : Network
    weights : str or Path
        See `kdcache.models.sources.read_weights`.
    data : Dataset
        Whose classes the network is to tell apart.
    may_download : bool
    option : str
        What names the weights, for messages.
    new_head : str, optional
        Take all but the head, and say so in these words.

    Raises
    ------
    UsageError
        If there are no such weights, or they are those of another network.
    KdcacheError
        If a download fails.
    """
    stated = read_weights(str(weights), network.name, network.image_size, may_download)
    own = network.body.state_dict()
    found = find_tensors(own, stated.entries, weights, remedy="Save the one to start from in a file of its own.")
    head = head_of(network.name, network.num_classes, network.image_size)
    is_new, reason = (True, new_head) if new_head else _new_head(own, head, found.taken, stated, data)
    taken = State({**found.taken, **({name: own[name] for name in head} if is_new else {})})
    taken.versions = found.taken.versions
    wrong, left_out = load_tensors(network, taken, weights)
    if wrong:
        fitting = most_similar_network(stated.entries)
        remedy = f"The tensors fit {fitting}." if fitting not in (None, network.name) else None
        got = "; ".join(f"{what}: {abbreviated(names, MAX_TENSORS_LISTED)}" for what, names in wrong.items())
        other = "Name the network that they are of with --model, and its --image-size if that is fixed."
        what = f"{option} {weights}: tensors"
        raise UsageError(problem(what, expected=f"those of {network.name}", got=got, remedy=remedy or other))
    report_others(found, left_out, weights, f"which {option} does not take")
    kept = own.keys() - (head if is_new else {})
    missing = {name for name in kept - found.taken.keys() if name.endswith(COUNTER)}
    log.info(
        "%s: %d of %d tensors of %s; %s", option.removeprefix("--"), len(kept - missing), len(own), weights, reason
    )
    normalize(network, stated, data)
    set_rendering(network, stated, data)
    tensors = {name: network.body.state_dict()[name] for name in sorted(kept)}
    digest = tensor_files.digest(tensors, {"mean": network.mean, "std": network.std})
    rendering = network.rendering
    return InitialWeights(digest, network.mean, network.std, rendering.shorter_side, rendering.interpolation)


def head_of(name: str, num_classes: int, image_size: int) -> dict[str, int]:
    """Find the tensors of a network whose shape depends on the number of classes, and the dimension that does.

    There is none in a network of the user's own that has a fixed number of classes.
    """
    shapes = _shapes(name, num_classes, image_size)
    try:
        others = _shapes(name, num_classes + 1, image_size)
    except UsageError:
        return {}
    pairs = {key: [*zip(shape, others[key], strict=True)] for key, shape in shapes.items()}
    return {
        key: next(index for index, (one, other) in enumerate(pair) if one != other)
        for key, pair in pairs.items()
        if any(one != other for one, other in pair)
    }


def _shapes(name: str, num_classes: int, image_size: int) -> dict[str, torch.Size]:
    state = expected_state(name, num_classes, image_size)
    if state is None:  # networks that cannot be built without memory
        state = build(name, num_classes=num_classes, image_size=image_size, seed=0).body.state_dict()
    return {key: tensor.shape for key, tensor in state.items()}


def _new_head(
    own: Mapping[str, Tensor], head: Mapping[str, int], taken: State, stated: Published, data: Dataset
) -> tuple[bool, str]:
    """Tell whether a network needs a new head, and in words why or why not."""
    if not head:
        return False, "with the head: the network has a fixed number of classes"
    given = {name: taken[name].shape for name in head if name in taken}
    if not given:
        return True, "new head: the weights have none"
    classes = {shape[head[name]] for name, shape in given.items() if len(shape) == own[name].dim()}
    fits = all(
        len(shape) == own[name].dim() and _without(shape, head[name]) == _without(own[name].shape, head[name])
        for name, shape in given.items()
    )
    if not fits or len(classes) > 1:  # which is reported with the other tensors
        return False, ""
    (number,) = classes
    if number != data.num_classes:
        return True, f"new head: {number} classes to {data.num_classes}"
    names = find_class_names(stated.name_lists, data.class_names)
    same = same_classes(names, data.class_names) if names else None
    if same is None:
        return False, "with the head, whose classes are taken to be those of the data in their order"
    return not same, "with the head, whose classes are the same" if same else "new head: other classes"


def _without(shape: torch.Size, dimension: int) -> list[int]:
    return [size for index, size in enumerate(shape) if index != dimension]

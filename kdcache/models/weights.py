"""Weights from a checkpoint, loaded into a network, with all differences named."""

import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.errors import UsageError, abbreviated, first_line, problem
from kdcache.models.base import load_state, state_versions
from kdcache.models.layouts import (
    COUNTER,
    Entries,
    Place,
    State,
    choose_place,
    find_places,
    is_plain,
    take,
    without_wrappers,
)
from kdcache.models.network import Network
from kdcache.models.registry import REGISTRY, expected_state

__all__ = [
    "Tensors",
    "find_tensors",
    "load_into",
    "load_tensors",
    "most_similar_network",
    "report_others",
    "start_from_them",
]

log = logging.getLogger("kdcache")

MAX_TENSORS_LISTED = 10

MIN_SIMILARITY = 0.8
"""Fraction of tensors that a file and a network must have in common for `most_similar_network` to name the network."""

# Of AveragedModel, thop, training scripts, and mmcv, whose ema_... are the raw weights; what the constructors of
# transformers compute; and the classifiers that GoogLeNet and Inception have in training alone.
_UNREAD = re.compile(
    rf"(.*\.)?(n_averaged|total_ops|total_params|{COUNTER}|relative_position_index|position_ids|attn_mask)"
    r"|ema_\w+|(best_?)?(acc|accuracy|prec|top|loss)\d?|lr|decay|(aux1|aux2|AuxLogits)\..*"
)


class Tensors(NamedTuple):
    """The tensors of a checkpoint that a network takes, by the network's names, and what else is in the file.

    Attributes
    ----------
    place : Place
        Where they are.
    others : list of Place
        Where other such tensors are.
    taken : State
    beside : list of str
        Names of tensors that are not behind the prefix of the others.
    """

    place: Place
    others: list[Place]
    taken: State
    beside: list[str]


def load_into(network: Network, entries: Entries, where: object, choice: str | None = None) -> str:
    """Load tensors into a network, and log which ones if the checkpoint has others.

    Parameters
    ----------
    network : Network
    entries : Entries
    where : object
        The file, for the messages.
    choice : str, optional
        Load what is under this name, the keys and prefixes that lead to it joined by dots.

    Returns
    -------
    str
        Name of the tensors that were loaded, as `choice` would give it.

    Raises
    ------
    UsageError
        If names or shapes differ, and the message names the network that the tensors would fit; or if a value is not
        finite.
    """
    expected = network.body.state_dict()
    found = find_tensors(expected, entries, where, choice)
    if classes := _other_classes(network, found.taken):
        what, wanted = f"weights {where}: number of classes", f"{network.num_classes}, as in the data"
        raise UsageError(problem(what, expected=wanted, got=classes, remedy=start_from_them(where)))
    wrong, left_out = load_tensors(network, found.taken, where)
    if wrong:
        fitting = most_similar_network(entries)
        remedy = f"The tensors fit {fitting}." if fitting not in (None, network.name) else None
        raise UsageError(
            *(
                problem(
                    f"weights {where}: tensors {what}",
                    expected=f"those of {network.name}",
                    got=abbreviated(names, MAX_TENSORS_LISTED),
                    remedy=remedy,
                )
                for what, names in wrong.items()
            )
        )
    report_others(found, left_out, where, "which --weights-entry chooses")
    return found.place.name


def start_from_them(where: object) -> str:
    """Say what weights for other classes are good for."""
    return f"Train a teacher for the classes of the data from them: kdcache teacher-train --init {where}."


def find_tensors(
    expected: Mapping[str, Tensor],
    entries: Entries,
    where: object,
    choice: str | None = None,
    remedy: str = "Choose one with --weights-entry.",
) -> Tensors:
    """Find the tensors of a network in a checkpoint.

    Parameters
    ----------
    expected : mapping of str to Tensor
        The state of the network.
    entries, where, choice
        As in `load_into`.
    remedy : str
        How one of several networks in a checkpoint is chosen.

    Raises
    ------
    UsageError
        If there is no such choice, there are several networks, or a tensor is not dense and real.
    """
    entries = without_wrappers(entries, expected)
    place, others = choose_place(entries, expected, where, choice, remedy)
    taken, beside = take(place, others, entries[place.entry])
    if odd := sorted(name for name, value in taken.items() if not is_plain(value)):
        names = abbreviated(odd, MAX_TENSORS_LISTED)
        raise UsageError(problem(f"weights {where}: tensors", expected="dense, of real numbers", got=names))
    return Tensors(place, others, taken, beside)


def load_tensors(network: Network, tensors: State, where: object) -> tuple[dict[str, set[str]], set[str]]:
    """Load tensors into a network.

    Returns
    -------
    wrong : dict of str to set of str
        The tensors that are missing, unknown, or of another shape or type, by these words; empty if all were loaded.
    left_out : set of str
        Those that the network does not have.

    Raises
    ------
    UsageError
        If a value is not finite, or the network's own code refuses the tensors.
    """
    expected = network.body.state_dict()
    finite = {name for name, value in expected.items() if value.isfinite().all()}  # masks may have infinities
    other_shape = _of_other_shape(expected, tensors)
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if not other_shape:
        try:
            versions = {"": state_versions(network.body)[""], **tensors.versions}
            missing, unknown = map(set, load_state(network.body, tensors, versions, strict=False))
        except Exception as error:  # the network's own code may convert tensors, or refuse them
            what = f"weights {where} do not fit {network.name}"
            raise UsageError(problem(what, got=first_line(error))) from error
    wrong = {
        "missing": set() if all(name.endswith(COUNTER) for name in missing) else missing,
        "unknown": set() if all(_is_unread(name, tensors.get(name)) for name in unknown) else unknown,
        "of another shape or type": other_shape,
    }
    if any(wrong.values()):
        return {what: names for what, names in wrong.items() if names}, unknown
    loaded = network.body.state_dict()
    if bad := [name for name in finite if not _is_computable(name, loaded[name])]:
        names = abbreviated(bad, MAX_TENSORS_LISTED)
        remedy = "Take another checkpoint: this one diverged, or is damaged."
        raise UsageError(
            problem(
                f"weights {where}: tensors",
                expected="finite numbers, and no negative variance",
                got=names,
                remedy=remedy,
            )
        )
    return {}, unknown


def _of_other_shape(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> set[str]:
    """List the tensors that have another shape than a network's, or numbers of another kind."""

    def facts(tensor: Tensor) -> tuple[torch.Size, bool]:
        return tensor.shape, tensor.is_floating_point()

    return {key for key in expected.keys() & tensors.keys() if facts(expected[key]) != facts(tensors[key])}


def _is_computable(name: str, tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all()) and not (name.endswith("running_var") and bool((tensor < 0).any()))


def _is_unread(name: str, tensor: Tensor | None) -> bool:
    """Whether no forward reads a tensor that a network does not have: a counter, or something known by its name."""
    is_counter = tensor is not None and tensor.numel() == 1 and not tensor.is_floating_point()
    return is_counter or _UNREAD.fullmatch(name) is not None


def _other_classes(network: Network, tensors: Mapping[str, Tensor]) -> int | None:
    """Tell for how many classes tensors are that differ from a network's in their number of classes alone."""
    expected = network.body.state_dict()
    differing = _of_other_shape(expected, tensors)
    own, given = ({tuple(state[key].shape[:1]) for key in differing} for state in (expected, tensors))
    rests = all(expected[key].shape[1:] == tensors[key].shape[1:] for key in differing)
    if not rests or own != {(network.num_classes,)} or own == given or len(given) > 1:
        return None
    return next(iter(given))[0]


def most_similar_network(entries: Entries) -> str | None:
    """Name the network of kdcache whose tensors are most similar, for any number of classes; ``None`` if none is."""
    similarity = {name: _similarity(entries, name) for name in REGISTRY}
    best = max(similarity, key=lambda name: similarity[name])
    return best if similarity[best] > MIN_SIMILARITY else None


@cache  # a file is compared with all of them
def _state_for_one_class(name: str) -> State:
    return State(expected_state(name, 1, 32) or {})


def _similarity(entries: Entries, name: str) -> float:
    expected = _state_for_one_class(name)
    entries = without_wrappers(entries, expected)
    place = max(find_places(entries, expected), key=lambda place: place.fit, default=None)
    if place is None:
        return 0
    given, own = (
        {(key, tuple(tensor.shape)) for key, tensor in state.items() if not key.endswith(COUNTER)}
        for state in (take(place, [], entries[place.entry])[0], expected)
    )
    return len(own & given) / len(own | given)


def report_others(found: Tensors, left_out: set[str], where: object, remedy: str) -> None:
    """Log which tensors of a checkpoint were not taken: those of other networks, and those that no network has."""
    if found.others:
        names = ", ".join(dict.fromkeys(other.name for other in found.others))
        kind = "averaged (EMA) weights" if not found.place.rank[0] else "weights"
        place = found.place.name
        log.warning("%s: took the %s in %s; there are others in %s, %s", where, kind, place, names, remedy)
    if left_out := {*found.beside, *left_out}:
        names = abbreviated(left_out, MAX_TENSORS_LISTED)
        log.info("%s: left out, because the network does not have them: %s", where, names)

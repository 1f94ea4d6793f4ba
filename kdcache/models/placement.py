"""Where a checkpoint has the tensors of a network: in which dictionary, under which prefix, and beside which others."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache.errors import UsageError, abbreviated, first_line, problem
from kdcache.models.base import load_state, state_versions
from kdcache.models.network import Network
from kdcache.models.registry import REGISTRY

__all__ = ["Entries", "is_plain", "load_into", "most_similar_network"]

log = logging.getLogger("kdcache")

Entries = Mapping[str, Mapping[str, Tensor]]
"""The tensors of each dictionary in a file, by the keys that lead to it, joined by dots; the outermost is ``""``."""

MAX_TENSORS_LISTED = 10

MIN_SIMILARITY = 0.8
"""Fraction of tensors that a file and a network must have in common for `most_similar_network` to name the network."""

_COUNTER = "num_batches_tracked"
"""Batch norm's count of batches, which files of before torch 0.4.1 lack; no forward reads it."""

# Counters of AveragedModel and thop, indices that the constructors of transformers compute, and the classifiers that
# GoogLeNet and Inception have in training alone.
_UNREAD = re.compile(
    rf"(.*\.)?(n_averaged|num_updates|total_ops|total_params|{_COUNTER}|relative_position_index|position_ids)"
    r"|(aux1|aux2|AuxLogits)\..*"
)

_EMA = re.compile(r"(^|_)ema(_|$)", re.IGNORECASE)
_PREFERRED = ("state_dict_ema", "model_ema", "model", "state_dict", "model_state_dict", "net", "")
"""Dictionaries that are taken before others if several fit, after those of averaged weights."""


class State(dict[str, Tensor]):
    """Tensors by the names of a network, with the versions of its modules where the file states them."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: dict[str, Any] = {}


class Place(NamedTuple):
    """Where a checkpoint has the tensors of a network, or most of them.

    Attributes
    ----------
    entry : str
        A key of `Entries`.
    prefixes : tuple of str
        What precedes the network's names: one prefix, or those of two parts, such as backbone and head.
    fit : (int, int)
        Number of the network's tensors that are there, and of those that have the right shape.
    """

    entry: str
    prefixes: tuple[str, ...]
    fit: tuple[int, int]

    @property
    def name(self) -> str:
        """Name for ``--weights-entry``."""
        prefix = self.prefixes[0] if len(self.prefixes) == 1 else ""
        return f"{self.entry}.{prefix}".strip(".")

    @property
    def rank(self) -> tuple[bool, int]:
        """Which of several places is taken: the least one. Averaged weights come first, as in timm."""
        parts = self.name.split(".")
        order = [_PREFERRED.index(part) for part in parts if part in _PREFERRED]
        return not any(map(_EMA.search, parts)), min(order, default=len(_PREFERRED))

    def is_part_of(self, other: "Place") -> bool:
        """Whether all tensors of this place are those of another."""
        return self.entry == other.entry and set(self.prefixes) <= set(other.prefixes)


def load_into(network: Network, entries: Entries, where: object, choice: str | None = None) -> None:
    """Load tensors into a network, and log which ones if the checkpoint has others.

    Parameters
    ----------
    network : Network
    entries : Entries
    where : object
        The file, for the messages.
    choice : str, optional
        Load what is under this name, the keys and prefixes that lead to it joined by dots.

    Raises
    ------
    UsageError
        If names or shapes differ. The message names the network that the tensors would fit.
    """
    expected = network.body.state_dict()
    place, others = _choose(entries, expected, where, choice)
    tensors, beside = _taken(place, others, entries[place.entry])
    if odd := sorted(name for name, value in tensors.items() if not is_plain(value)):
        names = abbreviated(odd, MAX_TENSORS_LISTED)
        raise UsageError(problem(f"weights {where}: tensors", expected="dense, of real numbers", got=names))

    def differs(key: str) -> bool:
        floats = [tensor.is_floating_point() for tensor in (expected[key], tensors[key])]
        return expected[key].shape != tensors[key].shape or floats[0] != floats[1]

    other_shape = {key for key in expected.keys() & tensors.keys() if differs(key)}
    if classes := _other_classes(network, tensors, other_shape):
        what, remedy = f"weights {where}: number of classes", "A teacher must know the classes of the data."
        raise UsageError(problem(what, expected=f"{network.num_classes}, as in the data", got=classes, remedy=remedy))
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if not other_shape:
        try:
            versions = {"": state_versions(network.body)[""], **tensors.versions}
            missing, unknown = map(set, load_state(network.body, tensors, versions, strict=False))
        except Exception as error:  # the network's own code may convert tensors, or refuse them
            what = f"weights {where} do not fit {network.name}"
            raise UsageError(problem(what, got=first_line(error))) from error
    wrong = {
        "missing": set() if all(name.endswith(_COUNTER) for name in missing) else missing,
        "unknown": set() if all(map(_UNREAD.fullmatch, unknown)) else unknown,
        "of another shape or type": other_shape,
    }
    if any(wrong.values()):
        raise UsageError(*_differences(network, entries, where, wrong))
    _report(where, place, others, {*beside, *unknown})


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, and on the CPU, as the state of a network is."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    return dense and tensor.device.type == "cpu" and not tensor.is_complex()


def most_similar_network(entries: Entries) -> str | None:
    """Name the network of kdcache whose tensors are most similar, for any number of classes; ``None`` if none is."""
    similarity = {name: _similarity(entries, name) for name in REGISTRY}
    best = max(similarity, key=lambda name: similarity[name])
    return best if similarity[best] > MIN_SIMILARITY else None


def _similarity(entries: Entries, name: str) -> float:
    with torch.device("meta"):
        expected = REGISTRY[name](1).state_dict()
    place = max(_places(entries, expected), key=lambda place: place.fit, default=None)
    if place is None:
        return 0
    given, own = (
        {(key, tuple(tensor.shape)) for key, tensor in state.items() if not key.endswith(_COUNTER)}
        for state in (_taken(place, [], entries[place.entry])[0], expected)
    )
    return len(own & given) / len(own | given)


def _places(entries: Entries, expected: Mapping[str, Tensor]) -> Iterator[Place]:
    """List the places where tensors have the names of a network's, behind one prefix or two."""
    keys = [key for key in expected if not key.endswith(_COUNTER)]
    for entry, tensors in entries.items():
        prefixes = _prefixes_by_rest(tensors)
        counts = Counter(prefix for key in keys for prefix in prefixes.get(key, ()))
        most = max(counts.values(), default=0)
        for first in (prefix for prefix, count in counts.items() if count == most):
            yield Place(entry, (first,), _fit(expected, keys, tensors, first))
            rest = [key for key in keys if first + key not in tensors]
            others = Counter(prefix for key in rest for prefix in prefixes.get(key, ()))
            apart = [prefix for prefix in others if not prefix.startswith(first) and not first.startswith(prefix)]
            if apart:
                second = max(apart, key=lambda prefix: others[prefix])
                yield Place(entry, (first, second), _fit(expected, keys, tensors, first, second))


def _fit(
    expected: Mapping[str, Tensor], keys: list[str], tensors: Mapping[str, Tensor], *prefixes: str
) -> tuple[int, int]:
    found = {key: prefix + key for prefix in reversed(prefixes) for key in keys if prefix + key in tensors}
    return len(found), sum(tensors[name].shape == expected[key].shape for key, name in found.items())


def _prefixes_by_rest(names: Iterable[str]) -> dict[str, list[str]]:
    """Split names at each dot, and list the beginnings by the end."""
    found: dict[str, list[str]] = {}
    for name in names:
        for start in (0, *(match.end() for match in re.finditer(r"\.", name))):
            found.setdefault(name[start:], []).append(name[:start])
    return found


def _choose(
    entries: Entries, expected: Mapping[str, Tensor], where: object, choice: str | None
) -> tuple[Place, list[Place]]:
    """Choose the place of a network's tensors, and list the others where they are too, or most of them."""
    places = list(_places(entries, expected))
    if choice is not None:
        known = ", ".join(dict.fromkeys(place.name for place in places)) or ", ".join(entries)
        places = [place for place in places if f"{place.name}.".startswith(f"{choice}.")]
        if not places:
            raise UsageError(problem(f"--weights-entry of {where}", expected=f"one of {known}", got=choice))
    if not places:
        largest = max(entries, key=lambda entry: len(entries[entry]))
        return Place(largest, ("",), (0, 0)), []
    best = max(place.fit for place in places)
    fitting = sorted((place for place in places if place.fit == best), key=lambda place: place.rank)
    if len(fitting) > 1 and fitting[0].rank == fitting[1].rank:
        names, remedy = ", ".join(place.name for place in fitting), "Choose one with --weights-entry."
        raise UsageError(problem(f"weights {where}", expected="one network", got=f"several: {names}", remedy=remedy))
    chosen = fitting[0]
    others = [place for place in places if 2 * place.fit[0] > best[0] and not place.is_part_of(chosen)]
    return chosen, others


def _taken(place: Place, others: list[Place], tensors: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Take the tensors of a place, by the network's names, and list the names of those beside them."""
    copies = tuple(
        prefix
        for other in others
        if other.entry == place.entry
        for prefix in other.prefixes
        if prefix not in place.prefixes and prefix.startswith(place.prefixes)
    )
    taken, beside = State(), []
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in place.prefixes if name.startswith(prefix)), None)
        if prefix is None and len(place.prefixes) == 1:
            beside.append(name)
        elif not name.startswith(copies):
            taken[name.removeprefix(prefix or "")] = tensor
    found = getattr(tensors, "_metadata", None)
    for module, facts in found.items() if isinstance(found, dict) else ():
        prefix = next((prefix for prefix in place.prefixes if f"{module}.".startswith(prefix)), None)
        if isinstance(facts, dict) and prefix is not None:
            taken.versions[f"{module}.".removeprefix(prefix).rstrip(".")] = facts
    return taken, beside


def _other_classes(network: Network, tensors: Mapping[str, Tensor], differing: set[str]) -> int | None:
    """Tell for how many classes tensors are that differ from a network's in their number of classes alone."""
    expected = network.body.state_dict()
    own, given = ({tuple(state[key].shape[:1]) for key in differing} for state in (expected, tensors))
    rests = all(expected[key].shape[1:] == tensors[key].shape[1:] for key in differing)
    if not rests or own != {(network.num_classes,)} or own == given or len(given) > 1:
        return None
    return next(iter(given))[0]


def _differences(network: Network, entries: Entries, where: object, wrong: Mapping[str, set[str]]) -> list[str]:
    fitting = most_similar_network(entries)
    remedy = f"The tensors fit {fitting}." if fitting not in (None, network.name) else None
    return [
        problem(
            f"weights {where}: tensors {what}",
            expected=f"those of {network.name}",
            got=abbreviated(names, MAX_TENSORS_LISTED),
            remedy=remedy,
        )
        for what, names in wrong.items()
        if names
    ]


def _report(where: object, place: Place, others: list[Place], left_out: set[str]) -> None:
    if others:
        names = ", ".join(dict.fromkeys(other.name or "the top level" for other in others))
        kind = "averaged (EMA) weights" if not place.rank[0] else "weights"
        log.warning(
            "%s: took the %s in %s; there are others in %s, which --weights-entry chooses",
            *(where, kind, place.name or "the top level", names),
        )
    if left_out:
        names = abbreviated(left_out, MAX_TENSORS_LISTED)
        log.info("%s: left out, because the network does not have them: %s", where, names)

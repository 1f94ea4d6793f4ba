"""Where a checkpoint has the tensors of a network: in which dictionary, under which prefix, and beside which others."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache.errors import UsageError, problem

__all__ = [
    "COUNTER",
    "Entries",
    "Place",
    "State",
    "choose_place",
    "find_places",
    "is_plain",
    "take",
    "without_wrappers",
]

Entries = Mapping[str, Mapping[str, Tensor]]
"""The tensors of each dictionary in a file, by the keys that lead to it, joined by dots; the outermost is ``""``."""

TOP = "."
"""Name of the outermost dictionary for ``--weights-entry``."""

COUNTER = "num_batches_tracked"
"""Batch norm's count of batches, which files of before torch 0.4.1 lack; no forward reads it."""

_EMA = re.compile(r"(?i:(^|_)(ema|swa|averaged?)(_|$))|EMA$|^ema[A-Z]")
_PREFERRED = ("state_dict_ema", "model_ema", "model", "state_dict", "model_state_dict", "net")
"""Dictionaries that are taken before others if several fit, after those of averaged weights."""

_WRAPPER = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DataParallel, torch.compile and others put into names."""


class State(dict[str, Tensor]):
    """Tensors by name, with the versions of the modules that wrote them, where a file states them, see `load_state`."""

    versions: Mapping[str, Any] = {}


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
        return f"{self.entry}.{prefix}".strip(".") or TOP

    @property
    def rank(self) -> tuple[bool, int]:
        """Which of several places is taken: the least one. Averaged weights come first, as in timm."""
        parts = [self.name, *self.name.split(".")]
        order = [_PREFERRED.index(part) for part in parts if part in _PREFERRED]
        return not any(map(_EMA.search, parts)), min(order, default=len(_PREFERRED))

    def is_part_of(self, other: "Place") -> bool:
        """Whether all tensors of this place are those of another."""
        return self.entry == other.entry and set(self.prefixes) <= set(other.prefixes)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, and on the CPU, as the state of a network is."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    return dense and tensor.device.type == "cpu" and not tensor.is_complex()


def without_wrappers(entries: Entries, expected: Mapping[str, Tensor]) -> Entries:
    """Take the names of wrappers off, wherever they stand, if more of a network's tensors are found then."""
    if not any(_WRAPPER.search(name) for tensors in entries.values() for name in tensors):
        return entries
    plain: dict[str, State] = {}
    for entry, tensors in entries.items():
        plain[entry] = State({_WRAPPER.sub("", name): tensor for name, tensor in tensors.items()})
        versions = _versions(tensors)
        plain[entry].versions = {_WRAPPER.sub("", f"{module}.")[:-1]: versions[module] for module in versions}
    fits = [max((place.fit for place in find_places(each, expected)), default=(0, 0)) for each in (entries, plain)]
    return plain if fits[1] > fits[0] else entries


def _versions(tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    return tensors.versions if isinstance(tensors, State) else {}


def find_places(entries: Entries, expected: Mapping[str, Tensor]) -> Iterator[Place]:
    """List the places where tensors have the names of a network's, behind one prefix or two."""
    keys = [key for key in expected if not key.endswith(COUNTER)]
    for entry, tensors in entries.items():
        prefixes = _prefixes_by_rest(tensors)
        counts = Counter(prefix for key in keys for prefix in prefixes.get(key, ()))
        most = max(counts.values(), default=0)
        for first in (prefix for prefix, count in counts.items() if count == most):
            yield Place(entry, (first,), _fit(expected, keys, tensors, first))
            rest = [key for key in keys if first + key not in tensors]
            others = Counter(prefix for key in rest for prefix in prefixes.get(key, ()))
            apart = [prefix for prefix in others if not prefix.startswith(first)]
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


def choose_place(
    entries: Entries, expected: Mapping[str, Tensor], where: object, choice: str | None, remedy: str
) -> tuple[Place, list[Place]]:
    """Choose the place of a network's tensors, and list the others where they are too, or most of them.

    `remedy` says how one of several places is chosen.
    """
    places = list(find_places(entries, expected))
    if choice is not None:
        known = ", ".join(dict.fromkeys(place.name for place in places)) or ", ".join(entries)
        places = [place for place in places if place.name == choice or place.name.startswith(f"{choice}.")]
        if not places:
            raise UsageError(problem(f"--weights-entry of {where}", expected=f"one of {known}", got=choice))
    if not places:
        largest = max(entries, key=lambda entry: len(entries[entry]))
        return Place(largest, ("",), (0, 0)), []
    best = max(place.fit for place in places)
    fitting = sorted((place for place in places if place.fit == best), key=lambda place: place.rank)
    is_network = 2 * best[0] > len(expected)  # else the file has another one, in which some names come several times
    if is_network and len(fitting) > 1 and fitting[0].rank == fitting[1].rank:
        names = ", ".join(place.name for place in fitting)
        raise UsageError(problem(f"weights {where}", expected="one network", got=f"several: {names}", remedy=remedy))
    chosen = fitting[0]
    others = [place for place in places if 2 * place.fit[0] > best[0] and not place.is_part_of(chosen)]
    return chosen, others


def take(place: Place, others: list[Place], tensors: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Take the tensors of a place, by the network's names, and list those beside it that other places do not have."""
    prefixes = {prefix for other in others if other.entry == place.entry for prefix in other.prefixes}
    copies = tuple(copy for copy in prefixes if not any(prefix.startswith(copy) for prefix in place.prefixes))

    def prefix_of(name: str) -> str | None:
        return next((prefix for prefix in place.prefixes if name.startswith(prefix)), None)

    first = place.prefixes[0]
    taken, beside = State(), []
    for name, tensor in tensors.items():
        if name.startswith(copies):
            continue
        prefix = prefix_of(name)
        key = name.removeprefix(prefix or "")
        if prefix is None and len(place.prefixes) == 1:
            beside.append(name)
        elif prefix != first and first + key in tensors:  # the other part of the network has its own
            taken[name] = tensor
        else:
            taken[key] = tensor
    taken.versions = {
        f"{module}.".removeprefix(prefix).rstrip("."): version
        for module, version in _versions(tensors).items()
        if (prefix := prefix_of(f"{module}.")) is not None
    }
    return taken, beside

"""The order of a network's classes: as its file states it, as the user gives it, and changed to that of the data."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from kdcache.errors import UsageError, abbreviated, first_line, problem
from kdcache.models.modes import evaluating
from kdcache.models.network import Network

__all__ = [
    "NATURAL",
    "NameList",
    "check_class_names",
    "find_class_names",
    "natural_order",
    "read_class_order",
    "reorder_classes",
    "same_classes",
]

NATURAL = "natural"
"""The order of names with numbers in them by these numbers, ignoring case, as timm sorts class folders."""

NameList = tuple[str, tuple[str, ...]]
"""A list of names in a file, and the key under which it is."""

MAX_NAMES_LISTED = 5

_CLASS_KEYS = (
    *("class_names", "classes", "CLASSES", "label_names", "categories", "names", "labels"),
    *("class_to_idx", "idx_to_class", "id2label", "label2id"),
)
"""Keys under which projects keep the names of classes, as a list or by index."""

TEST_IMAGES = 8

# What stands for a name and does not say which class it is.
_CODES = {"WordNet ID": re.compile(r"n\d{8}"), "number": re.compile(r"(class|label)?[ _-]?\d+")}


def check_class_names(stated: Sequence[str], expected: Sequence[str], where: object, remedy: str | None = None) -> None:
    """Compare the names that a file states with as many of the data, as far as they can be compared.

    The same class may have another of its synonyms as its name, and WordNet IDs or numbers may stand for names.

    Raises
    ------
    UsageError
        If a class has another position, or most names are others.
    """
    if _code(stated) != _code(expected):
        return
    ours, theirs = _comparable(expected, stated)
    positions = {name: index for index, name in enumerate(theirs) if theirs.count(name) == 1}
    elsewhere = [index for index, name in enumerate(ours) if positions.get(name, index) != index]
    different = [index for index, name in enumerate(ours) if theirs[index] != name]
    if elsewhere or 2 * len(different) > len(ours):
        first = min(elsewhere or different)
        what, wanted = f"{where}: class {first}", f"{expected[first]!r}, as in the data"
        raise UsageError(problem(what, expected=wanted, got=repr(stated[first]), remedy=remedy))


def same_classes(stated: Sequence[str], expected: Sequence[str]) -> bool | None:
    """Whether `check_class_names` accepts the names of a file; ``None`` if they cannot be compared."""
    if _code(stated) != _code(expected):
        return None
    try:
        check_class_names(stated, expected, "weights")
    except UsageError:
        return False
    return True


def _code(names: Sequence[str]) -> str | None:
    return next((kind for kind, code in _CODES.items() if all(map(code.fullmatch, names))), None)


def _comparable(*lists: Sequence[str]) -> list[list[str]]:
    """Bring names into a form that does not depend on how they are written, unless it makes different ones equal."""
    exact = [[same_form(name) for name in names] for names in lists]
    loose = [[name.split(",")[0].casefold().replace("_", " ").strip() for name in names] for names in exact]
    return loose if all(len(set(a)) == len(set(b)) for a, b in zip(loose, exact, strict=True)) else exact


def find_class_names(lists: Sequence[NameList], expected: Sequence[str]) -> tuple[str, ...] | None:
    """Find the names of the classes among the lists of names in a file.

    A list of the expected names is one, whatever its order and its key; otherwise, one under a usual key.
    """
    fitting = [names for _, names in lists if len(names) == len(expected)]
    usual = [names for key, names in lists if len(names) == len(expected) and key in _CLASS_KEYS]

    def has_same_names(names: Sequence[str]) -> bool:
        ours, theirs = _comparable(expected, names)
        return sorted(ours) == sorted(theirs)

    return next(filter(has_same_names, fitting), next(iter(usual), None))


def same_form(name: str) -> str:
    """Bring a name into Unicode's composed form, without space around it."""
    return unicodedata.normalize("NFC", name).strip()


def natural_order(names: Sequence[str]) -> list[str]:
    """Sort names as `NATURAL` says."""

    def key(name: str) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name.lower())]

    return sorted(names, key=key)


def read_class_order(order: str, names: Sequence[str]) -> list[int]:
    """Find the position of each class of the data in a checkpoint.

    Parameters
    ----------
    order : str
        `NATURAL`, or a file with the names in the checkpoint's order, one a line.
    names : sequence of str
        The names in the order of the data.

    Raises
    ------
    UsageError
        If the file cannot be read, or has other names than the data.
    """
    if order == NATURAL:
        listed = natural_order(names)
    else:
        try:
            if Path(order).exists() and not Path(order).is_file():  # reading a pipe would wait
                raise ValueError("no regular file")
            listed = Path(order).read_text("utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            expected, got = f"{NATURAL}, or a file of names in UTF-8", getattr(error, "strerror", first_line(error))
            raise UsageError(problem(f"--class-order {order}", expected=expected, got=got)) from error
    given = [same_form(name) for name in listed if name.strip()]
    wanted = [same_form(name) for name in names]
    if len(given) != len(wanted):
        expected = f"{len(wanted)} names, one for each class of the data"
        raise UsageError(problem(f"--class-order {order}", expected=expected, got=len(given)))
    if sorted(given) != sorted(wanted):
        missing = abbreviated(set(wanted) - set(given), MAX_NAMES_LISTED)
        unknown = abbreviated(set(given) - set(wanted), MAX_NAMES_LISTED)
        got = f"{unknown or 'a name twice'} instead of {missing}"
        raise UsageError(problem(f"--class-order {order}", expected="the class names of the data", got=got))
    return [given.index(name) for name in wanted]


@torch.no_grad()
def reorder_classes(network: Network, positions: list[int]) -> None:
    """Change the order of a network's classes.

    Parameters
    ----------
    network : Network
    positions : list of int
        For each class of the new order, its position in the present one.

    Raises
    ------
    UsageError
        If the layers that give the logits are not found.
    """
    size = network.image_size
    images = torch.randint(0, 256, (TEST_IMAGES, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    rows = torch.tensor(positions)
    with evaluating(network):
        before = network(images)
    layers = [
        module
        for module in network.body.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == network.num_classes
    ]
    for layer in reversed(layers):  # distilled transformers have two, whose mean is taken
        for parameter in layer.parameters(recurse=False):
            parameter.copy_(parameter[rows])
        with evaluating(network):
            now = network(images)
        if torch.allclose(now, before[:, rows], rtol=1e-3, atol=1e-3 * float(before.std())):
            return
    raise UsageError(problem(f"--class-order: the last layer of {network.name}", expected="a linear layer"))

"""The stores of one teacher's logits beside each other: one for each set of images, rendering and format."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.answers.fingerprint import digest
from kdcache.answers.location import StoreLocation
from kdcache.answers.store import AnswerStore
from kdcache.checked_files import FOLDER, require_kind
from kdcache.errors import KdcacheError, UsageError, problem

__all__ = ["FoundStores", "TeacherStores", "UnreadableStore", "is_store_name"]

DIGITS = 12
"""Digits of the name of a store: the first ones of the digest of what its logits depend on."""

log = logging.getLogger("kdcache")


def is_store_name(name: str) -> bool:
    """Tell whether a store in a teacher's run folder may have this name."""
    return re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", name) is not None


class UnreadableStore(NamedTuple):
    """A store that is there, but cannot be opened.

    Attributes
    ----------
    folder : Path
    reason : str
    """

    folder: Path
    reason: str

    def size(self) -> int:
        """Bytes that it takes."""
        return StoreLocation(self.folder).size()


class FoundStores(NamedTuple):
    """The stores in a place, by name."""

    stores: list[AnswerStore]
    unreadable: Sequence[UnreadableStore] = ()

    @property
    def unreadable_bytes(self) -> int:
        """Bytes of the stores that cannot be read."""
        return sum(one.size() for one in self.unreadable)

    def readable(self) -> list[AnswerStore]:
        """Return the stores, and report those that cannot be read."""
        for one in self.unreadable:
            log.warning("this store is not used: %s", one.reason)
        return self.stores


class TeacherStores:
    """The folder of a teacher's stores, which need not exist.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    UsageError
        If there is a link or anything else than a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _require_folder(folder)

    def place(self, fingerprint: Mapping[str, Any]) -> Path:
        """Place of the store for logits with a fingerprint."""
        return self._checked(digest(fingerprint)[:DIGITS])

    def named(self, name: str) -> Path | None:
        """Place of the store with a name, if there is one."""
        return self._checked(name) if name in self._names() else None

    def open(self) -> list[AnswerStore]:
        """Open all stores; those that cannot be read are reported and left out."""
        return self.find().readable()

    def find(self) -> FoundStores:
        """Open all stores, and name those that cannot be read."""
        stores, unreadable = [], []
        for name in self._names():
            folder = self._checked(name)
            location = StoreLocation(folder)
            try:
                if location.holds_store():
                    stores.append(AnswerStore(location))
            except KdcacheError as error:
                unreadable.append(UnreadableStore(folder, str(error)))
        return FoundStores(stores, unreadable)

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(problem(f"could not list {self.folder}", got=error.strerror)) from None
        return sorted(filter(is_store_name, names))

    def _checked(self, name: str) -> Path:
        _require_folder(self.folder / name)
        return self.folder / name


def _require_folder(path: Path) -> None:
    require_kind(path, FOLDER, remedy="Name a store in another place with --store.")

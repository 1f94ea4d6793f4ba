"""The user's own code: losses, augmentations, criteria, networks and datasets that are not part of kdcache.

Each is named by its address, ``python:MODULE:CALLABLE``. A decorator gives it a shorter name in the process that has
called it. Code is imported only if the user named it, see `trust`. Nothing here imports torch.
"""

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Protocol, TypeVar

from kdcache.errors import KdcacheError, UsageError, first_line, is_out_of_memory, problem

__all__ = [
    "KINDS",
    "PYTHON_PREFIX",
    "Declared",
    "Registry",
    "addresses_in",
    "call",
    "explained",
    "import_object",
    "is_address",
    "is_trusted",
    "require_trusted",
    "source_digest",
    "trust",
]

PYTHON_PREFIX = "python:"

ADDRESS = re.compile(r"python:[\w.-]+:[\w.]+", re.ASCII)

NAME = re.compile(r"[a-zA-Z][\w-]*", re.ASCII)

KINDS = {"loss": "loss", "aug": "augmentation", "pick": "criterion", "model": "network", "dataset": "dataset"}
"""The settings that may name the user's own code, with words for messages."""

_trusted: set[str] = set()

_registered: dict[str, Any] = {}
"""What decorators have registered in this process, by address."""

_sources: dict[str, tuple[Any, str]] = {}
"""Digest of the source of each module with the user's own code, and the spec by which it was imported last."""

Made = TypeVar("Made")


def is_address(name: str) -> bool:
    """Whether a name is that of the user's own code."""
    return name.startswith(PYTHON_PREFIX)


def addresses_in(text: str) -> list[str]:
    """List the addresses in a setting, such as a sum of losses."""
    return ADDRESS.findall(text)


def trust(text: str) -> None:
    """Allow the code that a text names to be imported, because the user named it.

    Checkpoints, configs, stores and studies name code too, and nothing that is read from a file may decide what runs.

    Parameters
    ----------
    text : str
        A setting, such as ``python:module:callable+kd``. One without an address has no effect.
    """
    _trusted.update(addresses_in(text))


def is_trusted(text: str) -> bool:
    """Whether all code that a setting names may be imported."""
    return _trusted.issuperset(addresses_in(text))


def require_trusted(what: str, text: str) -> None:
    """Raise a `UsageError` unless all code that a setting names may be imported; `what` is a word for the message."""
    for name in addresses_in(text):
        if not is_trusted(name):
            remedy = f"If you trust it, add --trust {name} right after kdcache, before the command."
            raise UsageError(problem(f"the code of {what} {name} is not trusted", remedy=remedy))


def import_object(implementation: str, what: str = "object") -> Any:
    """Import an implementation: ``module:name`` of kdcache, or the address of the user's own code.

    Raises
    ------
    UsageError
        If the code is not trusted, or cannot be imported.
    """
    if not is_address(implementation):
        module, _, name = implementation.partition(":")
        return getattr(import_module(module), name)
    if not ADDRESS.fullmatch(implementation):
        raise UsageError(problem(f"name of a {what}", expected="python:MODULE:CALLABLE", got=implementation))
    require_trusted(what, implementation)
    if implementation in _registered:
        return _registered[implementation]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    _, module, path = implementation.split(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # the user's code may fail in any way
        remedy = "Modules are looked for in the current folder, and where Python looks for them."
        got = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(problem(f"could not import {what} {implementation}", got=got, remedy=remedy)) from error
    for place in (sys.modules[module], found):
        _source(place)  # now: the file may change while the process runs
    return found


def call(what: str, name: str, returns: tuple[type[Made], str], *arguments: Any, **keywords: Any) -> Made:
    """Call what an address names, and check what it returns.

    Parameters
    ----------
    what : str
        A word for messages, such as ``network``.
    name : str
    returns : (type, str)
        What it has to return, and the public name of that.
    *arguments, **keywords

    Raises
    ------
    UsageError
        If it cannot be imported, fails, or returns something else.
    """
    function = import_object(name, what)
    with explained(f"{what} {name}", name):
        made = function(*arguments, **keywords)
    kind, public = returns
    if not isinstance(made, kind):
        raise UsageError(problem(f"{what} {name}", expected=public, got=type(made).__name__))
    return made


@contextmanager
def explained(what: str, name: str) -> Iterator[None]:
    """Turn any exception of the user's own code into one line; those of kdcache pass.

    Parameters
    ----------
    what : str
        What has failed, for the message.
    name : str
        The code; one that is part of kdcache is not explained.
    """
    try:
        yield
    except Exception as error:
        if not is_address(name) or isinstance(error, KdcacheError) or is_out_of_memory(error):
            raise
        got, remedy = f"{type(error).__name__}: {first_line(error)}", "kdcache --debug shows where."
        raise UsageError(problem(f"{what} failed", got=got, remedy=remedy)) from error


def source_digest(name: str, *parts: object) -> str:
    """Digest of the source that an address leads to, in hexadecimal: that of whole modules, as they were imported.

    Parameters
    ----------
    name : str
        An address: its module counts, and the one that defines the object.
    *parts : object
        Further functions that the object consists of, whose modules count, too. Code without a file, such as a cell of
        a notebook, counts by its own source. If there is none either, the digest is ``none``.
    """
    found = import_object(name)
    sources = dict.fromkeys(map(_source, (sys.modules.get(name.split(":")[1]), found, *parts)))
    known = [source for source in sources if source is not None]
    return hashlib.sha256("".join(known).encode()).hexdigest()[:12] if known else "none"


def _source(place: Any) -> str | None:
    """Digest of a module's source, or that of the module of an object, as it was imported."""
    while isinstance(place, partial):
        place = place.func
    module = inspect.getmodule(place)
    if module is None or getattr(module, "__file__", None) is None:
        return _read_source(place)
    spec, (imported, digest) = getattr(module, "__spec__", None), _sources.get(module.__name__, (None, None))
    if digest is None or imported is not spec:  # a module that is imported again has another spec
        digest = _read_source(module)
        if digest is not None:
            _sources[module.__name__] = spec, digest
    return digest


def _read_source(place: Any) -> str | None:
    try:
        return hashlib.sha256(inspect.getsource(place).encode()).hexdigest()
    except (OSError, TypeError):
        return None


class Declared(Protocol):
    """How something is declared: where it is implemented, and further facts."""

    @property
    def implementation(self) -> str:
        """``module:name``, or an address."""


Info = TypeVar("Info", bound=Declared)


class Registry(dict[str, Info]):
    """The things of one kind: those of kdcache and registered ones by name, those of the user's code by address.

    An address is always contained; it is imported when it is looked up.

    Parameters
    ----------
    kind : str
        A key of `KINDS`. The decorator is ``kdcache.register_KIND``.
    declare : callable
        Makes the declaration of an address and what the decorator states.
    reserved : collection of str
        Other names that cannot be registered.
    """

    def __init__(self, kind: str, declare: Callable[..., Info], reserved: Collection[str] = ()) -> None:
        super().__init__()
        self.decorator, self.what = f"kdcache.register_{kind}", KINDS[kind]
        self._declare, self._reserved = declare, reserved
        self._own: dict[str, Info] = {}

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_address(name))

    def __missing__(self, name: str) -> Info:
        if not is_address(name):
            raise KeyError(name)
        found = import_object(name, self.what)
        for info in self._own.values():
            if _registered[info.implementation] is found:
                return info
        expected = f"code with the decorator {self.decorator}"
        raise UsageError(problem(f"{self.what} {name}", expected=expected, got="code without it"))

    def register(self, name: str, **declared: Any) -> Callable[[Made], Made]:
        """Make a decorator that registers a function or class under a name, and declares it.

        Raises
        ------
        UsageError
            If the name is malformed or taken, or the function or class is not at the top level of a module.
        """
        what = f"name for {self.decorator}"
        if not NAME.fullmatch(name):
            raise UsageError(problem(what, expected="letters, digits, - and _, a letter first", got=name))

        def decorate(implementation: Any) -> Any:
            address = f"{PYTHON_PREFIX}{implementation.__module__}:{implementation.__qualname__}"
            if name in self._reserved or (name in self and self[name].implementation != address):
                raise UsageError(problem(what, expected="one that is not taken", got=name))
            if not ADDRESS.fullmatch(address):
                expected = "a function or class at the top level of a module"
                raise UsageError(problem(self.decorator, expected=expected, got=address))
            self[name] = self._own[address] = self._declare(address, **declared)
            _registered[address] = implementation
            _source(implementation)
            trust(address)  # it runs already
            return implementation

        return decorate

    def address(self, name: str) -> str:
        """Return the address of something registered, which other processes understand; any other name as it is."""
        info = self.get(name)
        return info.implementation if info is not None and is_address(info.implementation) else name

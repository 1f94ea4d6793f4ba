"""What published files hold besides tensors and built-in types: numbers, arrays, options, dates and the like.

They are read into stand-ins of our own: NumPy's code for pickles trusts the bytes that it is given.
"""

import argparse
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch.torch_version import TorchVersion

__all__ = ["SAFE_GLOBALS", "PlainArray"]


class _Kind:
    """The dtype of a number or an array; numbers and text alone are decoded."""

    def __init__(self, text: object = "", *_: object) -> None:
        known = re.fullmatch(r"[biufcSU]\d{1,3}", text) if isinstance(text, str) else None
        self.dtype = np.dtype(known[0]) if known else None

    def __setstate__(self, state: object) -> None:
        if self.dtype is not None and isinstance(state, tuple) and state[1:2] == (">",):
            self.dtype = self.dtype.newbyteorder(">")

    def decode(self, content: object) -> list[Any] | None:
        """Decode bytes to values of Python's types."""
        if self.dtype is None or not isinstance(content, bytes) or len(content) % self.dtype.itemsize:
            return None
        values: list[Any] = np.frombuffer(content, self.dtype).tolist()
        return values


class PlainArray:
    """An array of NumPy's.

    Attributes
    ----------
    values : list or None
        Its values, if it has one dimension and holds numbers, text or objects.
    """

    values: list[Any] | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, (int(length),), _Kind() as kind, _, content):
                found = content if isinstance(content, list) else kind.decode(content)
                self.values = found if found is not None and len(found) == length else None


def _number(kind: object = None, content: object = None) -> object:
    """Turn a scalar of NumPy's into a number or text of Python's."""
    values = kind.decode(content) if isinstance(kind, _Kind) else None
    return values[0] if values else None


def _array(*_: object) -> PlainArray:
    return PlainArray()


def _empty_bytes(*_: object) -> bytes:
    return b""


def _dict(*_: object) -> dict[Any, Any]:
    return {}


def _list(*_: object) -> list[Any]:
    return []


class _Unread:
    """A value of which nothing is kept."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_UNREAD = {
    "builtins": "complex frozenset range slice bool dict float int list set str tuple",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "SafeUUID UUID",
    **dict.fromkeys(("pathlib", "pathlib._local"), "PosixPath PurePosixPath PureWindowsPath WindowsPath"),
}
"""Plain values of the standard library by module. Python 3.13 moved the paths."""


SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    SimpleNamespace,
    (TorchVersion, "torch.torch_version.TorchVersion"),
    (_empty_bytes, "builtins.bytes"),  # how protocol 2 writes them
    (_Kind, "numpy.dtype"),
    (PlainArray, "numpy.ndarray"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_dict, "collections.defaultdict"),
    (_list, "collections.deque"),
    *((_Unread, f"{module}.{name}") for module, names in _UNREAD.items() for name in names.split()),
]
"""For `torch.serialization.safe_globals`. NumPy 2 renamed ``core``."""

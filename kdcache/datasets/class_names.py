"""Names of classes that can be written to files and read again, and told apart."""

import unicodedata
from collections.abc import Iterable

from kdcache.errors import UsageError, problem

__all__ = ["check_class_names"]

CONTROLS = ("Cc", "Zl", "Zp")
"""Unicode's categories of control characters and separators of lines."""


def check_class_names(names: Iterable[str], where: object) -> None:
    """Check names before anything is done with them.

    Raises
    ------
    UsageError
        If a name is not UTF-8, which no file of kdcache could hold, or has control characters, which a list of names
        could not; or if two look the same: they differ in space or in Unicode's form alone, which tools change.
    """
    forms: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            what, remedy = f"class name of {where}", "Rename the class."
            raise UsageError(problem(what, expected="UTF-8", got=ascii(name), remedy=remedy)) from None
        if any(unicodedata.category(char) in CONTROLS for char in name):
            what, remedy = f"class name of {where}", "Rename the class."
            raise UsageError(problem(what, expected="text without control characters", got=ascii(name), remedy=remedy))
        other = forms.setdefault(" ".join(unicodedata.normalize("NFC", name).split()), name)
        if other != name:
            what, got = f"class names of {where}", f"{other!a} and {name!a}, which look the same"
            remedy = "Give both the same name, such as the composed form (NFC), without space around it."
            raise UsageError(problem(what, expected="one form of each", got=got, remedy=remedy))

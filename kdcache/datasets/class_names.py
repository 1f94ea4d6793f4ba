"""Names of classes that can be written to files and read again, and told apart."""

import unicodedata
from collections.abc import Iterable

from kdcache.errors import UsageError, problem

__all__ = ["check_class_names"]


def check_class_names(names: Iterable[str], where: object) -> None:
    """Check names before anything is done with them.

    Raises
    ------
    UsageError
        If a name is not UTF-8, which no file of kdcache could hold, or two are equal in Unicode's composed form, which
        look the same and are mixed up when folders are copied between systems.
    """
    forms: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            what, remedy = f"class name of {where}", "Rename the class."
            raise UsageError(problem(what, expected="UTF-8", got=ascii(name), remedy=remedy)) from None
        other = forms.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            what, got = f"class names of {where}", f"{other!a} and {name!a}, which look the same"
            remedy = "Give both the same name, such as the composed form (NFC)."
            raise UsageError(problem(what, expected="one Unicode form of each", got=got, remedy=remedy))

"""How a setting is declared, validated, and reported if it is invalid. Nothing here imports torch."""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

from kdcache.errors import problem

__all__ = [
    "GROUPS",
    "SET_BY_PRESET",
    "Choice",
    "ChoiceSum",
    "Invalid",
    "check_text",
    "expected_by",
    "flag_of",
    "option_form",
    "setting",
    "setting_problem",
]

GROUPS = ("data", "network", "recipe", "views", "loss", "cache", "run")
"""The groups of settings, in the order of the help pages."""

SET_BY_PRESET = "set by the preset"
"""Shown in place of the default of a setting that every preset states."""


def setting(
    group: str, default: Any, text: str, *, shown: str | None = None, flag: str | None = None, **limits: Any
) -> Any:
    """Declare a setting.

    Parameters
    ----------
    group : str
        One of `GROUPS`.
    default : object
    text : str
        Help text.
    shown : str, optional
        What the help page shows as the default, where `default` does not tell.
    flag : str, optional
        Its option on the command line, where that is not its name. Such an option may be given several times.
    **limits
        Passed to pydantic's ``Field``.
    """
    return Field(default, description=text, json_schema_extra={"group": group, "shown": shown, "flag": flag}, **limits)


def flag_of(name: str, field: FieldInfo) -> str:
    """Return the option of a setting on the command line."""
    declared: Any = field.json_schema_extra
    return declared["flag"] or f"--{name.replace('_', '-')}"


def option_form(flag: str) -> str:
    """Show what is given to ``--loss-option`` or ``--aug-option``."""
    return f"{flag.removeprefix('--').removesuffix('-option').upper()}.NAME=VALUE"


# Control characters, of which NUL ends a file name, and lone surrogates: a TOML file cannot hold them.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

UNCLEAR = {
    "byte_size": "a number of bytes such as '500 MB'",
    "byte_size_unit": "a number of bytes such as '500 MB'",
}
"""Pydantic's errors whose messages do not say what was expected."""


class Invalid(ValueError):
    """A setting is invalid; raised by validators.

    Parameters
    ----------
    expected : str
        What would have been valid.
    remedy : str, optional
        A sentence that says what to do.
    """

    def __init__(self, expected: str, remedy: str | None = None) -> None:
        super().__init__(expected)
        self.expected, self.remedy = expected, remedy


@dataclass(frozen=True)
class Choice:
    """Validate one of several values, or a prefix such as ``folder:`` followed by anything.

    Attributes
    ----------
    values : tuple of str
    prefixes : tuple of (str, str)
        Each with a word for what follows it, as in ``("folder:", "PATH")``.
    """

    values: tuple[str, ...]
    prefixes: tuple[tuple[str, str], ...] = ()

    def __call__(self, value: str) -> str:
        """Return the value if it is valid, else raise `Invalid`."""
        if value in self.values or any(value.startswith(prefix) and value != prefix for prefix, _ in self.prefixes):
            return value
        raise Invalid(self.describe())

    def describe(self) -> str:
        """Describe the valid values."""
        return f"one of {', '.join((*self.values, *(prefix + rest for prefix, rest in self.prefixes)))}"


@dataclass(frozen=True)
class ChoiceSum:
    """Validate a sum of distinct terms such as ``cutmix+mixup``, or one of several values that stand alone.

    Attributes
    ----------
    terms : tuple of str
    example : str
        A sum. If it has weights, as in ``crd:0.8+kd``, terms may have weights.
    alone : tuple of str
    """

    terms: tuple[str, ...]
    example: str
    alone: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        """Return the text if it is valid, else raise `Invalid`."""
        if text in self.alone:
            return text
        parts = [part.partition(":") for part in text.split("+")]
        names = [name for name, _, _ in parts]
        weights = [weight for _, colon, weight in parts if colon]
        distinct = len(set(names)) == len(names) and set(names) <= set(self.terms)
        weighted = not weights or (":" in self.example and all(map(_is_weight, weights)))
        if not (distinct and weighted):
            raise Invalid(self.describe())
        return text

    def describe(self) -> str:
        """Describe the valid values."""
        alone = f"one of {', '.join(self.alone)}, or " if self.alone else ""
        return f"{alone}a sum of distinct terms of {', '.join(self.terms)}, such as {self.example}"


def _is_weight(text: str) -> bool:
    try:
        return 0 <= float(text) < 1e9
    except ValueError:
        return False


def check_text(value: object) -> None:
    """Raise `Invalid` for text that cannot be written to a config file.

    Parameters
    ----------
    value : object
        A setting as it was given, or a sequence of such.
    """
    texts = [str(text) for text in (value if isinstance(value, list | tuple) else [value])]
    if any(map(UNWRITABLE.search, texts)):
        raise Invalid("text without control characters")


def setting_problem(where: str, detail: Any) -> str:
    """Write one of the errors of a pydantic ``ValidationError`` in the form of `kdcache.errors.problem`.

    Parameters
    ----------
    where : str
        The option, or the file and the key.
    detail : dict
        An item of ``ValidationError.errors()``.
    """
    if detail["type"] == "extra_forbidden":
        return problem(f"{where}: no such setting")
    remedy = getattr(detail.get("ctx", {}).get("error"), "remedy", None)
    return problem(where, expected=expected_by(detail), got=detail["input"], remedy=remedy)


def expected_by(detail: Any) -> str:
    """Say what would have been valid, from one of pydantic's errors."""
    if expected := UNCLEAR.get(detail["type"]):
        return expected
    message: str = detail["msg"]
    if message.startswith("Value error, "):
        return message.removeprefix("Value error, ")
    expected = message.removeprefix("Input should be ")
    if detail["type"] == "literal_error":
        return expected
    return expected.partition(", ")[0]  # what follows says why parsing failed

"""How a setting is declared, validated, and reported if it is invalid. Nothing here imports torch."""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

from kdcache.cards import with_prefix
from kdcache.choices import PYTHON_FORM
from kdcache.errors import UsageError, did_you_mean, problem
from kdcache.extensions import Declared, Registry, is_address, is_trusted

__all__ = [
    "GROUPS",
    "SET_BY_PRESET",
    "Choice",
    "ChoiceOf",
    "ChoiceSum",
    "Invalid",
    "InvalidCode",
    "PlaceChoice",
    "check_text",
    "expected_by",
    "flag_of",
    "has_no_effect",
    "option_form",
    "setting",
    "setting_problem",
    "split_weight",
]

GROUPS = ("data", "network", "recipe", "views", "loss", "cache", "run")
"""The groups of settings, in the order of the help pages."""

SET_BY_PRESET = "set by the preset"
"""Marks a setting that every preset states. The help page shows the values of the datasets' presets."""


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


def has_no_effect(switch: str, where: str) -> Invalid:
    """Make the error of a switch that does nothing with the other settings."""
    return Invalid(f"false {where}", f"Leave it out, or turn that of a recipe off with --no-{switch}.")


class InvalidCode(ValueError):
    """The user's own code cannot be used; the message is complete."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Validate one of several values, or a prefix such as ``folder:`` followed by anything.

    Attributes
    ----------
    values : tuple of str
    prefixes : tuple of (str, str)
        Each with a word for what follows it, as in ``("folder:", "PATH")``.
    registered : Registry, optional
        What the user's code may have registered. Its address is the value that is kept.
    recorded : tuple of str
        Prefixes of values that are valid in the config of a run, but that nobody gives.
    """

    values: tuple[str, ...]
    prefixes: tuple[tuple[str, str], ...] = ()
    registered: Registry[Any] | None = None
    recorded: tuple[str, ...] = ()

    def __call__(self, value: str) -> str:
        """Return the value if it is valid, else raise `Invalid`."""
        if value in self.values or any(value.startswith(prefix) and value != prefix for prefix, _ in self.prefixes):
            return value
        if value.startswith(self.recorded):
            return value
        if self.registered is not None and value in self.registered:
            return self.registered.address(value)
        raise Invalid(self.describe(), did_you_mean(value, (*self.values, *(self.registered or ()))))

    def describe(self) -> str:
        """Describe the valid values."""
        values = (*self.values, *(self.registered or ()), *(prefix + rest for prefix, rest in self.prefixes))
        return f"one of {', '.join(dict.fromkeys(values))}"


class PlaceChoice(Choice):
    """Validate as `Choice`, and propose the prefix of a folder or file that is there."""

    def __call__(self, value: str) -> str:
        """Return the value if it is valid, else raise `Invalid`."""
        try:
            return super().__call__(value)
        except Invalid as error:
            raise Invalid(error.expected, with_prefix(value) or error.remedy) from None


@dataclass(frozen=True, eq=False)
class ChoiceSum:
    """Validate a sum of distinct terms such as ``cutmix+mixup``, or one of several values that stand alone.

    Attributes
    ----------
    terms : Registry
        Each term has a declaration in it, which is looked up.
    example : str
        A sum. If it has weights, as in ``crd:0.8+kd``, terms may have weights.
    alone : tuple of str
    """

    terms: Registry[Any]
    example: str
    alone: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        """Return the text if it is valid, else raise `Invalid`."""
        if text in self.alone:
            return text
        parts = [split_weight(part) for part in text.split("+")]
        names = [_checked(name, self.terms) for name, _ in parts if name in self.terms]
        weights = [weight for _, weight in parts if weight is not None]
        distinct = len(set(names)) == len(parts)
        weighted = not weights or (":" in self.example and all(map(_is_weight, weights)))
        if not (distinct and weighted):
            unknown = [name for name, _ in parts if name not in self.terms]
            raise Invalid(self.describe(), did_you_mean(unknown[0], (*self.terms, *self.alone)) if unknown else None)
        return "+".join(
            name if weight is None else f"{name}:{weight}" for name, (_, weight) in zip(names, parts, strict=True)
        )

    def describe(self) -> str:
        """Describe the valid values."""
        alone = f"one of {', '.join(self.alone)}, or " if self.alone else ""
        terms = (*self.terms, "".join(PYTHON_FORM))
        return f"{alone}a sum of distinct terms of {', '.join(terms)}, such as {self.example}"


@dataclass(frozen=True, eq=False)
class ChoiceOf:
    """Validate a name that a registry holds."""

    names: Registry[Any]

    def __call__(self, value: str) -> str:
        """Return the value, or the address of what was registered under it; raise `Invalid` if it is not valid."""
        if value not in self.names:
            raise Invalid(self.describe(), did_you_mean(value, self.names))
        return _checked(value, self.names)

    def describe(self) -> str:
        """Describe the valid values."""
        return f"one of {', '.join((*self.names, ''.join(PYTHON_FORM)))}"


def split_weight(term: str) -> tuple[str, str | None]:
    """Split a term of a sum into its name, which may be an address with colons, and its weight."""
    parts = term.split(":")
    length = 3 if is_address(term) else 1
    return ":".join(parts[:length]), ":".join(parts[length:]) if len(parts) > length else None


def _checked(name: str, registry: Registry[Declared]) -> str:
    """Check the user's own code, if it may be imported, and return its address; other names are returned as they are.

    What may not be imported is refused when it is used: settings of a run that was received can be read without.
    """
    name = registry.address(name)
    if is_address(name) and is_trusted(name):
        try:
            registry[name]
        except UsageError as error:
            raise InvalidCode(str(error)) from error
    return name


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
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, InvalidCode):
        return f"{where}: {error}"
    remedy = getattr(error, "remedy", None)
    given = detail["input"]
    got = ", ".join(map(str, given)) if isinstance(given, tuple) else given
    return problem(where, expected=expected_by(detail), got=got, remedy=remedy)


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

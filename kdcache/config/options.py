"""Options of losses and augmentations: tables in a config file, ``NAME.OPTION=VALUE`` on the command line."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo
from pydantic.fields import FieldInfo

from kdcache.config.settings import Invalid

__all__ = ["OptionTables", "Options", "as_tables", "dotted", "merge_tables", "read_tables"]

AnyOptions = TypeVar("AnyOptions", bound="Options")


class Options(BaseModel):
    """The options of one loss or augmentation."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OptionTables(BaseModel):
    """The options of everything of a kind that has some, by its name; ``None`` for what a config does not use."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    def require_used(self, names: Collection[str], sum_of: str, one: str) -> None:
        """Raise `Invalid` for options of something that a config does not use.

        Parameters
        ----------
        names : collection of str
            What it uses.
        sum_of, one : str
            Words for the message: ``losses in --loss`` and ``loss``.
        """
        given = self.model_dump(exclude_unset=True, exclude_none=True)
        unused = [option for name in given.keys() - set(names) for option in dotted({name: given[name]}) or [name]]
        if unused:
            raise Invalid(f"options of {sum_of}", f"Leave out {', '.join(sorted(unused))}, or add the {one}.")

    def completed(self, names: Collection[str]) -> Self:
        """Add the defaults of what a config uses."""
        used = [(key, field) for key, field in self._fields() if (field.alias or key) in names]
        return self.model_copy(update={key: getattr(self, key) or _kind(field)() for key, field in used})

    def of(self, name: str) -> Options | None:
        """Return the options of one loss or augmentation, if it has some and they are known."""
        found: dict[str, Options | None] = {field.alias or key: getattr(self, key) for key, field in self._fields()}
        return found.get(name)

    def of_class(self, kind: type[AnyOptions]) -> AnyOptions:
        """Return the options of a class; its defaults where they are not known."""
        return next((own for _, own in self if type(own) is kind), kind())

    @classmethod
    def names(cls) -> dict[str, tuple[str, ...]]:
        """Names of the options of each loss or augmentation."""
        return {field.alias or name: tuple(_kind(field).model_fields) for name, field in cls._fields()}

    @classmethod
    def _fields(cls) -> Iterable[tuple[str, FieldInfo]]:
        return cls.model_fields.items()

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in dotted(self.model_dump()).items())


def _kind(field: FieldInfo) -> type[Options]:
    kind: type[Options] = get_args(field.annotation)[0]  # of ``kind | None``
    return kind


def dotted(tables: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Flatten tables of options: ``{"dkd": {"beta": 6}}`` becomes ``{"dkd.beta": 6}``; ``None`` counts as empty."""
    return {f"{name}.{option}": value for name, options in tables.items() for option, value in (options or {}).items()}


def as_tables(given: Any) -> Any:
    """Turn texts such as ``dkd.beta=6`` into tables; anything else, or a text of another form, is left as it is."""
    if not isinstance(given, list | tuple):
        return given
    tables: dict[str, dict[str, str]] = {}
    for text in given:
        key, equals, value = str(text).partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot):
            return given
        tables.setdefault(name.strip(), {})[option.strip()] = value.strip()
    return tables


def read_tables(given: Any, info: ValidationInfo) -> Any:
    """Validate what ``--loss-option`` or ``--aug-option``, or a config file, gives: tables, or texts of that form."""
    tables = as_tables(given)
    if not isinstance(tables, Mapping | OptionTables):
        form, example = {
            "losses": ("LOSS.NAME=VALUE", "dkd.beta=6"), "augs": ("AUG.NAME=VALUE", "cutmix.alpha=0.2")
        }[str(info.field_name)]  # fmt: skip
        raise Invalid(f"{form}, such as {example}")
    return tables


def merge_tables(layers: Sequence[Any]) -> Any:
    """Combine the options of several layers, later ones first; a layer that has no tables hides the ones before."""
    merged: Any = {}
    for layer in map(as_tables, layers):
        if not isinstance(layer, Mapping) or not isinstance(merged, Mapping):
            merged = layer
            continue
        merged = {**merged, **{name: _overridden(merged.get(name), options) for name, options in layer.items()}}
    return merged


def _overridden(before: Any, after: Any) -> Any:
    return {**before, **after} if isinstance(before, Mapping) and isinstance(after, Mapping) else after

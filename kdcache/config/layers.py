"""How settings are combined from options, files and defaults, and written to a file."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, ValidationInfo, field_validator

from kdcache.checked_files import kind_of, read_toml
from kdcache.config.settings import Invalid, check_text, flag_of, setting_problem
from kdcache.errors import UsageError
from kdcache.extensions import addresses_in, trust
from kdcache.presets import ConfigFile, read_settings

__all__ = ["CONFIG_FILE", "LayeredConfig"]

CONFIG_FILE = "config.toml"
"""Name of the settings in a run folder, see `kdcache.run.folder`."""

Layer = Mapping[str, Any]
"""Settings by name."""


class LayeredConfig(BaseModel):
    """Settings in layers: options override files, which override the defaults. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: ClassVar[str]
    """The table of a config file that this kind of run reads, besides the top-level keys."""
    CODE: ClassVar[tuple[str, ...]] = ()
    """Settings that may name the user's own code, see `kdcache.extensions`."""
    NOT_RECORDED: ClassVar[frozenset[str]] = frozenset()
    """Settings that the run's config file leaves out: they do not say what is trained."""
    CLI_ONLY: ClassVar[frozenset[str]] = frozenset()
    """Settings that no config file may have: a file must not decide what is overwritten or downloaded."""
    DOWNLOADED: ClassVar[frozenset[str]] = frozenset()
    """Settings that may name what is to be downloaded, if they are options."""

    _downloadable: frozenset[str] = PrivateAttr(default=frozenset())

    @field_validator("*", mode="before")
    @classmethod
    def _check_raw_value(cls, value: Any, info: ValidationInfo) -> Any:
        is_flag = info.field_name is not None and cls.model_fields[info.field_name].annotation is bool
        if isinstance(value, bool) and not is_flag:
            raise Invalid("a value other than true and false")
        check_text(value)
        return value

    @property
    def code(self) -> dict[str, str]:
        """The addresses of the user's own code, with the setting that names each."""
        return {address: name for name in self.CODE for address in addresses_in(str(getattr(self, name)))}

    @classmethod
    def load(cls, file: str | Path | ConfigFile | None = None, **options: Any) -> Self:
        """Combine options, file and defaults into one config.

        Parameters
        ----------
        file : str, Path or ConfigFile, optional
            A TOML file, the name of a preset, or a file that was read. Defaults to the config of the run in ``out`` if
            ``resume`` is given, else to the preset of the dataset.
        **options
            Settings that override the file; ``None`` means not given. The user's own code that is named here is
            trusted, not that named by the file. Without a dataset, a student has the images of the teacher that is
            named.

        Raises
        ------
        UsageError
            With one line for each problem of the settings.
        """
        options = {name: value for name, value in options.items() if value is not None}
        for name in cls.CODE:
            trust(str(options.get(name)))  # the user named it, so it may run
        layers, problems = cls._read_files(file, options)
        try:
            config = cls(**cls.combined([*layers.values(), options]))
            config._downloadable = cls.DOWNLOADED.intersection(options)
        except ValidationError as error:
            for detail in error.errors():
                problems.append(setting_problem(cls._origin(detail["loc"], layers, options), detail))
        else:
            problems += config._problems_of(options, cls.combined([*layers.values()]))
        if problems:
            raise UsageError(*problems)
        return config

    def _problems_of(self, options: Layer, below: Layer) -> list[str]:
        """List problems of options that are valid, beside the settings of the layers below."""
        return []

    @classmethod
    def combined(cls, layers: Sequence[Layer]) -> dict[str, Any]:
        """Combine layers of settings, of which later ones override earlier ones."""
        return reduce(cls._put_over, layers, {})

    @classmethod
    def _put_over(cls, below: Layer, layer: Layer) -> dict[str, Any]:
        """Combine a layer with what is below it."""
        return {**below, **layer}

    @classmethod
    def _read_files(
        cls, file: str | Path | ConfigFile | None, options: dict[str, Any]
    ) -> tuple[dict[str, Layer], list[str]]:
        """Read the settings of each file, the most important one last, and the problems of the files."""
        own, problems = cls._read_file(_recorded_settings(options) if file is None else file)
        inherited = cls._inherited({**cls.combined([*own.values()]), **options})
        preset = cls._preset({**cls.combined([*inherited.values()]), **options})
        shipped, more = cls._read_file(None if own else preset)
        return {**shipped, **inherited, **own}, [*problems, *more]

    @classmethod
    def _inherited(cls, given: Layer) -> dict[str, dict[str, Any]]:
        """Find settings that follow from those that were given, by the file that has them."""
        return {}

    @classmethod
    def _preset(cls, given: Layer) -> str | None:
        """Name the preset that is read where no file is given."""
        return None

    @classmethod
    def _read_file(cls, file: str | Path | ConfigFile | None) -> tuple[dict[str, Layer], list[str]]:
        if file is None:
            return {}, []
        settings, problems = read_settings(file, cls.table, *_file_keys(), cls.CLI_ONLY)
        return {str(file): settings}, problems

    @classmethod
    def _origin(cls, where: Sequence[str | int], layers: Mapping[str, Layer], options: Layer) -> str:
        """Name a setting by the option or the file that gave it."""
        name, *keys = loc = [key for key in where if isinstance(key, str)]  # an item of a list is named by its value
        if not _holds(options, loc):
            for file, settings in reversed([*layers.items()]):
                if _holds(settings, loc):
                    return f"{file}: {'.'.join([name, *keys])}"
        field = cls.model_fields.get(name)
        flag = f"--{name.replace('_', '-')}" if field is None else flag_of(name, field)
        return " ".join([flag, *([".".join(keys)] if keys else [])])

    def to_toml(self, exclude: Set[str] | None = None) -> str:
        """Write the settings, by default without `NOT_RECORDED`, in the format that ``--config`` reads."""
        excluded = set(self.NOT_RECORDED if exclude is None else exclude)
        settings = self.model_dump(mode="json", exclude=excluded, exclude_none=True)
        return "\n".join([f"[{self.table}]", *_toml_lines(self.table, settings)]) + "\n"


def _recorded_settings(options: Layer) -> Path | None:
    """Find the settings of the run to resume."""
    if options.get("resume") and options.get("out"):
        recorded = Path(os.path.expanduser(options["out"])) / CONFIG_FILE
        if kind_of(recorded) is not None:
            read_toml(recorded)  # raises if it is damaged
            return recorded
    return None


def _holds(settings: Any, loc: Sequence[str | int]) -> bool:
    """Whether a nested mapping has a value at some keys."""
    for key in loc:
        if not (isinstance(settings, Mapping) and key in settings):
            return False
        settings = settings[key]
    return True


def _toml_lines(table: str, settings: Layer) -> Iterator[str]:
    """Write settings, those in tables of their own last."""
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    # JSON's strings, numbers, booleans and arrays are valid TOML, except how JSON escapes non-ASCII characters.
    for key in settings:
        if key not in tables:
            yield f"{key} = {json.dumps(settings[key], ensure_ascii=False)}"
    for key, value in tables.items():
        if any(not isinstance(one, dict) for one in value.values()):
            yield f"[{table}.{key}]"
        yield from _toml_lines(f"{table}.{key}", value)


def _file_keys() -> tuple[list[str], dict[str, list[str]]]:
    """List the keys that a config file may have at its top level, those of every kind, and in each of its tables."""
    tables = {kind.table: list(kind.model_fields) for kind in _kinds(LayeredConfig)}
    first, *others = tables.values()
    return [name for name in first if all(name in names for names in others)], tables


def _kinds(config: type[LayeredConfig]) -> Iterator[type[LayeredConfig]]:
    """List the subclasses of a config that have none themselves."""
    for kind in config.__subclasses__():
        yield from _kinds(kind) if kind.__subclasses__() else [kind]

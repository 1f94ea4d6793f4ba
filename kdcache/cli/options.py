"""Options that are made from the settings of a config, and the help pages that show them in groups."""

from collections.abc import Callable, Iterable
from functools import cache, partial, wraps
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import click
from pydantic import AfterValidator, ByteSize
from pydantic.fields import FieldInfo

from kdcache.cards import CARDS, PICTURES
from kdcache.choices import DEVICES
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.config.options import as_tables
from kdcache.config.settings import GROUPS, SET_BY_PRESET, Choice, ChoiceOf, ChoiceSum, flag_of, option_form

__all__ = [
    "AUG_OPTION",
    "CACHE_WORDS",
    "CLASS_ORDER",
    "DEVICE",
    "UNLABELLED",
    "WEIGHTS_ENTRY",
    "GroupedCommand",
    "settings",
]

DEVICE = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(DEVICES), help="Device to compute on."
)

WEIGHTS_ENTRY = click.option(
    "--weights-entry",
    metavar="NAME",
    help="Tensors to load, if the file has those of several networks, such as model_ema. [default: EMA weights first]",
)

CLASS_ORDER = click.option(
    "--class-order",
    metavar="natural|FILE",
    help="Order of the classes in the weights: natural (by number, as timm sorts folders), or a file with the names of "
    "the classes in that order, one a line. [default: that of the dataset]",
)

UNLABELLED = click.option(
    "--unlabelled",
    metavar="folder:PATH|hdf5:FILE",
    help="The images without labels, if they were moved [where they were].",
)

CACHE_WORDS = (
    "Teacher forwards are views that went through the teacher, "
    "cache hits are views whose logits were in the store already."
)
"""The words of the cache, for help pages."""

TYPE_NAMES = {int: "INTEGER", float: "FLOAT", Path: "PATH", str: "TEXT", ByteSize: "SIZE"}
"""What stands for the value of an option on a help page, by the type of the setting."""

MAX_METAVAR_CHARS = 24
"""Length up to which the choices of an option stand beside it; more are listed in its help text."""

OPTION_COLUMN_CHARS = 30
"""Width of the left column of a help page; the text of a longer option begins on the next line."""

Config = TypeVar("Config", bound=TrainingConfig)
Run = Callable[..., None]


class SettingOption(click.Option):
    """An option of a setting, with the group under which the help page lists it."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help page lists its options in the groups of the settings; all others stand in the last one."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for option in self.get_params(context):
            if record := option.get_help_record(context):
                groups[getattr(option, "group", GROUPS[-1])].append(record)
        widths = [len(option) for records in groups.values() for option, _ in records]
        width = min(max(widths), OPTION_COLUMN_CHARS)  # the same in all groups
        for group, records in groups.items():
            if records:
                with formatter.section(f"{group.capitalize()} options"):
                    formatter.write_dl([(option.ljust(width), text) for option, text in records], width)


def settings(kind: type[Config], fields: Iterable[str] | None = None) -> Callable[[Run], Run]:
    """Give a command ``--config`` and an option for each setting, and call it with the resulting config.

    Parameters
    ----------
    kind : type
        The type of the config, which is the first argument of the command.
    fields : iterable of str, optional
        The settings that apply to the command; all by default.
    """
    further = {name: FURTHER[name] for name in FURTHER if name in kind.model_fields}
    chosen = [name for name in (kind.model_fields if fields is None else fields) if name not in further.values()]
    named = [*chosen, *(further[name] for name in chosen if name in further), *(["recipe"] if "loss" in chosen else [])]

    def decorate(run: Run) -> Run:
        @wraps(run)  # keeps the options that it has already
        def resolve(config: str | None, **options: Any) -> None:
            given = {name: options.pop(name) for name in named}
            run(kind.load(config, **given), **options)

        command: Run = resolve
        if "loss" in chosen:
            command = RECIPE(command)
        for name in reversed(chosen):  # click lists the option that was added last first
            command = _option(kind, name)(command)
        return click.option("--config", metavar="TEXT", help=CONFIG_HELP)(command)

    return decorate


FURTHER = {"teacher": "further_teachers"}
"""Settings whose options may be given several times, and those that take all values but the first."""

RECIPE = click.option(
    "--recipe",
    cls=SettingOption,
    group="loss",
    metavar="TEXT",
    help="Published recipe: a name in configs/recipes/published.toml, such as dkd-imagenet, or a TOML file. "
    "Overrides the preset; options override it.",
)

CONFIG_HELP = "TOML file, or name of a preset. [default: the preset of the dataset, pictures for your own]"


def _option(kind: type[TrainingConfig], name: str) -> Callable[[Run], Run]:
    """Make the option of a setting. The config checks its value, so that all problems are reported together."""
    field = kind.model_fields[name]
    declared: Any = field.json_schema_extra
    flag, group, text = flag_of(name, field), declared["group"], field.description
    validator, metavar = _validator_of(field), _type_name(field.annotation)
    if isinstance(validator, Choice) and not validator.prefixes:
        choices = f"[{'|'.join(validator.values)}]"
        if len(choices) <= MAX_METAVAR_CHARS:
            validator, metavar = None, choices
    if validator is not None:
        description = validator.describe()
        text = f"{text} {description[0].upper()}{description[1:]}."
    if default := _default_text(kind, name):
        text = f"{text} [{default}]"
    shape: dict[str, Any] = {"is_flag": True} if field.annotation is bool else {"metavar": metavar}
    form = f"{flag}/--no-{flag[2:]}" if field.annotation is bool and name not in TrainingConfig.CLI_ONLY else flag
    if name in FURTHER:
        shape |= {"multiple": True, "callback": partial(_divide, FURTHER[name])}
    elif validator is not None and get_origin(field.annotation) is tuple:
        shape = {"metavar": _type_name(get_args(field.annotation)[0]), "multiple": True, "callback": _given}
    elif declared["flag"]:
        shape = {"metavar": option_form(flag), "multiple": True, "callback": _parse_options}
    return click.option(form, name, cls=SettingOption, group=group, default=None, help=text, **shape)


def _divide(further: str, context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Return the first value of an option, and give the others to another setting."""
    context.params[further] = values[1:] or None
    return values[0] if values else None


def _given(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    return values or None


def _parse_options(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Any:
    return as_tables(texts) or None


def _validator_of(field: FieldInfo) -> Choice | ChoiceOf | ChoiceSum | None:
    # For a setting that may be None, the annotation is a union, whose first member has the metadata.
    first = next(iter(get_args(field.annotation)), None)
    metadata: Any = field.metadata or getattr(first, "__metadata__", [])
    functions = [item.func for item in metadata if isinstance(item, AfterValidator)]
    return next((found for found in functions if isinstance(found, Choice | ChoiceOf | ChoiceSum)), None)


def _type_name(annotation: Any) -> str:
    arguments = [each for each in get_args(annotation) if each is not NoneType]
    if get_origin(annotation) is tuple:
        return f"{_type_name(arguments[0])},..."
    return _type_name(arguments[0]) if arguments else TYPE_NAMES.get(annotation, "TEXT")


def _default_text(kind: type[TrainingConfig], name: str) -> str:
    field = kind.model_fields[name]
    declared: Any = field.json_schema_extra
    if declared["shown"] not in (None, SET_BY_PRESET):
        return f"default: {declared['shown']}"
    if field.annotation is bool:
        return ""
    presets = {} if name == "dataset" else _presets_by_value(kind, name)
    if len(presets) > 1 or presets.keys() - {str(field.default)}:
        return f"default by preset: {', '.join(f'{value} ({who})' for value, who in presets.items())}"
    return "" if field.default in (None, ()) else f"default: {field.default}"


def _presets_by_value(kind: type[TrainingConfig], name: str) -> dict[str, str]:
    """Name the presets that have each value of a setting, the most frequent value last."""
    found: dict[str, list[str]] = {}
    for preset, config in _presets(kind).items():
        value, is_known_later = getattr(config, name), name == "epochs" and config.steps is not None
        if value not in (None, ()) and name not in config.unused and not is_known_later:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            found.setdefault(text, []).append(preset)
    values = sorted(found, key=lambda text: len(found[text]))
    named = {value: ", ".join(found[value]) for value in values}
    if len(found) > 1 and len(found[values[-1]]) > 1 and sum(map(len, found.values())) == len(_presets(kind)):
        named[values[-1]] = "others"
    return named


@cache
def _presets(kind: type[TrainingConfig]) -> dict[str, TrainingConfig]:
    """Load the preset of each dataset, and that of all others."""
    names = dict.fromkeys((*(card.preset for card in CARDS.values()), PICTURES))
    return {name: kind.load(name) for name in names if name is not None}


AUG_OPTION = _option(StudentConfig, "augs")
"""``--aug-option`` of commands that do not take a config."""

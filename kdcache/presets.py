"""The TOML files that ship with kdcache in ``configs/``, the user's own, and what they say about a run."""

import importlib.resources
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.errors import UsageError, first_line, problem

__all__ = ["ConfigFile", "FileSettings", "read_recipe", "read_settings", "read_toml"]


class ConfigFile(NamedTuple):
    """A config file that was read: its path, and what it holds."""

    path: Path
    document: dict[str, Any]

    def __str__(self) -> str:
        return str(self.path)


class FileSettings(NamedTuple):
    """The settings that a config file has for one kind of run.

    Attributes
    ----------
    values : dict
        Settings by name.
    problems : list of str
        Unknown keys, and keys that only the command line may set.
    """

    values: dict[str, Any]
    problems: list[str]


def read_settings(
    file: str | Path | ConfigFile,
    kind: str,
    common: Collection[str],
    tables: Mapping[str, Collection[str]],
    cli_only: Collection[str],
) -> FileSettings:
    """Read the settings for one kind of run: the top-level keys of a file, overridden by those of its table.

    Parameters
    ----------
    file : str, Path or ConfigFile
        A TOML file, the name of a preset, or a file that was read.
    kind : str
        The run's table, such as ``student``.
    common : collection of str
        Keys that may stand at the top level.
    tables : mapping of str to collection of str
        The tables that a file may have, with their keys.
    cli_only : collection of str
        Keys that no file may have.

    Raises
    ------
    UsageError
        If the file is missing or not TOML, or if a table is not one.
    """
    document = dict(file.document) if isinstance(file, ConfigFile) else read_toml(file, "--config", "preset")
    contents = {name: document.pop(name, {}) for name in tables}
    if wrong := [name for name, content in contents.items() if not isinstance(content, dict)]:
        raise UsageError(*(problem(f"{file}: {name}", expected="a table", got=contents[name]) for name in wrong))
    problems = []
    for prefix, keys, known in [
        ("", document, common),
        *((f"{name}.", contents[name], fields) for name, fields in tables.items()),
    ]:
        names = f"one of {', '.join(known)}"
        problems += [
            problem(f"{file}: unknown key {prefix}{key}", expected=names) for key in sorted(keys.keys() - set(known))
        ]
        problems += [
            problem(f"{file}: {prefix}{key} is not allowed in a file", remedy=f"Give --{key} on the command line.")
            for key in sorted(keys.keys() & set(cli_only))
        ]
    merged = {**document, **contents[kind]}
    return FileSettings({key: value for key, value in merged.items() if key in tables[kind]}, problems)


RECIPE_KEYS = (
    *("loss", "temperature", "alpha", "losses"),
    *("aug", "augs", "separate_forwards", "scoring_updates_stats"),
)
"""What a published recipe may set: losses, or views and forwards. Epochs and rates are those of the training."""


def read_recipe(recipe: str | Path) -> FileSettings:
    """Read the settings of a recipe: a name in ``configs/recipes/published.toml``, or the path of a file.

    Raises
    ------
    UsageError
        If there is no such recipe, or the file is not TOML.
    """
    published = read_toml("published", "--recipe", "recipe", "recipes")
    if str(recipe) in published:
        document = published[str(recipe)]
    elif Path(recipe).is_file():
        document = read_toml(recipe, "--recipe", "recipe", "recipes")
    else:
        expected = f"a TOML file or one of {', '.join(published)}"
        raise UsageError(problem("--recipe", expected=expected, got=recipe))
    expected = f"one of {', '.join(RECIPE_KEYS)}"
    unknown = sorted(document.keys() - set(RECIPE_KEYS))
    problems = [problem(f"{recipe}: unknown key {key}", expected=expected) for key in unknown]
    return FileSettings({key: value for key, value in document.items() if key in RECIPE_KEYS}, problems)


def read_toml(chosen: str | Path, option: str, kind: str, folder: str = ".") -> dict[str, Any]:
    """Read a shipped TOML file by its name, or any other by its path.

    Parameters
    ----------
    chosen : str or Path
        Name or path.
    option : str
        The option or field that gave it, for the message.
    kind : str
        What a file of this folder is called, for the message.
    folder : str
        Subfolder of ``configs``.

    Raises
    ------
    UsageError
        If there is no such file, or it is not TOML.
    """
    shipped = {
        entry.name.removesuffix(".toml"): entry
        for entry in (importlib.resources.files("kdcache.configs") / folder).iterdir()
        if entry.name.endswith(".toml")
    }
    try:
        # TOML has no byte order mark, but some editors write one.
        return tomllib.loads((shipped.get(str(chosen)) or Path(chosen)).read_text("utf-8-sig"))
    except FileNotFoundError:
        expected = f"a TOML file or a {kind} ({', '.join(sorted(shipped))})"
        raise UsageError(problem(option, expected=expected, got=chosen)) from None
    except UnicodeDecodeError as error:
        raise UsageError(problem(f"could not read {chosen} as TOML", expected="UTF-8", got=first_line(error))) from None
    except (OSError, ValueError, RecursionError) as error:  # not all that tomllib raises is its own
        raise UsageError(problem(f"could not read {chosen} as TOML", got=first_line(error))) from None

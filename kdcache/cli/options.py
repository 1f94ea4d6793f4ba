"""Options that are made from the settings of a config, so that the two cannot drift apart."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import click

from kdcache.config import TrainingConfig

__all__ = ["DEVICE", "PRESET_SETTINGS", "settings"]

PRESET_SETTINGS = ("model", "epochs", "batch_size", "lr", "momentum", "weight_decay", "milestones", "gamma")
"""Settings that every preset states, so that a default shown in the help would mislead."""

DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Where to compute.",
)

Config = TypeVar("Config", bound=TrainingConfig)
Run = Callable[..., None]


def settings(kind: type[Config], fields: Iterable[str] | None = None) -> Callable[[Run], Run]:
    """Give a command ``--config`` and an option for each setting; it is called with the config that they make.

    Parameters
    ----------
    kind : type
        Of the config, which is the first argument of the command.
    fields : iterable of str, optional
        The settings that matter to the command; all by default.
    """
    chosen = list(kind.model_fields if fields is None else fields)

    def decorate(run: Run) -> Run:
        @wraps(run)  # with the options that it has already
        def resolve(config: str | None, **options: Any) -> None:
            given = {name: options.pop(name) for name in chosen}
            run(kind.load(config, **given), **options)

        preset = click.option(
            "--config", metavar="FILE", help="TOML file, or the name of a preset [the preset of the dataset]."
        )
        command: Run = resolve
        for field in reversed(chosen):  # click lists options from the last that was put on to the first
            command = _option(field, kind)(command)
        return preset(command)

    return decorate


def _option(name: str, kind: type[TrainingConfig]) -> Callable[[Run], Run]:
    """Make an option of a setting; the config checks its value, so that all problems are reported together."""
    field = kind.model_fields[name]
    flag = f"--{name.replace('_', '-')}"
    text = field.description or ""
    if field.annotation is bool:
        return click.option(flag, is_flag=True, default=None, help=text)
    if name in PRESET_SETTINGS:
        text = f"{text.rstrip('.')} [the preset's]."
    elif field.default not in (None, ()):
        text = f"{text.rstrip('.')} [{field.default}]."
    words = kind.allowed_values(name)
    return click.option(flag, metavar="|".join(words) if words else name.upper(), help=text)

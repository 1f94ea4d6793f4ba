"""The TOML files that ship with kdcache, in ``configs``, and the user's own that stand beside them."""

import importlib.resources
import tomllib
from pathlib import Path
from typing import Any

from kdcache.choices import comma_list
from kdcache.errors import UsageError, first_line, problem

__all__ = ["read_toml"]


def read_toml(chosen: str | Path, where: str, kind: str, folder: str = ".") -> dict[str, Any]:
    """Read a file by the name under which it ships, or else by its path.

    Parameters
    ----------
    chosen : str or Path
        Name or path.
    where : str
        What it was given as, for the message where there is no such file.
    kind : str
        What the files of the folder are called.
    folder : str
        Of those that ship, within ``configs``.

    Raises
    ------
    UsageError
        Where there is no such file, or it is no TOML.
    """
    shipped = {
        entry.name.removesuffix(".toml"): entry
        for entry in (importlib.resources.files("kdcache.configs") / folder).iterdir()
        if entry.name.endswith(".toml")
    }
    try:
        return tomllib.loads((shipped.get(str(chosen)) or Path(chosen)).read_text("utf-8"))
    except FileNotFoundError:
        allowed = f"a TOML file or a {kind} ({comma_list(sorted(shipped))})"
        raise UsageError(problem(where, expected=allowed, got=chosen)) from None
    except (OSError, ValueError, RecursionError) as error:  # not all that tomllib raises is its own
        raise UsageError(problem(f"{chosen}: not a readable TOML file", got=first_line(error))) from None

"""Files of run folders, changed together with their checksums: other runs, not damaged ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdcache import checked_files


def change_config(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of a ``config.toml``."""
    checked_files.write_toml(path, change(path.read_text().rpartition("# sha256 = ")[0]))


def change_json(path: Path, **values: Any) -> None:
    """Change values of a ``summary.json`` or ``environment.json``."""
    checked_files.write_json(path, {**checked_files.read_json(path), **values})

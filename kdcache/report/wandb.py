"""Weights & Biases, and what speaks its interface."""

import importlib
import inspect
import netrc
import os
import uuid
from collections.abc import Container, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from kdcache.checked_files import FOLDER, require_kind
from kdcache.report.trackers import PROJECT, Tracker, labels_of
from kdcache.run.writer import RunWriter

__all__ = ["Trackio", "Wandb"]

MAX_TAG_CHARS = 64
"""Length up to which Weights & Biases takes a tag."""

SECONDS_TO_CONNECT, SECONDS_TO_UPLOAD = 30, 120
"""Time to wait for the server when a run begins, and for the rest of its data when it ends."""


class Wandb(Tracker):
    """Records a run by ``wandb.init``, with those of its arguments that the library takes.

    The environment (``WANDB_PROJECT`` and so on) has precedence. Without a login the run is offline; then a resumed
    training records all of its epochs in another folder, which ``wandb sync`` uploads as the same run.
    """

    library = "wandb"

    def __init__(self, run: RunWriter, recorded: Mapping[str, str]) -> None:
        library = importlib.import_module(self.library)
        require_kind(run.path / self.library, FOLDER)
        self.identity = dict(recorded) or {"id": uuid.uuid4().hex[:8]}
        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": os.environ.get("WANDB_NAME", self.name(run)),
            "id": self.identity["id"],
            "resume": "allow",
            "tags": [tag[:MAX_TAG_CHARS] for tag in (*labels_of(run).values(), *_tags()) if tag],
            "config": run.facts,
            "dir": run.path,
            "reinit": "create_new",
            **self.settings(library),
        }
        self._run = library.init(**_known(options, inspect.signature(library.init).parameters))
        self.last_epoch, self.place = self.state(run, recorded)

    def name(self, run: RunWriter) -> str:
        """Name the run."""
        return run.path.name

    def settings(self, library: Any) -> dict[str, Any]:
        """Choose the mode, and let neither a question nor a server keep the training waiting, if the library can."""
        wanted = {
            "silent": True,
            "console": "off",
            "init_timeout": SECONDS_TO_CONNECT,
            "finish_timeout": SECONDS_TO_UPLOAD,
        }
        return {"settings": library.Settings(**_known(wanted, library.Settings.model_fields)), "mode": _mode(library)}

    def state(self, run: RunWriter, recorded: Mapping[str, str]) -> tuple[int, str]:
        """Find the last epoch that the tracker has, and where its records are."""
        if self._run.offline:
            folder = self._run.settings.sync_dir
            return 0, f"offline in {folder}; upload it with 'wandb sync {folder}'"
        return max(0, self._run.step - 1), self._run.url or self._run.settings.sync_dir

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=epoch)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(summary is None))


class Trackio(Wandb):
    """Trackio keeps runs in a folder of the user's, finds them by name, and has no summary."""

    library = "trackio"

    def name(self, run: RunWriter) -> str:
        """Name the run, unlike any other."""
        return f"{run.path.name}-{self.identity['id']}"

    def settings(self, library: Any) -> dict[str, Any]:
        """Show nothing in a notebook."""
        return {"embed": False}

    def state(self, run: RunWriter, recorded: Mapping[str, str]) -> tuple[int, str]:
        """Take what is complete as recorded: Trackio does not tell."""
        return len(run.metrics) if recorded else 0, f"run {self._run.name}; see it with 'trackio show'"

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.log({f"summary/{name}": value for name, value in summary.items()})
        self._run.finish()


def _known(values: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """Keep what this version of the library takes."""
    return {name: value for name, value in values.items() if name in names}


def _mode(library: Any) -> str:
    """Choose the mode: that of the user's environment and settings, else offline without an API key to log in with."""
    settings = library.setup().settings
    if "WANDB_MODE" in os.environ or settings.mode != "online":
        return os.environ.get("WANDB_MODE", str(settings.mode))
    if os.environ.keys() & {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"}:
        return "online"
    with suppress(OSError, netrc.NetrcParseError):  # where 'wandb login' writes the key
        known = netrc.netrc(os.environ.get("NETRC", os.path.expanduser("~/.netrc")))
        return "online" if known.authenticators(urlsplit(settings.base_url).hostname or "") else "offline"
    return "offline"


def _tags() -> list[str]:
    return os.environ.get("WANDB_TAGS", "").split(",")

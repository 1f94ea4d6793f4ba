"""TensorBoard: event files in the run folder."""

import json
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from kdcache.checked_files import FOLDER, require_kind
from kdcache.report.trackers import Tracker
from kdcache.run.writer import RunWriter

__all__ = ["EVENTS", "TensorBoard"]

EVENTS = "tensorboard"
"""Folder of the event files within the run folder."""


class TensorBoard(Tracker):
    """Writes event files. A resumed run writes all epochs into a new file, in place of those before."""

    def __init__(self, run: RunWriter, recorded: Mapping[str, str]) -> None:
        require_kind(run.path / EVENTS, FOLDER)
        self.identity, self.place = {"folder": EVENTS}, str(run.path / EVENTS)
        self._writer = SummaryWriter(self.place, purge_step=1 if recorded else None)
        self._writer.add_text("settings", _code(run.facts))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._writer.add_text("summary", _code(summary))
        self._writer.close()


def _code(document: Mapping[str, Any]) -> str:
    """Write a document as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in json.dumps(document, indent=2, default=str).splitlines())

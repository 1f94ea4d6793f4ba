"""The report without pictures: Markdown for reading, CSV for spreadsheets, JSON for programs."""

import csv
import json
from collections.abc import Callable
from io import StringIO

from kdcache.analysis.groups import RunGroup
from kdcache.analysis.summary import RESULTS, RunSummary
from kdcache.config import StudentConfig
from kdcache.report.sheets import (
    Sheet,
    classes_sheet,
    disagreement_sheet,
    errors_sheet,
    markdown,
    ratios_sheet,
    runs_sheet,
    summary_sheet,
)

__all__ = ["PLAIN"]


def as_markdown(summary: RunSummary) -> str:
    """Write all tables."""
    sheets = [summary_sheet(summary.groups), errors_sheet(summary.errors), ratios_sheet(summary.ratios)]
    for report in summary.disagreements:
        sheets += [disagreement_sheet(report), classes_sheet(report)]
    sheets.append(runs_sheet(summary.runs))
    if summary.missing:
        sheets.insert(0, Sheet("What is missing", ("",), [(line,) for line in summary.missing]))
    return "\n\n".join(markdown(sheet) for sheet in sheets if sheet.rows) + "\n"


SETTINGS = ("dataset", "model", "loss", "aug", "pick", "temperature", "alpha", "batch_size", "lr")


def as_csv(summary: RunSummary) -> str:
    """Write a line for each group of runs: its settings, and mean and standard deviation of each outcome."""
    outcomes = [f"{name}_{part}" for name in RESULTS for part in ("mean", "std")]
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("group", "kind", *SETTINGS, "epochs", "runs", "unfinished", *outcomes))
    table.writerows(map(_line, summary.groups))
    return text.getvalue()


def _line(group: RunGroup) -> list[object]:
    config = group.config
    settings = [getattr(config, name, None) for name in SETTINGS]
    if isinstance(config, StudentConfig):
        settings[SETTINGS.index("pick")] = config.augmentation.pick
    figures = [figure for name in RESULTS for figure in (group.result(name).mean, group.result(name).std)]
    finished = len(group.finished)
    counts = (config.epochs, finished, len(group.runs) - finished)
    # A spreadsheet takes text that begins like a formula for one.
    words = [f"'{word}" if isinstance(word, str) and word[:1] in "=+-@" else word for word in (group.name, *settings)]
    return [words[0], config.table, *words[1:], *counts, *figures]


def as_json(summary: RunSummary) -> str:
    """Write all figures."""
    return json.dumps(summary.as_json(), indent=2, allow_nan=False) + "\n"


PLAIN: dict[str, Callable[[RunSummary], str]] = {"markdown": as_markdown, "csv": as_csv, "json": as_json}
"""What writes the report in each format that is text."""

"""The report as text: Markdown, CSV and JSON."""

import csv
import json
from collections.abc import Callable
from io import StringIO

from kdcache.analysis.groups import RunGroup
from kdcache.analysis.summary import RESULTS, RunSummary
from kdcache.config import StudentConfig
from kdcache.report.analysis_tables import (
    classes_table,
    disagreement_table,
    errors_table,
    groups_table,
    kl_ratio_table,
    runs_table,
)
from kdcache.report.evaluation_tables import evaluation_tables
from kdcache.report.tables import TextTable, csv_text, to_markdown

__all__ = ["TEXT_FORMATS"]

SETTINGS = ("dataset", "model", "loss", "aug", "pick", "temperature", "alpha", "batch_size", "lr")
"""Settings with a column in the CSV file."""


def as_markdown(summary: RunSummary) -> str:
    """Write all tables as Markdown."""
    tables = [groups_table(summary.groups), errors_table(summary.errors), kl_ratio_table(summary.ratios)]
    for evaluation in summary.evaluations:
        tables += evaluation_tables(evaluation, is_full=True)
    for report in summary.disagreements:
        tables += [disagreement_table(report), classes_table(report)]
    tables.append(runs_table(summary.runs))
    if summary.missing:
        tables.insert(0, TextTable("Missing or damaged", ("",), [(line,) for line in summary.missing]))
    return "\n\n".join(to_markdown(table) for table in tables if table.rows) + "\n"


def as_csv(summary: RunSummary) -> str:
    """Write one line per group of runs: its settings, and mean and standard deviation of each result."""
    results = [f"{name}_{statistic}" for name in RESULTS for statistic in ("mean", "std")]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("group", "kind", *SETTINGS, "epochs", "runs", "unfinished", *results))
    writer.writerows(map(_csv_line, summary.groups))
    return text.getvalue()


def _csv_line(group: RunGroup) -> list[object]:
    config = group.config
    settings = {name: getattr(config, name, None) for name in SETTINGS}
    if isinstance(config, StudentConfig):
        settings["pick"] = config.augmentation.pick  # the default of cutmix-pick is not in config.pick
    results = [value for name in RESULTS for value in (group.result(name).mean, group.result(name).std)]
    counts = (config.epochs, len(group.finished), len(group.runs) - len(group.finished))
    return [csv_text(group.name), config.table, *map(csv_text, settings.values()), *counts, *results]


def as_json(summary: RunSummary) -> str:
    """Write everything as JSON."""
    return json.dumps(summary.as_json(), indent=2, allow_nan=False) + "\n"


TEXT_FORMATS: dict[str, Callable[[RunSummary], str]] = {"markdown": as_markdown, "csv": as_csv, "json": as_json}
"""Writer of each text format of the report."""

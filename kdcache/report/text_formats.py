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
    ratios_table,
    runs_table,
)
from kdcache.report.headline import by_dataset, headline, outcomes_table
from kdcache.report.tables import TextTable, csv_text, to_markdown

__all__ = ["TEXT_FORMATS"]

SETTINGS = ("dataset", "model", "loss", "aug", "pick", "temperature", "alpha", "batch_size", "lr")
"""Settings with a column in the CSV file."""


def as_markdown(summary: RunSummary) -> str:
    """Write all tables as Markdown: first what came out, at the end what is missing."""
    tables = []
    for dataset, outcomes in by_dataset(summary.outcomes).items():
        tables += [TextTable(f"Results on {dataset}", ("", "", ""), headline(outcomes)), outcomes_table(outcomes)]
    tables += [errors_table(summary.errors), groups_table(summary.groups)]
    if summary.evaluations:
        from kdcache.report.evaluation_tables import evaluation_tables  # imports torch

        for evaluation in summary.evaluations:
            tables += evaluation_tables(evaluation, is_full=True)
    tables.append(ratios_table(summary.ratios))
    for report in summary.disagreements:
        tables += [disagreement_table(report), classes_table(report)]
    tables.append(runs_table(summary.runs))
    tables.append(TextTable("Missing or damaged", ("",), [(line,) for line in summary.missing]))
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

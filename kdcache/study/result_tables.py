"""Tables of studies, claims and comparisons."""

from collections.abc import Sequence

from kdcache.analysis.estimates import MeanStd
from kdcache.report.tables import TextTable, format_mean_std, make_table
from kdcache.study.comparison import Comparison
from kdcache.study.cost import run_forwards
from kdcache.study.definition import Study
from kdcache.study.intervals import Interval
from kdcache.study.planned import PlannedRun, StudyCell, column_titles, list_runs
from kdcache.study.results import CellResult, ClaimResult

__all__ = [
    "accuracy_table",
    "cells_table",
    "claims_table",
    "comparison_table",
    "sources_table",
    "study_cost_table",
]


def study_cost_table(cells: Sequence[StudyCell]) -> TextTable:
    """Number of runs of each row, and their teacher forwards without a cache."""
    rows: dict[str, list[PlannedRun]] = {}
    for cell in cells:
        runs = rows.setdefault(cell.row.name, [])
        runs += [run for run in cell.runs if run not in runs]
    return make_table(
        "Rows of the study",
        rows.items(),
        {
            "row": lambda item: item[0],
            "runs": lambda item: len(item[1]),
            "unfinished": lambda item: sum(not run.finished for run in item[1]),
            "teacher forwards without a cache": lambda item: f"{sum(map(run_forwards, item[1])):,}",
        },
    )


def accuracy_table(study: Study, results: Sequence[CellResult]) -> TextTable:
    """Rows by pairs, as in the paper: our accuracy, the published one and the difference below one another."""
    columns = list(dict.fromkeys(result.cell.column for result in _started_columns(results)))
    by_cell = {(result.cell.row.name, result.cell.column): result for result in results}
    lines = []
    for row in dict.fromkeys(result.cell.row.name for result in results):
        of_row = [by_cell[row, column] for column in columns]
        lines.append((row, *map(_ours, of_row)))
        if any(result.published for result in of_row):
            lines.append(("  published", *(str(result.published or "-") for result in of_row)))
            lines.append(("  difference", *(_signed(result.difference) for result in of_row)))
    runs = list_runs(result.cell for result in results)
    finished = sum(run.finished for run in runs)
    partial = "" if finished == len(runs) else f" (partial: {finished} of {len(runs)} runs)"
    images = ", on validation images" if any(result.val_top1.n for result in results) else ""
    title = f"{study.title}, top-1 accuracy (%) after the last epoch{images}, mean (std) over seeds{partial}"
    return TextTable(title, ("", *column_titles(columns).values()), lines)


def cells_table(results: Sequence[CellResult]) -> TextTable:
    """What a fair comparison of the rows depends on: epochs, views, number of runs and cost."""
    titles = column_titles(result.cell.column for result in results)
    validated = any(result.val_top1.n for result in results)
    validation = {"validation (last epoch)": lambda result: format_mean_std(result.val_top1)} if validated else {}
    return make_table(
        "Each row: accuracy (%), teacher forwards and cache hits",
        _started_columns(results),
        {
            "row": lambda result: result.cell.row.name,
            "pair": lambda result: titles[result.cell.column],
            "epochs": lambda result: _length(result) if _is_trained(result) else "loaded",
            "views": _views,
            "runs": lambda result: f"{result.finished_runs} of {result.planned_runs}",
            **validation,
            "last epoch": lambda result: format_mean_std(result.last_top1),
            "best epoch": lambda result: format_mean_std(result.best_top1),
            "top-5 (last epoch)": lambda result: format_mean_std(result.last_top5),
            "teacher forwards": lambda result: result.teacher_forwards,
            "cache hits": lambda result: result.cache_hits,
        },
    )


def sources_table(results: Sequence[CellResult]) -> TextTable:
    """Where the published accuracies were published, if not in the paper."""
    accuracies = [(str(result.cell.row.published_row), result.published) for result in results]
    lines = dict.fromkeys((row, accuracy.source) for row, accuracy in accuracies if accuracy and accuracy.source)
    return TextTable("Sources of the published accuracies", ("method", "source"), [*lines])


def claims_table(results: Sequence[ClaimResult]) -> TextTable:
    """Each claim with its tests."""
    titles = column_titles(result.column for result in results)
    lines = []
    for result in results:
        name = result.statement if len(titles) == 1 else f"{titles[result.column]}: {result.statement}"
        lines.append((name, "", "", "", result.decision))
        for test in result.tests:
            interval = test.interval
            numbers = (
                (f"{interval.mean:+.2f}", _bounds(interval), str(interval.n))
                if interval
                else ("-", "not estimable", "-")
            )
            lines.append((f"  {test.hypothesis}", *numbers, test.decision))
    return TextTable("Claims (points of top-1 accuracy)", ("claim", "mean", "interval", "seeds", "decision"), lines)


def comparison_table(comparison: Comparison, confidence_level: float) -> TextTable:
    """Accuracy of both sides and their difference."""
    lines = [
        ("left", format_mean_std(comparison.left), "", str(comparison.left.n), ""),
        ("right", format_mean_std(comparison.right), "", str(comparison.right.n), ""),
    ]
    one_run = min(comparison.left.n, comparison.right.n) < 2
    paired = MeanStd.of(comparison.differences)
    for name, mean, interval, reason in (
        (
            "left - right",
            comparison.mean_difference,
            comparison.difference,
            "none: needs two runs per side" if one_run else "none: the runs of each side are equal",
        ),
        (
            "left - right, paired by seed",
            paired.mean,
            comparison.paired,
            "none: needs two common seeds" if paired.n < 2 else "none: the differences are equal",
        ),
    ):
        shown = "-" if mean is None else f"{mean:+.2f}"
        if interval is None:
            lines.append((name, shown, reason, "", ""))
        else:
            lines.append((name, shown, _bounds(interval), str(interval.n), f"{interval.p:.2g}"))
    header = ("", "top-1 (%)", f"{100 * confidence_level:g} % interval", "runs", "p")
    return TextTable("Top-1 accuracy after the last epoch", header, lines)


def _started_columns(results: Sequence[CellResult]) -> Sequence[CellResult]:
    """Omit columns without a finished run, unless all are."""
    started = {result.cell.column for result in results if result.finished_runs}
    return [result for result in results if result.cell.column in started] or results


def _length(result: CellResult) -> str:
    return str(result.cell.runs[0].config.length).removesuffix(" epochs")


def _is_trained(result: CellResult) -> bool:
    return result.cell.runs[0].command != "teacher-load"


def _views(result: CellResult) -> str | None:
    config = result.cell.runs[0].config
    if not _is_trained(result):
        return None
    views, pick = getattr(config, "views", "standard"), getattr(config, "pick", None)
    return f"{views} by {pick}" if pick else views


def _ours(result: CellResult) -> str:
    partial = result.finished_runs < result.planned_runs
    count = f" [{result.finished_runs} of {result.planned_runs}]" if partial else ""
    # Where images are held out, settings are compared on them, and the test images are kept for the end.
    return f"{format_mean_std(result.val_top1 if result.val_top1.n else result.last_top1)}{count}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _bounds(interval: Interval) -> str:
    return f"{interval.low:+.2f} to {interval.high:+.2f}"

"""Studies, claims and comparisons, laid out in rows; see `kdcache.report.sheets`."""

from collections.abc import Sequence

from kdcache.report.sheets import Sheet, mean_and_std
from kdcache.study.compare import Comparison, Interval
from kdcache.study.expand import column_titles, runs_of
from kdcache.study.outcome import Judged, Result
from kdcache.study.plan import Study

__all__ = ["claims_sheet", "comparison_sheet", "details_sheet", "paper_sheet"]


def paper_sheet(study: Study, found: Sequence[Result]) -> Sheet:
    """Lay out a table as the paper has it: rows by pairs, ours above the paper's above the difference."""
    columns = list(dict.fromkeys(result.cell.column for result in _begun(found)))
    cells = {(result.cell.row.name, result.cell.column): result for result in found}
    lines = []
    for row in study.rows:
        here = [cells[row.name, column] for column in columns]
        lines.append((row.name, *(_ours(result) for result in here)))
        if any(result.paper for result in here):
            lines.append(("  the paper", *(mean_and_std(result.paper) if result.paper else "-" for result in here)))
            lines.append(("  difference", *(_signed(result.difference) for result in here)))
    head = column_titles(columns).values()
    runs = runs_of(result.cell for result in found)
    done = sum(run.finished for run in runs)
    partial = "" if done == len(runs) else f" (partial: {done} of {len(runs)} runs)"
    title = f"{study.title}, top-1 accuracy (%) after the last epoch, mean (std) over seeds{partial}"
    return Sheet(title, ("", *head), lines)


def details_sheet(found: Sequence[Result]) -> Sheet:
    """Lay out what a fair comparison needs to know of each cell."""
    lines, titles = [], column_titles(result.cell.column for result in found)
    for result in _begun(found):
        config = result.cell.runs[0].config
        trained = result.cell.runs[0].command != "teacher-load"
        views = getattr(config, "aug", "standard") if trained else "-"
        pick = getattr(config, "pick", None)
        lines.append(
            (
                result.cell.row.name,
                titles[result.cell.column],
                str(config.epochs) if trained else "loaded",
                f"{views} by {pick}" if pick else views,
                f"{len(result.accuracy)} of {result.wanted}",
                mean_and_std(result.last),
                mean_and_std(result.best),
                mean_and_std(result.top5),
                str(result.asked),
                str(result.answered),
            )
        )
    head = ("row", "pair", "epochs", "views", "runs", "last", "best", "top-5 (last)", "asked", "answered")
    return Sheet("Each row: accuracy (%) and teacher questions", head, lines)


def claims_sheet(verdicts: Sequence[Judged]) -> Sheet:
    """Lay out each claim with its tests."""
    lines, titles = [], column_titles(one.column for one in verdicts)
    for one in verdicts:
        lines.append((one.says if len(titles) == 1 else f"{titles[one.column]}: {one.says}", "", "", "", one.verdict))
        for test in one.found:
            at = test.interval
            figures = (f"{at.mean:+.2f}", _interval(at), str(at.n)) if at else ("-", "-", "-")
            lines.append((f"  {test.test.words}", *figures, test.verdict))
    return Sheet("Claims (points of top-1)", ("claim", "mean", "interval", "seeds", "verdict"), lines)


def comparison_sheet(found: Comparison, level: float) -> Sheet:
    """Lay out a comparison of two sides."""
    lines = [
        ("left", mean_and_std(found.left), "", str(found.left.n), ""),
        ("right", mean_and_std(found.right), "", str(found.right.n), ""),
    ]
    for name, at in (("left - right", found.difference), ("left - right, paired by seed", found.paired)):
        if at is None:
            lines.append((name, "-", "needs two runs, and one of a seed", "", ""))
            continue
        figures = (f"{at.mean:+.2f}", _interval(at), str(at.n), f"{at.p:.2g}")
        lines.append((name, *figures))
    head = ("", "top-1 (%)", f"{100 * level:g} % interval", "runs", "p")
    return Sheet("Top-1 accuracy after the last epoch", head, lines)


def _begun(found: Sequence[Result]) -> Sequence[Result]:
    """Leave out the columns in which nothing is finished, if there are others."""
    begun = {result.cell.column for result in found if result.accuracy}
    return [result for result in found if result.cell.column in begun] or found


def _ours(result: Result) -> str:
    partial = f" [{len(result.accuracy)} of {result.wanted}]" if len(result.accuracy) < result.wanted else ""
    return f"{mean_and_std(result.last)}{partial}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _interval(at: Interval) -> str:
    return f"{at.low:+.2f} to {at.high:+.2f}"

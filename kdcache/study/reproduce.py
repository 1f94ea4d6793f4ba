"""A study carried out: what is missing is trained, and what is there is laid out beside the paper's figures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdcache.analysis.analyzed_teacher import load_analyzed_teacher
from kdcache.analysis.curves import error_curves
from kdcache.analysis.disagreement import measure_disagreement
from kdcache.analysis.groups import RunGroup
from kdcache.analysis.kl_ratio import ratio_curves
from kdcache.files import write_json, write_text
from kdcache.report.charts import draw_error_curves, draw_ratios
from kdcache.report.gallery import draw_disagreements
from kdcache.report.sheets import Sheet, disagreement_sheet, errors_sheet, markdown, ratios_sheet
from kdcache.report.style import write_figure
from kdcache.run.folder import FinishedRun
from kdcache.run.records import RunRecord, load_runs
from kdcache.setup import load_data
from kdcache.study.expand import Planned, TableCell, column_titles, in_order, runs_of
from kdcache.study.jobs import Job, Launcher
from kdcache.study.launch import Outcome, launch
from kdcache.study.outcome import judged, results
from kdcache.study.plan import Study
from kdcache.study.sheets import claims_sheet, details_sheet, paper_sheet

__all__ = ["lay_out", "train"]

LOGS = "logs"
"""Folder, beside the runs of a setting, for what each run says."""


def train(cells: Sequence[TableCell], launcher: Launcher, tell: Callable[[str], None]) -> list[str]:
    """Train what is not finished: teachers first, then the students of one teacher and seed after the other.

    Parameters
    ----------
    cells : sequence of TableCell
    launcher : Launcher
    tell : callable
        Hears a line of every run that ends.

    Returns
    -------
    list of str
        Names of the runs that failed, or whose teacher did.

    Raises
    ------
    UsageError
        Where images are missing: before anything is trained, since all that need them would fail.
    """
    runs = runs_of(cells)
    for data in dict.fromkeys(run.data for run in runs if not run.finished):
        load_data(data)
    teachers = [run for run in runs if run.command != "student-train"]
    students = in_order(run for run in runs if run.command == "student-train")
    failed = _train_all(teachers, launcher, tell)
    ready = [run for run in students if run.teacher is None or run.teacher.name not in failed]
    orphans = [run.name for run in students if run not in ready]
    return failed + _train_all(ready, launcher, tell) + orphans


def _train_all(runs: Sequence[Planned], launcher: Launcher, tell: Callable[[str], None]) -> list[str]:
    left = {run.name: run for run in runs if not run.finished}
    if len(left) < len(runs):
        tell(f"{len(runs) - len(left)} of {len(runs)} runs are finished already")
    ended: dict[str, bool] = {}

    def hear(outcome: Outcome) -> None:
        if outcome.last:
            ended[outcome.job.name] = outcome.code == 0
        tell(f"[{len(ended)}/{len(left)}] {_said(outcome, left[outcome.job.name])}")

    launch([_job(run) for run in left.values()], launcher, hear)
    return [name for name, well in ended.items() if not well]


def _job(run: Planned) -> Job:
    logs = (run.path.parent / LOGS).absolute()
    logs.mkdir(parents=True, exist_ok=True)
    return Job(run.name, run.arguments, logs / f"{run.path.name}.log", run.path.absolute(), Path.cwd())


def _said(outcome: Outcome, run: Planned) -> str:
    if outcome.code == 0:
        if not run.finished:  # the disk of another machine may take a while to show here
            return f"{run.name}: ended"
        summary = FinishedRun(run.path).summary
        return (
            f"{run.name}: top-1 {summary['last_top1']:.2f} %, asked {summary['teacher_forwards']}, "
            f"answered {summary['cache_hits']}, {summary['seconds']:.0f} s"
        )
    then = f"given up, see {outcome.job.log}" if outcome.last else "tried again"
    return f"{run.name}: failed with {outcome.code} ({outcome.said}), {then}"


def lay_out(study: Study, cells: Sequence[TableCell], out: Path, device: str = "auto") -> list[Sheet]:
    """Write what the finished runs come to: ``<out>.md`` and ``<out>.json``, and for figures ``<out>.png``.

    Parameters
    ----------
    study : Study
    cells : sequence of TableCell
    out : Path
        Without suffix.
    device : str
        Where a teacher is asked about labels.

    Returns
    -------
    list of Sheet
        What the Markdown holds.
    """
    found = results(study, cells)
    verdicts = judged(study, found)
    sheets = [paper_sheet(study, found), details_sheet(found)]
    document: dict[str, Any] = {"study": study.name, "cells": [result.as_json() for result in found]}
    if verdicts:
        sheets.insert(0, claims_sheet(verdicts))
        document["claims"] = [one.as_json() for one in verdicts]
    _write(out, sheets, document)  # before pictures are drawn or a teacher is asked
    more, figures = _SHOWS[study.shows](cells, out, device)
    if more:
        _write(out, sheets := [*sheets, *more], {**document, **figures})
    return sheets


def _write(out: Path, sheets: Sequence[Sheet], document: dict[str, Any]) -> None:
    write_json(out.with_name(f"{out.name}.json"), document)
    write_text(out.with_name(f"{out.name}.md"), "\n\n".join(markdown(sheet) for sheet in sheets) + "\n")


Shown = tuple[list[Sheet], dict[str, Any]]


def _nothing_more(cells: Sequence[TableCell], out: Path, device: str) -> Shown:
    return [], {}


def _looked_at(cells: Iterable[TableCell]) -> list[RunRecord]:
    return load_runs([run.path for cell in cells for run in cell.runs if run.finished])[0]


def _picture(out: Path, place: int, number: int) -> Path:
    """Name a picture, one of several by its place."""
    return out.with_name(f"{out.name}.png" if number == 1 else f"{out.name}-{place + 1}.png")


def _lengths(cells: Sequence[TableCell], out: Path, device: str) -> Shown:
    """Draw the error against the number of epochs, a picture for each pair."""
    sheets, figures = [], {}
    titles = column_titles(dict.fromkeys(cell.column for cell in cells))
    for place, (column, title) in enumerate(titles.items()):
        curves = error_curves(_looked_at(cell for cell in cells if cell.column == column))
        if curves:
            write_figure(draw_error_curves(curves), _picture(out, place, len(titles)))
            sheets.append(errors_sheet(curves)._replace(title=f"Error (%) of {title} by the number of epochs"))
            figures[title] = [curve.as_json() for curve in curves]
    return sheets, {"lengths": figures}


def _ratios(cells: Sequence[TableCell], out: Path, device: str) -> Shown:
    """Draw r over the iterations, a curve for each pair and dataset."""
    groups = [
        RunGroup(", ".join(cell.column), runs[0].config, tuple(runs)) for cell in cells if (runs := _looked_at([cell]))
    ]
    curves, _ = ratio_curves(groups)
    if not curves:
        return [], {}
    write_figure(draw_ratios(curves), out.with_name(f"{out.name}.png"))
    return [ratios_sheet(curves)], {"kl_ratios": [curve.as_json() for curve in curves]}


def _disagreement(cells: Sequence[TableCell], out: Path, device: str) -> Shown:
    """Count disputed labels of each teacher, and show some."""
    sheets, figures = [], []
    teachers = runs_of(cells)
    for place, run in enumerate(teachers):
        if not run.finished:
            continue
        teacher = load_analyzed_teacher(str(run.path), data_root=run.config.data_root, device=device)
        found = measure_disagreement(teacher)
        draw_disagreements(found, _picture(out, place, len(teachers)))
        sheets.append(disagreement_sheet(found))
        figures.append(found.as_json())
    return sheets, {"label_disagreement": figures}


_SHOWS: dict[str, Callable[[Sequence[TableCell], Path, str], Shown]] = {
    "table": _nothing_more,
    "lengths": _lengths,
    "ratios": _ratios,
    "disagreement": _disagreement,
}
"""What is shown besides the table, by the word of a study."""

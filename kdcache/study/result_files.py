"""Writing the results of a study: tables as Markdown, data as JSON, and figures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdcache.errors import KdcacheError, UsageError
from kdcache.files import write_json, write_text
from kdcache.report.tables import TextTable, to_markdown
from kdcache.run.records import RunRecord, load_runs
from kdcache.study.definition import Study
from kdcache.study.planned import StudyCell, column_titles, list_runs
from kdcache.study.result_tables import accuracy_table, cells_table, claims_table, sources_table
from kdcache.study.results import collect_results, evaluate_claims

__all__ = ["write_results"]


def write_results(study: Study, cells: Sequence[StudyCell], out: Path, device: str = "auto") -> list[TextTable]:
    """Write the results of the finished runs to ``<out>.md`` and ``<out>.json``, and the study's figure to PNG files.

    Parameters
    ----------
    study : Study
    cells : sequence of StudyCell
    out : Path
        Path without suffix.
    device : str
        Device of the teacher, for label disagreement.

    Returns
    -------
    list of TextTable
        The tables in the Markdown file.
    """
    results = collect_results(study, cells)
    claims = evaluate_claims(study, results)
    tables = [accuracy_table(study, results), cells_table(results)]
    if (sources := sources_table(results)).rows:
        tables.append(sources)
    document: dict[str, Any] = {"study": study.name, "cells": [result.as_json() for result in results]}
    if claims:
        tables.insert(0, claims_table(claims))
        document["claims"] = [claim.as_json() for claim in claims]
    _write(out, tables, document)  # before the figure, which may need a teacher
    if study.figure_kind is not None:
        figure_tables, figure_data = _FIGURES[study.figure_kind](cells, out, device)
        tables += figure_tables
        _write(out, tables, {**document, **figure_data})
    return tables


def _write(out: Path, tables: Sequence[TextTable], document: dict[str, Any]) -> None:
    write_json(out.with_name(f"{out.name}.json"), document)
    write_text(out.with_name(f"{out.name}.md"), "\n\n".join(map(to_markdown, tables)) + "\n")


FigureResult = tuple[list[TextTable], dict[str, Any]]
"""Tables and JSON data that belong to a figure."""


def _load(cells: Iterable[StudyCell]) -> list[RunRecord]:
    loaded = load_runs([run.path for cell in cells for run in cell.runs if run.finished])
    if loaded.damaged:
        raise UsageError(*loaded.damaged)
    return loaded.runs


def _picture(out: Path, number: int, total: int) -> Path:
    """Path of a picture; numbered if there are several."""
    return out.with_name(f"{out.name}.png" if total == 1 else f"{out.name}-{number}.png")


def _error_curves(cells: Sequence[StudyCell], out: Path, device: str) -> FigureResult:
    """Draw the error by the number of epochs, one picture per column."""
    from kdcache.analysis.curves import error_curves
    from kdcache.report.analysis_tables import errors_table
    from kdcache.report.charts import plot_error_curves
    from kdcache.report.style import write_figure

    tables, data = [], {}
    titles = column_titles(dict.fromkeys(cell.column for cell in cells))
    for number, (column, title) in enumerate(titles.items(), start=1):
        curves = error_curves(_load(cell for cell in cells if cell.column == column))
        if curves:
            write_figure(plot_error_curves(curves), _picture(out, number, len(titles)))
            tables.append(errors_table(curves)._replace(title=f"Error (%) of {title} by the number of epochs"))
            data[title] = [curve.as_json() for curve in curves]
    return tables, {"error_curves": data}


def _kl_ratio(cells: Sequence[StudyCell], out: Path, device: str) -> FigureResult:
    """Draw r over the iterations, one curve per cell."""
    from kdcache.analysis.groups import RunGroup
    from kdcache.analysis.kl_ratio import ratio_curves
    from kdcache.report.analysis_tables import kl_ratio_table
    from kdcache.report.charts import plot_kl_ratios
    from kdcache.report.style import write_figure

    loaded = [(", ".join(cell.column), _load([cell])) for cell in cells]
    curves, damaged = ratio_curves(RunGroup(name, runs[0].config, tuple(runs)) for name, runs in loaded if runs)
    if damaged:
        raise KdcacheError("\n".join(damaged))
    if not curves:
        return [], {}
    write_figure(plot_kl_ratios(curves), _picture(out, 1, 1))
    return [kl_ratio_table(curves)], {"kl_ratios": [curve.as_json() for curve in curves]}


def _label_disagreement(cells: Sequence[StudyCell], out: Path, device: str) -> FigureResult:
    """Measure label disagreement of each teacher, and draw examples."""
    from kdcache.analysis.disagreement import measure_disagreement
    from kdcache.analysis.inputs import load_analysis_inputs
    from kdcache.report.analysis_tables import disagreement_table
    from kdcache.report.gallery import plot_disagreements

    tables, data = [], []
    teachers = list_runs(cells)
    for number, run in enumerate(teachers, start=1):
        if run.finished:
            teacher = load_analysis_inputs(str(run.path), data_root=run.config.data_root, device=device)
            report = measure_disagreement(teacher)
            plot_disagreements(report, _picture(out, number, len(teachers)))
            tables.append(disagreement_table(report))
            data.append(report.as_json())
    return tables, {"label_disagreement": data}


_FIGURES: dict[str, Callable[[Sequence[StudyCell], Path, str], FigureResult]] = {
    "error-curves": _error_curves,
    "kl-ratio": _kl_ratio,
    "label-disagreement": _label_disagreement,
}
"""What to draw for each value of a study's key ``figure_kind``."""

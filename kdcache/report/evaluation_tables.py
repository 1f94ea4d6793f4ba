"""Networks side by side: tables for the terminal and Markdown, and the same figures as CSV and JSON."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from io import StringIO
from pathlib import Path

from kdcache.analysis.cost import BATCH_SIZES
from kdcache.analysis.estimates import Proportion
from kdcache.analysis.evaluation import Evaluation, EvaluationReport
from kdcache.analysis.metrics import CALIBRATION_BINS, ClassPair
from kdcache.report.tables import (
    TextTable,
    csv_text,
    file_size,
    format_interval,
    format_percent,
    make_table,
    to_markdown,
)

__all__ = ["EVALUATION_FORMATS", "as_json", "evaluation_tables", "with_short_names"]

MAX_CLASSES, MAX_PAIRS, MAX_COLUMNS = 20, 10, 6
"""Rows of the tables by class and by pair of classes in the terminal, and networks in their columns."""


def evaluation_tables(report: EvaluationReport, is_full: bool = False) -> list[TextTable]:
    """Make the tables; those by class list the worst classes, and the most frequent pairs, unless it is full."""
    short = with_short_names(report.evaluations)
    students = [one for one in short if one.agreement is not None]
    rows, pairs, columns = (None, None, None) if is_full else (MAX_CLASSES, MAX_PAIRS, MAX_COLUMNS)
    shown, names = short[:columns], report.class_names
    confusions = {one.name: [pair for pair in one.quality.confusion if pair.first != pair.second] for one in shown}
    disagreements = {one.name: one.agreement.pairs for one in students[:columns] if one.agreement}
    tables = [
        _quality_table(report, short),
        _agreement_table(students),
        _cost_table(short),
        _classes_table(names, shown, rows),
        _pairs_table("Images by class and predicted class", ("class", "predicted"), names, confusions, pairs),
        _pairs_table("Images on which they disagree", ("teacher", "student"), names, disagreements, pairs),
    ]
    omitted = _omitted(len(short) - len(shown), "networks")
    tables[3:] = [table._replace(title=table.title + omitted) for table in tables[3:]]
    return [table for table in tables if table.rows]


def with_short_names(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Leave the folder that all networks are in out of their names."""
    paths = {one.name: Path(one.name) for one in evaluations}
    shared = paths[evaluations[0].name].parent
    if len(paths) > 1 and all(path.is_relative_to(shared) for path in paths.values()):
        paths = {name: path.relative_to(shared) for name, path in paths.items()}
    return [
        replace(one, name=str(paths[one.name]), teacher=one.teacher and str(paths[one.teacher])) for one in evaluations
    ]


def _quality_table(report: EvaluationReport, evaluations: Sequence[Evaluation]) -> TextTable:

    def lowest(one: Evaluation) -> str:
        known = [(accuracy.percent, label) for label, accuracy in enumerate(one.quality.by_class) if accuracy.total]
        percent, label = min(known)
        return f"{percent:.1f} % ({report.class_names[label]})"

    return make_table(
        f"Accuracy on {report.images:,} {report.split} images of {report.dataset}",
        evaluations,
        {
            "network": lambda one: one.name,
            "top-1": lambda one: f"{one.quality.top1.percent:.2f} %",
            "95 % interval": lambda one: format_interval(one.quality.top1),
            "top-5": lambda one: f"{one.quality.top5.percent:.2f} %",
            "mean over classes": lambda one: f"{one.quality.mean_over_classes:.2f} %",
            "lowest class": lowest,
            f"ECE, {CALIBRATION_BINS} bins": lambda one: f"{one.quality.calibration.error:.2f} %",
        },
    )


def _agreement_table(students: Sequence[Evaluation]) -> TextTable:
    def share(name: str) -> Callable[[Evaluation], str]:
        return lambda one: format_percent(getattr(one.agreement, name))

    return make_table(
        "Agreement with the teacher: same class, mean KL divergence from it, and who is right where they differ",
        students,
        {
            "student": lambda one: one.name,
            "teacher": lambda one: one.teacher,
            "same class": share("same"),
            "mean KL (nats)": lambda one: f"{one.agreement.divergence:.4f}" if one.agreement else None,
            "only the teacher": share("teacher_alone_correct"),
            "only the student": share("student_alone_correct"),
            "neither": share("both_wrong"),
        },
    )


def _cost_table(evaluations: Sequence[Evaluation]) -> TextTable:
    def milliseconds(place: int) -> Callable[[Evaluation], str]:
        def text(one: Evaluation) -> str:
            timing = one.cost.timings[place]
            return f"{timing.median:.3g} ({timing.low:.3g} to {timing.high:.3g})"

        return text

    def computed_in(one: Evaluation) -> str:
        threads = "" if one.cost.threads is None else f", threads: {one.cost.threads}"
        return f"{one.cost.precision} on {one.cost.device}{threads}"

    return make_table(
        "Size, and milliseconds an image, median (quartiles)",
        evaluations,
        {
            "network": lambda one: one.name,
            "architecture": lambda one: f"{one.model}, {one.image_size}x{one.image_size}",
            "parameters": lambda one: f"{one.cost.size.parameters:,}" if one.cost.size else None,
            "million multiply-adds": lambda one: f"{one.cost.size.multiply_adds / 1e6:.1f}" if one.cost.size else None,
            "computed in": computed_in,
            "file": lambda one: file_size(one.cost.bytes),
            **{f"ms, batch of {size}": milliseconds(place) for place, size in enumerate(BATCH_SIZES)},
        },
    )


def _classes_table(names: Sequence[str], evaluations: Sequence[Evaluation], max_rows: int | None) -> TextTable:
    """Accuracy by class with its interval, a column for each network, the class with the lowest accuracy first."""
    by_class = zip(*(one.quality.by_class for one in evaluations), strict=True)
    known = [(name, found) for name, found in zip(names, by_class, strict=True) if found[0].total]
    known.sort(key=lambda row: min(accuracy.count for accuracy in row[1]) / row[1][0].total)
    rows = [(name, f"{found[0].total:,}", *map(_with_interval, found)) for name, found in known[:max_rows]]
    title = "Accuracy by class (95 % interval), the lowest first" + _omitted(len(known) - len(rows), "classes")
    return TextTable(title, ("class", "images", *(one.name for one in evaluations)), rows)


def _pairs_table(
    title: str,
    header: tuple[str, str],
    names: Sequence[str],
    columns: Mapping[str, Sequence[ClassPair]],
    max_rows: int | None,
) -> TextTable:
    """Count pairs of classes, a column for each network, the most frequent pair of any network first."""
    counts = [{(pair.first, pair.second): pair.images for pair in pairs} for pairs in columns.values()]
    known = {pair: [by_pair.get(pair, 0) for by_pair in counts] for by_pair in counts for pair in by_pair}
    chosen = sorted(known, key=lambda pair: (-max(known[pair]), pair))[:max_rows]
    rows = [(names[first], names[second], *map(str, known[first, second])) for first, second in chosen]
    return TextTable(title + _omitted(len(known) - len(rows), "pairs"), (*header, *columns), rows)


def _omitted(count: int, what: str) -> str:
    return f" ({count:,} {what} omitted)" if count else ""


def _with_interval(value: Proportion) -> str:
    return f"{format_percent(value)} ({format_interval(value)})"


@dataclass(frozen=True)
class _Line:
    """A figure of a network, as a line of the CSV file."""

    network: str
    figure: str
    class_name: str = ""
    other_class_name: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    total: int | None = None


def as_csv(report: EvaluationReport) -> str:
    """Write a line for each figure of each network: of the whole, of each class, pair of classes and bin."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(_Line))
    for one in report.evaluations:
        writer.writerows(map(astuple, _lines(one, report.class_names)))
    return text.getvalue()


def _lines(one: Evaluation, class_names: Sequence[str]) -> Iterator[_Line]:
    def share(figure: str, value: Proportion, class_name: str = "") -> _Line:
        low, high = value.interval or (None, None)
        return _Line(name, figure, class_name, "", value.percent, low, high, value.count, value.total)

    name, quality, cost, names = (
        str(csv_text(one.name)),
        one.quality,
        one.cost,
        [str(csv_text(name)) for name in class_names],
    )
    yield share("top1_percent", quality.top1)
    yield share("top5_percent", quality.top5)
    whole = {
        "mean_over_classes_percent": quality.mean_over_classes,
        "cross_entropy_nats": quality.loss,
        "ece_percent": quality.calibration.error,
        "parameters": cost.size and cost.size.parameters,
        "multiply_adds": cost.size and cost.size.multiply_adds,
        "bytes": cost.bytes,
    }
    for figure, value in whole.items():
        yield _Line(name, figure, value=value)
    for size, forwards, median, low, high in cost.timings:
        yield _Line(name, f"milliseconds_per_image_batch_{size}", value=median, low=low, high=high, count=forwards)
    for class_name, accuracy in zip(names, quality.by_class, strict=True):
        yield share("class_percent", accuracy, class_name)
    for first, second, count in quality.confusion:
        yield _Line(name, "predicted", names[first], names[second], count=count)
    for bin in quality.calibration.bins:
        yield _Line(name, "accuracy_of_confidence", value=bin.accuracy, low=bin.low, high=bin.high, count=bin.images)
        yield _Line(name, "mean_confidence", value=bin.confidence, low=bin.low, high=bin.high, count=bin.images)
    if one.agreement is None:
        return
    yield _Line(name, "mean_kl_nats", value=one.agreement.divergence)
    for figure in ("same", "teacher_alone_correct", "student_alone_correct", "both_wrong"):
        yield share(f"{figure}_percent", getattr(one.agreement, figure))
    for first, second, count in one.agreement.pairs:
        yield _Line(name, "teacher_and_student", names[first], names[second], count=count)


def as_markdown(report: EvaluationReport) -> str:
    """Write all rows of all tables as Markdown."""
    return "\n\n".join(map(to_markdown, evaluation_tables(report, is_full=True))) + "\n"


def as_json(report: EvaluationReport) -> str:
    """Write everything as JSON."""
    return json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n"


EVALUATION_FORMATS: dict[str, Callable[[EvaluationReport], str]] = {
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
}
"""Writer of each text format of an evaluation."""

"""What came out of the runs, in few figures: the best student beside its teacher, and a table of the best groups."""

from __future__ import annotations  # so that what is recorded is shown without torch

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kdcache.report.tables import TextTable, file_size, format_mean_std, make_table

if TYPE_CHECKING:
    from kdcache.analysis.groups import RunGroup
    from kdcache.analysis.outcomes import Outcome

__all__ = ["Fact", "by_dataset", "headline", "outcomes_table"]

MAX_ROWS = 10
"""Groups in the table, besides the teachers of these."""


class Fact(NamedTuple):
    """A figure, what it is, and how it is to be read."""

    value: str
    name: str
    detail: str


def _best_first(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Sort groups: teachers before students, each by accuracy after the last epoch, those without one last."""
    return sorted(outcomes, key=lambda one: (one.is_student, one.last.mean is None, -(one.last.mean or 0)))


def by_dataset(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Put groups of one dataset together, the best first: accuracies on different images are not compared."""
    found: dict[str, list[Outcome]] = {}
    for outcome in _best_first(outcomes):
        found.setdefault(outcome.group.config.dataset, []).append(outcome)
    return found


def headline(outcomes: Sequence[Outcome]) -> list[Fact]:
    """State what came out of the groups of one dataset.

    They are sorted as by `by_dataset`. The figures are about the best student, or if there is none with an accuracy,
    the best teacher, or else the progress of the first group.
    """
    known = [one for one in outcomes if one.last.mean is not None]
    if not known:
        return _progress(outcomes[0].group)
    students = [one for one in known if one.is_student]
    taught = [one for one in students if one.teacher is not None]
    alike, kind = (
        (taught, "distilled students") if taught else (students, "students") if students else (known, "teachers")
    )
    best = alike[0]
    name = f"best of {len(alike)} groups of {kind}" if len(alike) > 1 else kind.removesuffix("s")
    name += ", of those that are not damaged" if any(one.last.damaged for one in outcomes) else ""
    facts = [Fact(_percent(best.last.mean), f"{name}: top-1 after the last epoch", _of_runs(best))]
    if best.teacher is not None and best.below_teacher is not None:
        detail = f"{best.teacher.run.config.model}, {_apart(best.below_teacher)}"
        facts.append(Fact(_percent(best.teacher.top1), "its teacher", detail))
    if best.labels_alone is not None:
        facts.append(_labels_alone(best, best.labels_alone))
    return [*facts, *_costs(best)]


def _labels_alone(best: Outcome, alone: Outcome) -> Fact:
    """State how much of the gap to the teacher is closed, or if the teacher is not ahead, the other accuracy."""
    accuracy, name = alone.last.mean or 0.0, alone.group.name
    if best.gap_closed is not None:
        detail = f"{_percent(accuracy)} with labels alone ({name})"
        return Fact(f"{best.gap_closed:.0f} %", "of the gap to the teacher closed", detail)
    return Fact(_percent(accuracy), "with labels alone", f"{name}, {_apart(accuracy - (best.last.mean or 0.0))}")


def _apart(points: float) -> str:
    far = f"{abs(points):.2f}"
    return "as the student" if far == "0.00" else f"{far} points {'above' if points > 0 else 'below'} the student"


def _costs(best: Outcome) -> list[Fact]:
    """State the size of a network, and its speed if that was measured, beside its teacher's if that is known."""
    facts, size, teacher = list[Fact](), best.size, best.teacher
    if size is not None:
        name, value = "parameters", f"{size.parameters:,}"
        detail = f"a file of {file_size(size.bytes)}"
        if teacher is not None and teacher.size is not None:
            detail += f"; the teacher has {teacher.size.parameters:,} in {file_size(teacher.size.bytes)}"
        facts.append(Fact(value, name, detail))
    if best.milliseconds is not None:
        compared = teacher.milliseconds if teacher is not None else None
        detail = "one image at a time" + (f"; the teacher takes {compared:.3g} ms" if compared else "")
        facts.append(Fact(f"{best.milliseconds:.3g} ms", "an image", detail))
    return facts


def _progress(group: RunGroup) -> list[Fact]:
    """State how far the first run of a group is that has not finished."""
    run = group.runs[0]
    evaluated = [line for line in run.metrics if line.test_top1 is not None]
    facts = [Fact(f"{len(run.metrics)} of {run.config.epochs}", "epochs are complete", group.name)]
    if evaluated:
        detail = f"top-1 after epoch {evaluated[-1].epoch}"
        facts.insert(0, Fact(_percent(evaluated[-1].test_top1), "on the test images so far", detail))
    return facts


def _of_runs(one: Outcome) -> str:
    runs = f", mean of {one.last.n} runs (std {one.last.std:.2f})" if one.last.std is not None else ""
    best = f"; {_percent(one.best.mean)} after the best epoch" if one.best.mean is not None else ""
    return f"{one.group.name}{runs}{best}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def outcomes_table(outcomes: Sequence[Outcome]) -> TextTable:
    """Accuracy, teacher and size of the best groups of one dataset, which are sorted as by `by_dataset`."""
    teachers = [one for one in outcomes if not one.is_student]
    students = [one for one in outcomes if one.is_student][:MAX_ROWS]
    taught = {one.teacher.run.path for one in students if one.teacher is not None}
    named = [one for one in teachers if not students or any(run.path in taught for run in one.group.runs)]
    shown = [*(named[:MAX_ROWS]), *students]
    left_out = len(outcomes) - len(shown)
    columns: dict[str, Callable[[Outcome], object]] = {
        "runs": lambda one: one.group.name,
        "last epoch (%)": lambda one: format_mean_std(one.last),
        "best epoch (%)": lambda one: format_mean_std(one.best),
        "teacher (%)": lambda one: f"{one.teacher.top1:.2f}" if one.teacher and one.teacher.top1 is not None else None,
        "gap closed": lambda one: None if one.gap_closed is None else f"{one.gap_closed:.0f} %",
        "parameters": lambda one: f"{one.size.parameters:,}" if one.size else None,
        "file": lambda one: file_size(one.size.bytes) if one.size else None,
        "ms an image": lambda one: None if one.milliseconds is None else f"{one.milliseconds:.3g}",
    }
    known = {name: cell for name, cell in columns.items() if any(cell(one) is not None for one in shown)}
    title = "Top-1 accuracy on the test images, mean (std) over seeds; teachers first, then the best student first"
    return make_table(title + (f" ({left_out} more groups below)" if left_out else ""), shown, known)

"""Tables about stores of logits."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from kdcache.analysis.questions import StudyCosts
from kdcache.analysis.verification import Check
from kdcache.answers.codec import DENSE
from kdcache.answers.store import AnswerStore, Replayed
from kdcache.report.tables import TextTable, file_size

__all__ = ["checks_table", "costs_table", "format_line", "store_table"]


def costs_table(found: StudyCosts, students: int) -> TextTable:
    """Lay out what students that share a view seed cost under each kind of store."""
    online = found.costs[0]
    lines = []
    for cost in found.costs:
        asked, pays = cost.questions(students), cost.pays_from(online)
        fewer = f"{online.questions(students) / asked:.2f}" if asked else "-"
        size = cost.tables * found.table_bytes
        lines.append((cost.store, str(cost.first), str(asked), fewer, str(size), str(pays or "-")))
    head = ("--cache", "questions of one student", f"of {students}", "times fewer", "new bytes", "pays from students")
    return TextTable("What is asked and stored", head, lines)


def format_line(found: StudyCosts, temperature: float) -> str:
    """Say what an answer takes, and what its format loses where that is known."""
    line = f"an answer takes {found.row_bytes} bytes as {found.format.name}"
    if found.loss is None:
        return line
    mean, largest, flips = found.loss
    return (
        f"{line}, {found.whole_bytes} as {DENSE.name}; on the clean images its KL from the whole answer at temperature "
        f"{temperature:g} is {mean:.2g} (at most {largest:.2g}); {100 * flips:.2g} % have another first class"
    )


def store_table(store: AnswerStore) -> TextTable:
    """Lay out what a store holds: the clean answers, and those of each kind and view seed."""
    lines = []
    for views, names in _grouped(store.tables(), lambda name: name).items():
        rows = sum(int(store.table(name).committed().sum()) for name in names)
        size = sum(store.place.size(name) for name in names)
        full = f"{100 * rows / (len(names) * store.samples):.0f} %"
        lines.append((views, str(len(names)), str(rows), full, file_size(size)))
    return TextTable(store.place.where, ("answers to", "tables", "answers", "full", "size"), lines)


def checks_table(checks: Iterable[Check]) -> TextTable:
    """Lay out what came of checking a store."""
    lines = []
    for views, group in _grouped(checks, lambda check: check.table).items():
        compared = sum(check.compared for check in group)
        mean = sum(check.mean * check.compared for check in group) / max(1, compared)
        figures = (
            f"{sum(check.rows for check in group)} of {sum(check.of for check in group)}",
            f"{sum(check.damaged for check in group)}",
            f"{compared}",
            f"{max(check.largest for check in group):.3g}",
            f"{mean:.3g}",
            f"{sum(check.flips for check in group)}",
        )
        lines.append((views, *figures))
    head = ("answers to", "sound", "damaged chunks", "asked again", "largest error", "mean error", "other class")
    return TextTable("Stored answers against the teacher's", head, lines)


Thing = TypeVar("Thing")


def _grouped(things: Iterable[Thing], name_of: Callable[[Thing], str]) -> dict[str, list[Thing]]:
    """Put together what belongs to tables of the same kind and view seed."""
    groups: dict[str, list[Thing]] = {}
    for thing in things:
        replayed = Replayed.parse(name_of(thing))
        group = f"{replayed.kind}, view seed {replayed.seed}" if replayed else name_of(thing)
        groups.setdefault(group, []).append(thing)
    return groups

"""Tables about stores of logits: what they hold, what they cost, and whether they are correct."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from kdcache.answers.budget import CacheCost
from kdcache.answers.encoding import DEFAULT_ENCODING, AnswerEncoding, Vectors, row_bytes
from kdcache.answers.store import AnswerStore, ReplayTableName
from kdcache.answers.teacher_stores import FoundStores
from kdcache.report.tables import TextTable, file_size

if TYPE_CHECKING:
    from kdcache.answers.verify import EncodingError, TableCheck

__all__ = ["checks_table", "costs_table", "encoding_line", "store_table", "stores_table"]


def costs_table(costs: Sequence[CacheCost], students: int) -> TextTable:
    """Make the table of what students that share a view seed cost with each ``--cache``."""
    uncached = costs[0]
    rows = []
    for cost in costs:
        forwards, pays_from = cost.forwards(students), cost.pays_from(uncached)
        times_fewer = f"{uncached.forwards(students) / forwards:.2f}" if forwards else "-"
        figures = (str(cost.first), str(forwards), times_fewer, str(cost.added_bytes))
        rows.append((cost.cache, *figures, str(pays_from or "-")))
    head = ("--cache", "forwards of one student", f"of {students}", "times fewer", "new bytes", "pays from students")
    return TextTable("Teacher forwards and bytes", head, rows)


def encoding_line(
    encoding: AnswerEncoding,
    other: AnswerEncoding | None,
    classes: int,
    error: "EncodingError | None",
    temperature: float,
) -> str:
    """Describe the size of a row of answers, that in the `other` format, and the error of its encoding if known."""
    size, default_size = (row_bytes(one.layout(classes)) for one in (encoding, DEFAULT_ENCODING))
    keeps_vectors = isinstance(encoding, Vectors)
    line = (
        f"the {'vector of a view takes' if keeps_vectors else 'logits of a view take'} {size} bytes as {encoding.name}"
    )
    if other is not None:
        other_size = row_bytes(other.layout(classes))
        what = "its logits" if keeps_vectors else "the vector from which they follow"
        line += f"; {what} would take {other_size}, {other_size / size:.2g} times as many"
    if error is None:
        return line
    return (
        f"{line}, {default_size} as {DEFAULT_ENCODING.name}; on clean images, their KL divergence from all logits at "
        f"temperature {temperature:g} is {error.mean_kl:.2g} (at most {error.max_kl:.2g}), and "
        f"{100 * error.argmax_changes:.2g} % have another top class"
    )


def stores_table(found: FoundStores) -> TextTable:
    """Make the table of the stores of a teacher: what images each is for, and what it takes."""
    rows = []
    for store in found.stores:
        place = store.location
        images = str(store.made_with.get("dataset's name", "?"))
        size = str(store.made_with.get("image size", "?"))
        figures = (images, str(store.samples), size, store.encoding.name, store.precision)
        name = place.folder.name if place.folder else place.where
        rows.append((name, *figures, str(len(store.table_paths())), file_size(place.size())))
    rows += [(one.folder.name, "unreadable", *5 * ("-",), file_size(one.size())) for one in found.unreadable]
    head = ("store", "dataset", "images", "size", "format", "teacher precision", "tables", "bytes")
    return TextTable("Stores of the teacher's logits", head, rows)


def store_table(store: AnswerStore) -> TextTable:
    """Make the table of what a store holds: clean views, and views of each kind and view seed."""
    rows = []
    for views, paths in _grouped(store.table_paths(), lambda path: path).items():
        stored = sum(int(store.table(path).committed().sum()) for path in paths)
        size = sum(store.location.size(path) for path in paths)
        full = f"{100 * stored / (len(paths) * store.samples):.0f} %"
        rows.append((views, str(len(paths)), str(stored), full, file_size(size)))
    return TextTable(store.location.where, ("views", "tables", "rows", "full", "size"), rows)


def checks_table(where: str, checks: Iterable["TableCheck"]) -> TextTable:
    """Make the table of the results of verifying a store."""
    rows = []
    for views, group in _grouped(checks, lambda check: check.table).items():
        compared = sum(check.compared for check in group)
        mean_error = sum(check.mean_error * check.compared for check in group) / max(1, compared)
        figures = (
            f"{sum(check.rows for check in group)} of {sum(check.total_rows for check in group)}",
            f"{sum(check.damaged for check in group)}",
            f"{compared}",
            f"{max(check.max_error for check in group):.3g}",
            f"{mean_error:.3g}",
            f"{sum(check.argmax_changes for check in group)}",
        )
        rows.append((views, *figures))
    head = ("views", "intact rows", "damaged chunks", "compared", "max error", "mean error", "other top class")
    return TextTable(f"{where} against the teacher", head, rows)


Item = TypeVar("Item")


def _grouped(items: Iterable[Item], path_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Group items whose tables hold the same kind of view with the same view seed."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        name = ReplayTableName.parse(path_of(item))
        group = f"{name.kind}, view seed {name.seed}" if name else path_of(item)
        groups.setdefault(group, []).append(item)
    return groups

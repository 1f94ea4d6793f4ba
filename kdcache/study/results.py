"""Results of a study: the accuracy of each table cell next to the published one, and the decisions about its claims."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.analysis.estimates import MeanStd
from kdcache.run.folder import FinishedRun
from kdcache.study.claims import Decision, TestResult, evaluate_claim
from kdcache.study.definition import Study
from kdcache.study.planned import StudyCell
from kdcache.study.published import PublishedAccuracy, published_accuracy

__all__ = ["CellResult", "ClaimResult", "collect_results", "evaluate_claims"]

SUMMARY_FIELDS = ("last_top1", "best_top1", "last_top5", "teacher_forwards", "cache_hits")


@dataclass(frozen=True)
class CellResult:
    """Result of a table cell over its finished runs.

    Attributes
    ----------
    cell : StudyCell
    by_seed : dict of int to float
        Top-1 accuracy after the last epoch in percent, by seed.
    last_top1, best_top1, last_top5 : MeanStd
    val_top1 : MeanStd
        On the validation images, if there are some.
    teacher_forwards, cache_hits : int
        Total over the runs.
    published : PublishedAccuracy or None
    """

    cell: StudyCell
    by_seed: dict[int, float]
    last_top1: MeanStd
    best_top1: MeanStd
    last_top5: MeanStd
    val_top1: MeanStd
    teacher_forwards: int
    cache_hits: int
    published: PublishedAccuracy | None

    @property
    def finished_runs(self) -> int:
        """Number of finished runs."""
        return len(self.by_seed)

    @property
    def planned_runs(self) -> int:
        """Number of runs of the cell."""
        return len(self.cell.runs)

    @property
    def difference(self) -> float | None:
        """Our mean minus the published one, in points."""
        if self.published is None or self.last_top1.mean is None:
            return None
        return self.last_top1.mean - self.published.mean

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        config = self.cell.runs[0].config
        return {
            "row": self.cell.row.name,
            "pair": self.cell.pair.name,
            "protocol": self.cell.protocol.name,
            config.length.unit: config.length.number,
            "aug": getattr(config, "aug", None),
            "planned_runs": self.planned_runs,
            "last_top1": self.last_top1.as_json(),
            "best_top1": self.best_top1.as_json(),
            "last_top5": self.last_top5.as_json(),
            "val_top1": self.val_top1.as_json(),
            "by_seed": self.by_seed,
            "published": self.published.as_json() if self.published else None,
            "difference": self.difference,
            "teacher_forwards": self.teacher_forwards,
            "cache_hits": self.cache_hits,
        }


def collect_results(study: Study, cells: Sequence[StudyCell]) -> list[CellResult]:
    """Read the summaries of the finished runs, cell by cell."""
    results = []
    for cell in cells:
        finished = {run.config.seed: FinishedRun(run.path) for run in cell.runs if run.finished}
        summaries = {seed: run.summary for seed, run in finished.items()}
        values = {name: [summary[name] for summary in summaries.values()] for name in SUMMARY_FIELDS}
        results.append(
            CellResult(
                cell,
                by_seed={seed: summary["last_top1"] for seed, summary in summaries.items()},
                last_top1=MeanStd.of(values["last_top1"]),
                best_top1=MeanStd.of(values["best_top1"]),
                last_top5=MeanStd.of(values["last_top5"]),
                val_top1=MeanStd.of(run.read_metrics()[-1].val_top1 for run in finished.values()),
                teacher_forwards=sum(values["teacher_forwards"]),
                cache_hits=sum(values["cache_hits"]),
                published=_published(study, cell),
            )
        )
    return results


def _published(study: Study, cell: StudyCell) -> PublishedAccuracy | None:
    row, dataset = cell.row.published_row, cell.runs[0].config.dataset
    if row is None:
        return None
    found = (published_accuracy(table, row, cell.pair.name, dataset) for table in study.published)
    return next((accuracy for accuracy in found if accuracy is not None), None)


@dataclass(frozen=True)
class ClaimResult:
    """A claim tested on one column: its statement, the results of its tests and the decision."""

    statement: str
    column: tuple[str, str]
    tests: tuple[TestResult, ...]
    decision: Decision

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        tests = [
            {
                "hypothesis": str(test.hypothesis),
                "interval": test.interval.as_json() if test.interval else None,
                "decision": test.decision,
            }
            for test in self.tests
        ]
        protocol, pair = self.column
        return {
            "statement": self.statement,
            "protocol": protocol,
            "pair": pair,
            "decision": self.decision,
            "tests": tests,
        }


def evaluate_claims(study: Study, results: Sequence[CellResult]) -> list[ClaimResult]:
    """Test the claims of a study, for each column separately."""
    evaluated = []
    for column in dict.fromkeys(result.cell.column for result in results):
        accuracies = {result.cell.row.name: result.by_seed for result in results if result.cell.column == column}
        evaluated += [
            ClaimResult(claim.statement, column, *evaluate_claim(claim, accuracies)) for claim in study.claims
        ]
    return evaluated

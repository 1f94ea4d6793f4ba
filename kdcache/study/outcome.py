"""What the runs of a study came to, beside the paper's figures; unfinished runs are counted as missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.analysis.estimates import MeanStd
from kdcache.run.folder import FinishedRun
from kdcache.study.claims import Found, Verdict, decide
from kdcache.study.expand import TableCell
from kdcache.study.paper import paper_figure
from kdcache.study.plan import Study

__all__ = ["Judged", "Result", "judged", "results"]


@dataclass(frozen=True)
class Result:
    """A cell of a table.

    Attributes
    ----------
    cell : TableCell
    accuracy : dict of int to float
        Top-1 accuracy after the last epoch, in percent, of each seed whose run is finished.
    last, best, top5 : MeanStd
        Over these runs.
    asked, answered : int
        TeacherCounts in all.
    paper : MeanStd or None
    """

    cell: TableCell
    accuracy: dict[int, float]
    last: MeanStd
    best: MeanStd
    top5: MeanStd
    asked: int
    answered: int
    paper: MeanStd | None

    @property
    def wanted(self) -> int:
        """How many runs there should be."""
        return len(self.cell.runs)

    @property
    def difference(self) -> float | None:
        """Our mean minus the paper's, in points."""
        if self.paper is None or self.paper.mean is None or self.last.mean is None:
            return None
        return self.last.mean - self.paper.mean

    def as_json(self) -> dict[str, Any]:
        """The cell as plain data."""
        config = self.cell.runs[0].config
        return {
            "row": self.cell.row.name,
            "pair": self.cell.pair.name,
            "setting": self.cell.setting.name,
            "epochs": config.epochs,
            "aug": getattr(config, "aug", None),
            "wanted": self.wanted,
            "last_top1": self.last.as_json(),
            "best_top1": self.best.as_json(),
            "last_top5": self.top5.as_json(),
            "by_seed": self.accuracy,
            "paper": self.paper.as_json() if self.paper else None,
            "difference": self.difference,
            "teacher_forwards": self.asked,
            "cache_hits": self.answered,
        }


def results(study: Study, cells: Sequence[TableCell]) -> list[Result]:
    """Read what is finished."""
    found = []
    for cell in cells:
        runs = [FinishedRun(run.path) for run in cell.runs if run.finished]
        last, best, top5 = (
            MeanStd.of(run.summary[name] for run in runs) for name in ("last_top1", "best_top1", "last_top5")
        )
        found.append(
            Result(
                cell,
                {run.config.seed: run.summary["last_top1"] for run in runs},
                last,
                best,
                top5,
                sum(run.summary["teacher_forwards"] for run in runs),
                sum(run.summary["cache_hits"] for run in runs),
                paper_figure(study.paper, cell.row.paper, cell.pair.name, cell.runs[0].config.dataset),
            )
        )
    return found


@dataclass(frozen=True)
class Judged:
    """A claim, its tests, and what they come to; for one pair of networks."""

    says: str
    column: tuple[str, str]
    found: tuple[Found, ...]
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """The claim as plain data."""
        tests = [
            {
                "test": one.test.words,
                "interval": one.interval.as_json() if one.interval else None,
                "verdict": one.verdict,
            }
            for one in self.found
        ]
        setting, pair = self.column
        return {"claim": self.says, "setting": setting, "pair": pair, "verdict": self.verdict, "tests": tests}


def judged(study: Study, found: Sequence[Result]) -> list[Judged]:
    """Judge the claims of a study, for each pair by itself."""
    verdicts: list[Judged] = []
    for column in dict.fromkeys(result.cell.column for result in found):
        accuracy = {result.cell.row.name: result.accuracy for result in found if result.cell.column == column}
        verdicts += [Judged(claim.says, column, *decide(claim, accuracy)) for claim in study.claims]
    return verdicts

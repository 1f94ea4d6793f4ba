"""What a report says about runs: results by group, curves, and label disagreement of their teachers."""

from __future__ import annotations  # so that a report of what is recorded needs no torch

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.analysis.curves import ErrorCurve, error_curves
from kdcache.analysis.groups import RunGroup, group_runs
from kdcache.analysis.outcomes import Outcome, find_outcomes, load_teachers
from kdcache.config import StudentConfig
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.run.records import RunRecord, load_runs

if TYPE_CHECKING:
    from kdcache.analysis.disagreement import DisagreementReport
    from kdcache.analysis.evaluation import EvaluationReport

__all__ = ["RESULTS", "RunSummary", "summarize_runs"]

RESULTS = ("last_top1", "last_top5", "best_top1", "teacher_forwards", "cache_hits", "seconds")
"""Numbers of a run's summary that are averaged over the runs of a group."""


@dataclass(frozen=True, eq=False)
class RunSummary:
    """A summary of runs.

    Attributes
    ----------
    runs : tuple of RunRecord
    groups : tuple of RunGroup
    outcomes : tuple of Outcome
        Of each group, in their order.
    errors : tuple of ErrorCurve
    ratios : tuple of RunGroup
        Those that pick among candidates with known d.
    disagreements : tuple of DisagreementReport
        Of each teacher of the runs.
    evaluations : tuple of EvaluationReport
        Of the runs of each dataset, if that was asked for.
    missing : tuple of str
        Messages about what is missing or damaged.
    """

    runs: tuple[RunRecord, ...]
    groups: tuple[RunGroup, ...]
    outcomes: tuple[Outcome, ...]
    errors: tuple[ErrorCurve, ...]
    ratios: tuple[RunGroup, ...]
    disagreements: tuple[DisagreementReport, ...]
    evaluations: tuple[EvaluationReport, ...]
    missing: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "runs": [str(run.path) for run in group.runs],
                    "unfinished": [str(run.path) for run in group.runs if not run.finished],
                    "settings": group.config.model_dump(mode="json", exclude=set(group.config.NOT_RECORDED)),
                    **{name: group.result(name).as_json() for name in RESULTS},
                    **outcome.as_json(),
                }
                for group, outcome in zip(self.groups, self.outcomes, strict=True)
            ],
            "runs": [
                {"path": str(run.path), "seed": run.config.seed, "summary": run.summary, "environment": run.environment}
                for run in self.runs
            ],
            "error_curves": [curve.as_json() for curve in self.errors],
            "kl_ratios": [
                {
                    "name": group.name,
                    "overall": group.mean_over_epochs("kl_ratio").as_json(),
                    "by_epoch": [{"epoch": epoch, **mean.as_json()} for epoch, mean in group.by_epoch("kl_ratio")],
                }
                for group in self.ratios
            ],
            "label_disagreement": [report.as_json() for report in self.disagreements],
            "evaluations": [report.as_json() for report in self.evaluations],
            "missing": list(self.missing),
        }


def summarize_runs(
    paths: Sequence[Path],
    samples: int = 0,
    data_root: Path | None = None,
    device: str = "auto",
    dataset: str | None = None,
    evaluates: bool = False,
) -> RunSummary:
    """Summarize runs, measure label disagreement of their teachers, and evaluate the networks.

    Parameters
    ----------
    paths : sequence of Path
        Run folders, and folders of run folders.
    samples : int
        CutMix samples per teacher for label disagreement; 0 leaves it out.
    data_root : Path, optional
        Folder of the datasets, by default as recorded in the runs.
    device : str
    dataset : str, optional
        The place to which the images of the runs were moved.
    evaluates : bool
        Whether to evaluate the networks, see `kdcache.analysis.evaluation`.

    Raises
    ------
    UsageError
        If there is no run.
    """
    runs, missing, _ = load_runs(paths)
    if not runs:
        raise UsageError(*missing or ["no run folder given"])
    groups = group_runs(runs)
    teachers, unknown = load_teachers(runs)
    disagreements, unmeasured = _measure_disagreement(runs, samples, data_root, device, dataset)
    evaluations, unevaluated = _evaluate(runs, data_root, device, dataset) if evaluates else ([], [])
    networks = [network for report in evaluations for network in report.evaluations]
    return RunSummary(
        tuple(runs),
        tuple(groups),
        tuple(find_outcomes(groups, teachers, networks)),
        tuple(error_curves(runs)),
        tuple(group for group in groups if group.has("kl_ratio")),
        tuple(disagreements),
        tuple(evaluations),
        (*missing, *unknown, *unmeasured, *unevaluated),
    )


def _measure_disagreement(
    runs: Sequence[RunRecord], samples: int, data_root: Path | None, device: str, dataset: str | None
) -> tuple[list[DisagreementReport], list[str]]:
    """Measure label disagreement of each teacher, and list what could not be measured."""
    if not samples:
        return [], []
    from kdcache.analysis.disagreement import measure_disagreement
    from kdcache.analysis.inputs import load_analysis_inputs
    from kdcache.run.taught import teacher_of

    found, missing = [], list[str]()
    for path, named_by in _teachers(runs).items():
        try:
            place = teacher_of(named_by, path)
            teacher = load_analysis_inputs(str(place), dataset=dataset, data_root=data_root, device=device)
            if not teacher.has_own_images:
                raise UsageError(problem(f"--dataset {dataset}", expected=f"the images that {place} was trained on"))
            found.append(measure_disagreement(teacher, samples))
        except (KdcacheError, OSError) as error:
            missing += [f"label disagreement of {path}: {line}" for line in str(error).splitlines()]
    return found, missing


def _evaluate(
    runs: Sequence[RunRecord], data_root: Path | None, device: str, dataset: str | None
) -> tuple[list[EvaluationReport], list[str]]:
    """Evaluate the networks of the runs of each dataset, and list what could not be evaluated."""
    from kdcache.analysis.evaluation import evaluate_networks
    from kdcache.analysis.evaluation_inputs import load_evaluation_inputs

    found, missing = [], list[str]()
    for together in _finished_by_dataset(runs):
        try:
            inputs = load_evaluation_inputs(together, "test", False, dataset, data_root, device, skips_bad=True)
            found.append(evaluate_networks(inputs))
            missing += [f"evaluation: {line}" for line in (*inputs.problems, *found[-1].problems)]
        except (KdcacheError, OSError) as error:
            missing += [f"evaluation: {line}" for line in str(error).splitlines()]
    return found, missing


def _finished_by_dataset(runs: Sequence[RunRecord]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.finished:
            found.setdefault(run.config.dataset, []).append(str(run.path))
    return [*found.values()]


def _teachers(runs: Sequence[RunRecord]) -> dict[Path, Path]:
    """List the teachers of the students, and the finished teachers, each once, with the first run that names it."""
    found: dict[Path, tuple[Path, Path]] = {}
    for run in runs:
        path = run.config.teacher if isinstance(run.config, StudentConfig) else run.path if run.finished else None
        if path is not None:
            found.setdefault(path.resolve(), (path, run.path))
    return dict(found.values())

"""All that can be said of some runs, for a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.analysis.curves import ErrorCurve, error_curves
from kdcache.analysis.disagreement import Study, study
from kdcache.analysis.kl_ratio import RatioCurve, ratio_curves
from kdcache.analysis.runs import Group, RunRecord, group, load_runs
from kdcache.analysis.subject import open_subject
from kdcache.config import StudentConfig
from kdcache.errors import KdcacheError, UsageError

__all__ = ["OUTCOMES", "Summary", "summarise"]

OUTCOMES = ("last_top1", "last_top5", "best_top1", "teacher_forwards", "cache_hits", "seconds")
"""The numbers of a run's summary that are summarised over the runs of a group."""


@dataclass(frozen=True, eq=False)
class Summary:
    """What runs have in common and in which they differ.

    Attributes
    ----------
    runs : tuple of RunRecord
    groups : tuple of Group
    errors : tuple of ErrorCurve
    ratios : tuple of RatioCurve
    studies : tuple of Study
        Label disagreement of each teacher that the runs name.
    missing : tuple of str
        A line for everything that is not there, or cannot be read.
    """

    runs: tuple[RunRecord, ...]
    groups: tuple[Group, ...]
    errors: tuple[ErrorCurve, ...]
    ratios: tuple[RatioCurve, ...]
    studies: tuple[Study, ...]
    missing: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All figures, as plain data."""
        return {
            "groups": [
                {
                    "name": one.name,
                    "runs": [str(run.path) for run in one.runs],
                    "unfinished": [str(run.path) for run in one.runs if not run.finished],
                    "settings": one.config.model_dump(mode="json", exclude=set(one.config.NOT_RECORDED)),
                    **{name: one.figure(name).as_json() for name in OUTCOMES},
                }
                for one in self.groups
            ],
            "runs": [
                {"path": str(run.path), "seed": run.config.seed, "summary": run.summary, "environment": run.environment}
                for run in self.runs
            ],
            "error_curves": [curve.as_json() for curve in self.errors],
            "kl_ratios": [curve.as_json() for curve in self.ratios],
            "label_disagreement": [one.as_json() for one in self.studies],
            "missing": list(self.missing),
        }


def summarise(
    paths: Sequence[Path], samples: int = 2000, data_root: Path | None = None, device: str = "auto"
) -> Summary:
    """Read runs, and count label disagreement of their teachers.

    Parameters
    ----------
    paths : sequence of Path
        Run folders, and folders that hold some.
    samples : int
        CutMix samples to ask each teacher about; 0 leaves label disagreement out.
    data_root : Path, optional
        Where the teachers' datasets lie, if not where they were.
    device : str

    Raises
    ------
    UsageError
        Where there is no run at all.
    """
    runs, missing = load_runs(paths)
    if not runs:
        raise UsageError(*missing or ["no run folder is given"])
    groups = group(runs)
    ratios, problems = ratio_curves(one for one in groups if isinstance(one.config, StudentConfig))
    missing += [line for line in problems if line not in missing]
    studies = []
    for teacher in _teachers(runs) if samples else ():
        try:
            subject = open_subject(str(teacher), data_root=data_root, device=device)
            studies.append(study(subject, samples))
        except (KdcacheError, OSError) as error:
            missing += [f"label disagreement of {teacher}: {line}" for line in str(error).splitlines()]
    return Summary(tuple(runs), tuple(groups), tuple(error_curves(runs)), tuple(ratios), tuple(studies), tuple(missing))


def _teachers(runs: Sequence[RunRecord]) -> list[Path]:
    """Find the teachers that finished runs name, and those that are teachers themselves, each once."""
    found: dict[Path, Path] = {}
    for run in runs:
        path = run.config.teacher if isinstance(run.config, StudentConfig) else run.path if run.finished else None
        if path is not None:
            found.setdefault(path.resolve(), path)
    return list(found.values())

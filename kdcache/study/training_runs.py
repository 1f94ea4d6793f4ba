"""Training the unfinished runs of a study."""

from collections.abc import Callable, Sequence
from pathlib import Path

from kdcache.run.folder import FinishedRun
from kdcache.setup import load_data
from kdcache.study.jobs import Job, Launcher
from kdcache.study.launch import Attempt, launch
from kdcache.study.planned import PlannedRun, StudyCell, list_runs, sort_by_seed

__all__ = ["train_unfinished"]

LOGS = "logs"
"""Folder, next to the run folders, with the output of each run."""


def train_unfinished(cells: Sequence[StudyCell], launcher: Launcher, report: Callable[[str], None]) -> list[str]:
    """Train the unfinished runs: the teachers first, then the students ordered by seed.

    Parameters
    ----------
    cells : sequence of StudyCell
    launcher : Launcher
    report : callable
        Called with a line of text whenever a run ends.

    Returns
    -------
    list of str
        Names of the runs that failed or whose teacher failed.

    Raises
    ------
    UsageError
        If images are missing. This is checked before any training, since all runs that need them would fail.
    """
    runs = list_runs(cells)
    for data_config in dict.fromkeys(run.data_config for run in runs if not run.finished):
        load_data(data_config)
    teachers = [run for run in runs if run.command != "student-train"]
    students = sort_by_seed(run for run in runs if run.command == "student-train")
    failed = _train(teachers, launcher, report)
    ready = [run for run in students if run.teacher is None or run.teacher.name not in failed]
    without_teacher = [run.name for run in students if run not in ready]
    return failed + _train(ready, launcher, report) + without_teacher


def _train(runs: Sequence[PlannedRun], launcher: Launcher, report: Callable[[str], None]) -> list[str]:
    """Train the unfinished ones of some runs, and return the names of those that failed."""
    unfinished = {run.name: run for run in runs if not run.finished}
    if len(unfinished) < len(runs):
        report(f"{len(runs) - len(unfinished)} of {len(runs)} runs are already finished")
    succeeded: dict[str, bool] = {}

    def on_attempt(attempt: Attempt) -> None:
        if attempt.is_last:
            succeeded[attempt.job.name] = attempt.exit_code == 0
        report(f"[{len(succeeded)}/{len(unfinished)}] {_describe(attempt, unfinished[attempt.job.name])}")

    launch([_job(run) for run in unfinished.values()], launcher, on_attempt)
    return [name for name, success in succeeded.items() if not success]


def _job(run: PlannedRun) -> Job:
    run.write_config()
    logs = (run.path.parent / LOGS).absolute()
    logs.mkdir(parents=True, exist_ok=True)
    return Job(run.name, run.arguments, logs / f"{run.path.name}.log", run.path.absolute(), Path.cwd())


def _describe(attempt: Attempt, run: PlannedRun) -> str:
    if attempt.exit_code == 0:
        if not run.finished:  # files from another machine may appear here with a delay
            return f"{run.name}: finished"
        summary = FinishedRun(run.path).summary
        return (
            f"{run.name}: top-1 {summary['last_top1']:.2f} %, {summary['teacher_forwards']} teacher forwards, "
            f"{summary['cache_hits']} cache hits, {summary['seconds']:.0f} s"
        )
    next_step = f"giving up, see {attempt.job.log}" if attempt.is_last else "trying again"
    return f"{run.name}: failed with exit code {attempt.exit_code} ({attempt.last_line}); {next_step}"

"""The teacher that a student's run names. Nothing here imports torch."""

import os
from pathlib import Path

from kdcache.errors import UsageError, problem
from kdcache.run.folder import RunFolder

__all__ = ["teacher_of"]


def teacher_of(run: Path, teacher: Path) -> Path:
    """Return the teacher's folder that a student's run names.

    Raises
    ------
    UsageError
        If it is not there, naming the run.
    """
    if not RunFolder(teacher).holds_run:
        got = "a folder without a run" if os.path.isdir(teacher) else "nothing"
        remedy = "If it was moved, name it with --teacher."
        raise UsageError(problem(f"teacher {teacher} of run {run}", expected="a run folder", got=got, remedy=remedy))
    return teacher

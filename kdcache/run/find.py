"""Which teacher's run and which store a command means."""

import logging
import os
from pathlib import Path

from kdcache.answers.clean_views import known_clean_views
from kdcache.answers.store import AnswerStore
from kdcache.answers.teacher_stores import FoundStores, TeacherStores, is_store_name
from kdcache.choices import SHIPPED
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Split
from kdcache.errors import UsageError, problem
from kdcache.run.folder import RUNS, FinishedRun, RunFolder, newest_finished_run
from kdcache.run.taught import teacher_of

__all__ = [
    "find_stores",
    "find_teacher",
    "find_teacher_run",
    "report_seen_images",
    "stores_of",
    "teacher_network",
    "weights_file",
]

log = logging.getLogger("kdcache")


def find_teacher_run(
    path: Path | None, dataset: str | None = None, remedy: str = "name a teacher's run folder"
) -> FinishedRun:
    """Find the finished run of a teacher: in a folder, or the newest one, for one dataset or for any.

    `remedy` is what the error message suggests, besides training a teacher.

    Raises
    ------
    UsageError
        If there is none.
    """
    run = FinishedRun(path) if path else newest_finished_run(TeacherConfig, dataset)
    if run is None:
        what = f"no finished teacher for {dataset}" if dataset else "no finished teacher"
        raise UsageError(problem(f"{what} under {RUNS}/", remedy=f"Run 'kdcache teacher-train' first, or {remedy}."))
    if not isinstance(run.config, TeacherConfig):
        raise UsageError(problem(f"run {run.path}", expected="a teacher", got=f"a {run.config.table}"))
    return run


def find_teacher(config: StudentConfig) -> Path:
    """Find the teacher's run folder: the one that the config names, or the newest one for the same dataset.

    Raises
    ------
    UsageError
        If there is none, it is unfinished, or the student would overwrite it. A student that is resumed keeps its
        teacher: whether that is the same one is checked by its weights.
    """
    if config.answers is not None:
        got = f"--answers {config.answers}"
        raise UsageError(problem("logits are computed by a teacher", expected="--teacher", got=got))
    resumed = config.out if config.resume else None
    if resumed is not None:
        for teacher in config.teachers:
            teacher_of(resumed, teacher)
    path = config.teacher
    if path is None:
        path = find_teacher_run(None, config.dataset, "name one with --teacher").path
        log.info("teacher: %s, the newest for %s; --teacher names another", path, config.dataset)
    for teacher in (path, *config.further_teachers):
        _check_teacher(teacher, config.out, must_be_finished=resumed is None)
    return path


def _check_teacher(path: Path, out: Path | None, must_be_finished: bool) -> None:
    """Check that a folder holds a network, which a student in `out` would not overwrite."""
    RunFolder(path).require_own_entries()
    if not RunFolder(path).network_file.is_file():
        made = SHIPPED if str(path) == SHIPPED else "FILE"
        remedy = f"Make one from weights with 'kdcache teacher-load --weights {made}'."
        raise UsageError(problem("--teacher", expected="a teacher's run folder", got=path, remedy=remedy))
    if must_be_finished:
        RunFolder(path).require_finished()
    if out is not None and out.resolve() == path.resolve():
        raise UsageError(problem("--out", expected="another folder than that of the teacher", got=out))


def teacher_network(config: StudentConfig) -> Path:
    """Locate the network of a student's teacher: after its last epoch, or after its best one.

    Raises
    ------
    UsageError
        If the best network is asked for, and the teacher's run is unfinished or has lost it.
    """
    assert config.teacher is not None
    if config.teacher_best:
        return FinishedRun(config.teacher).chosen_network_file(best=True)
    return RunFolder(config.teacher).network_file


def report_seen_images(teacher: Path, validation: Split, fraction: float) -> None:
    """Warn if a teacher was trained on validation images of its student, as far as the store of its run tells.

    Parameters
    ----------
    teacher : Path
        Its run folder. Nothing is known of the images of one that was loaded.
    validation : Split
        A part of the student's images.
    fraction : float
        How large a part.
    """
    run = RunFolder(teacher)
    if run.is_finished and run.read_summary().get("loaded"):
        return
    trained_on = run.read_environment().get("origin", {}).get("dataset")
    stores = [store for store in stores_of(teacher).find().stores if store.has_facts({"dataset": trained_on})]
    if seen := int(known_clean_views(stores, validation.image_digests()).sum()):
        log.warning(
            "the teacher %s was trained on %d of the %d validation images, on which the student may look better than "
            "it is: train the teacher with --val-fraction %g too",
            *(teacher, seen, len(validation), fraction),
        )


def stores_of(teacher: Path) -> TeacherStores:
    """Find the stores in a teacher's run folder."""
    return TeacherStores(RunFolder(teacher).answers_folder)


def find_stores(teacher: Path | None, store: str | None = None) -> FoundStores:
    """Open the store that is named, by its name in a teacher's run folder or its place, or all stores of a teacher.

    Raises
    ------
    UsageError
        If there are none.
    KdcacheError
        If the one that is named is damaged.
    """
    if store is not None and not is_store_name(store):
        inside = TeacherStores(Path(store)).find() if os.path.isdir(store) else FoundStores([])
        return inside if any(inside) else FoundStores([AnswerStore(store)])
    stores = stores_of(find_teacher_run(teacher).path)
    if store is not None:
        return FoundStores([AnswerStore(stores.named(store) or store)])
    found = stores.find()
    if not any(found):
        raise UsageError(problem(f"stores in {stores.folder}", expected="at least one", got="none"))
    return found


def weights_file(weights: str) -> str:
    """Return the file of a run's network for its folder, and anything else as it is.

    Raises
    ------
    UsageError
        If the run has no network yet, or is unfinished.
    """
    folder = RunFolder(Path(weights))
    if not folder.holds_run:
        return weights
    folder.require_own_entries()
    if not folder.network_file.is_file():
        raise UsageError(problem(f"weights {weights}", expected="a run with a network", got="one without"))
    folder.require_finished()
    return str(folder.network_file)

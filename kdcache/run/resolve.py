"""Which run folder a training writes to: a new one, one to overwrite, or one to resume."""

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from kdcache import distributed
from kdcache.checked_files import kind_of
from kdcache.choices import TRACKERS
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.errors import KdcacheError, UsageError, problem, require_package
from kdcache.locks import FileLock
from kdcache.models.external import require_library
from kdcache.run.checkpoint import remove_checkpoints
from kdcache.run.folder import RUNS, FinishedRun, RunFolder, run_folders

__all__ = ["check_output", "create_run_folder", "resolve_run"]

log = logging.getLogger("kdcache")

Config = TypeVar("Config", bound=TrainingConfig)


def resolve_run(config: Config) -> tuple[Config, FinishedRun | None]:
    """Decide which run folder a training writes to, the same in all processes, before any data are read.

    Returns
    -------
    config : TrainingConfig
        With ``resume`` only if there is a run to resume, whose folder is ``out`` then.
    finished : FinishedRun or None
        The run to resume, if it has finished already.

    Raises
    ------
    UsageError
        If ``out`` is not empty, unless it holds a run and ``overwrite`` is set; or if the run to resume has other
        settings; or if the library of the network or of a tracker is not installed.
    """
    require_library(config.model)
    for name in config.track:
        require_package(f"--track {name}", TRACKERS[name].package, extra=name)
    return distributed.broadcast(_resolve(config) if distributed.is_main() else (config, None))


def _resolve(config: Config) -> tuple[Config, FinishedRun | None]:
    folder = _to_resume(config) if config.resume else None
    if folder is None:
        check_output(config)
        if config.out is None and not config.resume and (unfinished := _to_resume(config)):
            log.info("%s is an unfinished run with these settings, which --resume resumes", unfinished.path)
        return config.model_copy(update={"resume": False}), None
    recorded = _config_of(folder, type(config))
    config = config.lasting_as(recorded)
    if problems := config.differences(recorded, moved=config.out is not None):
        raise UsageError(*(f"could not resume {folder.path}: {line}" for line in problems))
    update: dict[str, Any] = {"out": folder.path}
    if isinstance(recorded, StudentConfig) and isinstance(config, StudentConfig):
        named = config if config.teacher else recorded
        update |= {"teacher": named.teacher, "further_teachers": named.further_teachers}
    if not folder.is_finished:
        return config.model_copy(update=update), None
    if config.length != recorded.length:
        what = f"--{recorded.length.unit}: the run in {folder.path} is finished"
        same = config.length.unit == recorded.length.unit
        got = config.length.number if same else config.length
        raise UsageError(problem(what, expected=recorded.length.number, got=got))
    if kind_of(folder.checkpoints_folder) is not None:  # the process was killed right after it wrote the summary
        lock = folder.acquire_lock()
        try:
            remove_checkpoints(folder.checkpoints_folder)
        finally:
            lock.release()
    return config.model_copy(update=update), FinishedRun(folder.path)


def _to_resume(config: TrainingConfig) -> RunFolder | None:
    """Find the run in ``out``, or else the newest unfinished run with the same settings that is not in use."""
    if config.out is not None:
        folder = RunFolder(config.out)
        return folder if folder.holds_run else None
    for folder in sorted(run_folders(RUNS), key=lambda folder: folder.config_file.lstat().st_mtime, reverse=True):
        with suppress(KdcacheError):
            recorded = _config_of(folder, type(config))
            same = recorded.length == config.length and _teachers_of(config) in ((), _teachers_of(recorded))
            unequal = config.lasting_as(recorded).differences(recorded)
            if not folder.is_finished and same and not unequal and not folder.in_use():
                return folder
    return None


def _teachers_of(config: TrainingConfig) -> tuple[Path, ...]:
    return config.teachers if isinstance(config, StudentConfig) else ()


def _config_of(folder: RunFolder, kind: type[Config]) -> Config:
    config = folder.read_config()
    if not isinstance(config, kind):
        raise UsageError(problem(f"run {folder.path}", expected=f"a {kind.table}", got=f"a {config.table}"))
    return config


def check_output(config: TrainingConfig, resumable: bool = True) -> None:
    """Check that the output folder can be written to.

    Parameters
    ----------
    config : TrainingConfig
    resumable : bool
        Whether the command can resume an unfinished run.

    Raises
    ------
    UsageError
        If it is not empty, unless it holds a run and ``overwrite`` is set; or if the student's store or
        the weights to start from are inside.
    """
    if config.out is None:
        return
    read = {"store": config.store, "answers": config.answers} if isinstance(config, StudentConfig) else {}
    for option, place in read.items():
        if place is not None and Path(place).resolve().is_relative_to(config.out.resolve()):
            what, expected = f"--{option} {place}", "a folder outside of --out"
            raise UsageError(problem(what, expected=expected, got=f"--out {config.out}"))
    weights = Path(config.init or "")
    if config.init and weights.exists() and weights.resolve().is_relative_to(config.out.resolve()):
        raise UsageError(problem(f"--init {weights}", expected="weights outside of --out", got=f"--out {config.out}"))
    folder = RunFolder(config.out)
    if not config.out.is_dir() or not folder.entries():
        return
    if not folder.holds_run:
        raise UsageError(problem(f"--out {config.out}", expected="a new or empty folder, or a run", got="other files"))
    if not config.overwrite:
        state = "a finished run" if folder.is_finished else "an unfinished run"
        resumes = resumable and not folder.is_finished
        remedy = f"{'Resume it with --resume, or replace' if resumes else 'Replace'} it with --overwrite."
        raise UsageError(problem(f"--out {config.out}", expected="a new or empty folder", got=state, remedy=remedy))


def create_run_folder(config: TrainingConfig) -> tuple[RunFolder, FileLock]:
    """Create the folder of a new run, empty, and lock it.

    Raises
    ------
    UsageError
        See `check_output`; or if another process writes to it.
    """
    check_output(config)
    if config.out is None:
        folder = RunFolder(_create_numbered(_default_name(config)))
        return folder, folder.acquire_lock()
    folder = RunFolder(config.out)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(problem(f"could not create --out {config.out}: {error.strerror}")) from None
    lock = folder.acquire_lock()
    try:
        folder.remove_temporary_files()
        folder.clear()
    except BaseException:
        lock.release()
        raise
    return folder, lock


def _default_name(config: TrainingConfig) -> str:
    words = [config.table, config.dataset, config.model]
    if isinstance(config, StudentConfig):
        words += [config.loss, config.aug] + ([config.pick] if config.pick else [])
    return re.sub("[:/]", "-", "-".join([*words, f"seed{config.seed}"]))


def _create_numbered(name: str) -> Path:
    """Create a folder under `RUNS`; from the second of a name on, with a number."""
    number = 1
    while True:
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            remedy = "Name another folder with --out."
            raise UsageError(problem(f"could not create {path}", got=error.strerror, remedy=remedy)) from None
        else:
            return path

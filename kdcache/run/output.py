"""Which folder a run is written to, or gone on with, and who may write there; see `kdcache.run.folder`."""

import logging
import re
import shutil
import tomllib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import torch

from kdcache import distributed
from kdcache.answers.location import StoreLocation
from kdcache.compute import Compute
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.errors import UsageError, first_line, problem
from kdcache.run.folder import KINDS, RUNS, FinishedRun, read_environment

__all__ = ["check_folder", "clear_litter", "compute_of", "hold", "new_folder", "resolve_run"]

log = logging.getLogger("kdcache")

Config = TypeVar("Config", bound=TrainingConfig)


def resolve_run(config: Config) -> tuple[Config, FinishedRun | None]:
    """Settle which folder a training writes, before anything is read or written; alike in all its processes.

    Returns
    -------
    config : TrainingConfig
        With ``resume`` only where there is a run to go on with, whose folder is ``out`` then.
    finished : FinishedRun or None
        The run, where it needs nothing any more.

    Raises
    ------
    UsageError
        Where the folder holds something already, unless that is a run and ``overwrite`` is set; or a run of other
        settings, where it is to be gone on with.
    """
    return distributed.broadcast(_settled(config) if distributed.is_main() else (config, None))


def _settled(config: Config) -> tuple[Config, FinishedRun | None]:
    path = config.out or _unfinished(config) if config.resume else None
    if path is None or not (path / "config.toml").is_file():
        check_folder(config)
        return config.model_copy(update={"resume": False}), None
    recorded = _recorded(path, type(config))
    if problems := config.differences(recorded):
        raise UsageError(*(f"{path} cannot be gone on with: {line}" for line in problems))
    kept = {"teacher": recorded.teacher} if isinstance(recorded, StudentConfig) else {}
    finished = (path / "summary.json").is_file()
    if finished and config.epochs != recorded.epochs:
        raise UsageError(problem(f"--epochs: {path} is finished", expected=recorded.epochs, got=config.epochs))
    if finished and (path / "checkpoints").exists():  # the process was killed right after the summary
        with hold(path):
            shutil.rmtree(path / "checkpoints")
    return config.model_copy(update={"out": path, **kept}), FinishedRun(path) if finished else None


def compute_of(config: TrainingConfig) -> Compute:
    """Settle where and how precisely to compute; a run that is gone on with keeps its precision and its threads."""
    then = read_environment(config.out) if config.resume and config.out else {}
    compute, now = Compute.choose(config.device, then.get("precision", config.precision)), torch.get_num_threads()
    threads = then.get("threads", now)
    if compute.device.type == "cpu" and isinstance(threads, int) and 0 < threads != now:
        log.info("computing with %d threads instead of %d, as the run did before: sums depend on it", threads, now)
        torch.set_num_threads(threads)
    return compute


def _recorded(path: Path, kind: type[Config]) -> Config:
    settings = path / "config.toml"
    try:
        found = next((table for table in KINDS if table in tomllib.loads(settings.read_text("utf-8"))), None)
    except (OSError, ValueError) as error:
        raise UsageError(problem(f"{settings}: not the settings of a run", got=first_line(error))) from None
    if found != kind.table:
        raise UsageError(problem(f"run {path}", expected=f"a {kind.table}", got=f"a {found}"))
    return kind.load(settings)


def _unfinished(config: TrainingConfig) -> Path | None:
    """Find the newest run of the same settings that did not come to its end."""
    for settings in sorted(RUNS.glob("*/config.toml"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UsageError):
            recorded = _recorded(settings.parent, type(config))
            unfinished = not (settings.parent / "summary.json").exists() and recorded.epochs == config.epochs
            if unfinished and not config.differences(recorded):
                return settings.parent
    return None


def hold(path: Path) -> ExitStack:
    """Keep other processes out of a run folder, until what is given back is closed or this process ends.

    Raises
    ------
    UsageError
        Where another process writes to it.
    """
    held = ExitStack()
    if not held.enter_context(StoreLocation(path / "run").lock(None, wait=False)):
        held.close()
        raise UsageError(problem(f"run folder {path}", expected="a folder that nobody writes to", got="one in use"))
    return held


def clear_litter(path: Path) -> None:
    """Remove what a writer that was killed left half written."""
    for folder in (path, path / "checkpoints"):
        for left in folder.glob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    for left in path.glob("statistics.zarr/**/*.partial"):
        left.unlink()


def check_folder(config: TrainingConfig) -> None:
    """Refuse a run folder that holds something already, unless that is a run and ``config.overwrite`` is set."""
    path = config.out
    store = config.store if isinstance(config, StudentConfig) else None
    if path is not None and store is not None and Path(store).resolve().is_relative_to(path.resolve()):
        raise UsageError(problem(f"--store {store}", expected="a place outside the run folder", got=f"--out {path}"))
    if path is None or not path.is_dir() or not _content(path):
        return
    if not (path / "config.toml").is_file():
        raise UsageError(problem(f"--out {path}", expected="a new or empty folder, or a run", got="other files"))
    if not config.overwrite:
        state = "a finished" if (path / "summary.json").exists() else "an unfinished"
        raise UsageError(problem(f"--out {path} holds {state} run", expected="another folder, or --overwrite"))


def new_folder(config: TrainingConfig) -> tuple[Path, ExitStack]:
    """Make the folder of a new run, empty, and hold it."""
    check_folder(config)
    path = config.out
    if path is None:
        path = _numbered_folder(config)
        return path, hold(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(problem(f"--out {path}", expected="a folder that can be made", got=error.strerror)) from None
    held = hold(path)
    clear_litter(path)
    # Half removed, the folder must not look like a finished run, but still like a run.
    order = {"summary.json": 0, "config.toml": 2}
    for entry in sorted(_content(path), key=lambda entry: order.get(entry.name, 1)):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return path, held


def _content(path: Path) -> list[Path]:
    """List what a folder holds besides its lock, and what a writer that was killed left."""
    litter = re.compile(r"run\.lock|\..*\.tmp")
    return [entry for entry in path.iterdir() if not litter.fullmatch(entry.name)]


def _numbered_folder(config: TrainingConfig) -> Path:
    """Make ``runs/<kind>-<dataset>-<model>[-<loss>-<aug>]-seed<seed>``, numbered from the second of a name on."""
    words = [config.table, config.dataset, config.model]
    if isinstance(config, StudentConfig):
        words += [config.loss, config.aug] + ([config.pick] if config.pick else [])
    name = re.sub("[:/]", "-", "-".join([*words, f"seed{config.seed}"]))
    number = 1
    while True:
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path

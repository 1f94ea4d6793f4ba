"""Commands and trainings in processes of their own, to be killed for real, and what is compared of their runs.

The processes are forked from one that has imported what takes seconds.
"""

import hashlib
import multiprocessing
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import zarr
from kdcache.stages import precompute_answers, train_student, train_teacher

from kdcache import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.run.folder import FinishedRun

_MAKERS = multiprocessing.get_context("forkserver")
# What is imported once is there in each process at once; no threads are begun before it forks.
_MAKERS.set_forkserver_preload(["tests.processes"])


class Command:
    """A command line that is at work, in a group of processes of its own; only one that is no daemon has workers."""

    def __init__(
        self, words: tuple[str, ...], cwd: Path, prepare: Callable[[], None] | None = None, daemon: bool = True
    ) -> None:
        self.words, self.folder = words, tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name, name) for name in ("output", "errors")]
        self.process = started(_command, words, cwd, self.files, prepare, daemon=daemon)

    def children(self) -> list[Path]:
        """Find the processes that it started."""
        there = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [Path("/proc", child) for child in there.read_text().split()] if there.exists() else []

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.join()

    def ended(self, seconds: float = 240) -> "CompletedProcess[str]":
        """Wait for its end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still at work: {self.words}"
        output, errors = (file.read_text() for file in self.files)
        return CompletedProcess(self.words, self.process.exitcode, output, errors)


def begun(
    command: str, settings: dict[str, Any], prepare: Callable[[], None] | None = None, daemon: bool = True
) -> Command:
    """Begin a command, in the folder of its run folder."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "resume"]
    options += ["--resume"] if settings.get("resume") else []
    return Command((command, *options), Path(settings["out"]).parent, prepare, daemon)


def kdcache(*words: str, cwd: Path, prepare: Callable[[], None] | None = None) -> "CompletedProcess[str]":
    """Run a command to its end."""
    return Command(words, cwd, prepare).ended()


def _command(words: tuple[str, ...], cwd: Path, files: list[Path], prepare: Callable[[], None] | None) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.setpgid(0, 0)
    os.chdir(cwd)
    sys.argv = ["kdcache", *words]
    if prepare:
        prepare()
    cli.main()


def start(kind: str, **settings: Any) -> BaseProcess:
    """Begin a training, or go on with it, in a process of its own."""
    return started(work, kind, settings, daemon=True)


def started(work: Callable[..., object], *arguments: object, daemon: bool = False) -> BaseProcess:
    """Begin some work in a process of its own."""
    process = _MAKERS.Process(target=_alone, args=(work, *arguments), daemon=daemon)
    process.start()
    return process


def _alone(work: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # what a process has that nobody forked
    work(*arguments)


def work(kind: str, settings: dict[str, Any]) -> None:
    """Train, or fill a store, as the command line does."""
    cli.handle_signals()
    if kind == "teacher":
        train_teacher(TeacherConfig.load(**settings))
    elif kind == "fill":
        precompute_answers(StudentConfig.load(**settings))
    else:
        train_student(StudentConfig.load(**settings))


def in_ranks(number: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Do some work in several processes that belong together, and collect what each gives back."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(number)]
        processes = [_MAKERS.Process(target=_in_rank, args=(files, rank, work, arguments)) for rank in range(number)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        return [pickle.loads(file.read_bytes()) for file in files]


def _in_rank(files: list[Path], rank: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    meeting = dist.FileStore(str(files[0].with_name("meeting")), len(files))
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=len(files))
    files[rank].write_bytes(pickle.dumps(work(*arguments)))
    dist.destroy_process_group()


def outcome(path: Path) -> dict[str, Any]:
    """Read all of a run that a second one with the same settings must repeat bit for bit."""
    run = FinishedRun(path)
    lines = [vars(line) for line in run.read_metrics()]
    times = ("seconds", "images_per_second", "data_share", "teacher_share")
    varying = (*times, "teacher_forwards", "cache_hits")
    metrics = [{name: value for name, value in line.items() if name not in varying} for line in lines]
    found: dict[str, Any] = {"network": _digest((path / "model.safetensors").read_bytes()), "metrics": metrics}
    for place in ("statistics.zarr", "answers.zarr/clean"):
        if (path / place).exists():
            arrays = zarr.open_group(path / place, mode="r").arrays()
            found |= {f"{place}/{name}": _digest(np.asarray(array[...]).tobytes()) for name, array in arrays}
    return found


def _digest(content: bytes) -> str:
    """Stand for a content, of which pytest would otherwise print the difference for minutes."""
    return hashlib.sha256(content).hexdigest()
